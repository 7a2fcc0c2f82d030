"""How a tokenizer of each kind of stream is built, taught and judged: one record a kind."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from worldloom.stages.audio_figures import report_audio
from worldloom.stages.audio_learner import audio_learner, audio_tokenizer
from worldloom.stages.dataset import Dataset
from worldloom.stages.fitting import check_fits
from worldloom.stages.learner import Learner
from worldloom.stages.tokenizer_figures import report_tokenizer
from worldloom.stages.tokenizer_learner import image_tokenizer, learner_of, video_tokenizer
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.value_batches import ValueBatches
from worldloom.stages.video_figures import report_video
from worldloom.tokenizers.learned import LearnedTokenizer
from worldloom.tokenizers.perceptual import PerceptualLoss


class Report(Protocol):
    def __call__(
        self, settings: TrainTokenizer, tokenizer: Any, dataset: Dataset, out: Path, threads: int, *, judge: PerceptualLoss
    ) -> None: ...


def _blind(report: Callable[[TrainTokenizer, Any, Dataset, Path, int], None]) -> Report:
    """A report that needs no judge of pictures."""

    def reported(settings: TrainTokenizer, tokenizer: Any, dataset: Dataset, out: Path, threads: int, *, judge: PerceptualLoss) -> None:
        report(settings, tokenizer, dataset, out, threads)

    return reported


@dataclass(frozen=True)
class TokenizerKind:
    """What the stage needs to know of a kind of stream."""

    build: Callable[[TrainTokenizer, Any], LearnedTokenizer]  # settings, the stream's -> untrained
    learner: Callable[[TrainTokenizer, Any, ValueBatches, PerceptualLoss], Learner]
    report: Report  # writes figures.json, pictures, card.json; sets tokenizer.measured


TOKENIZER_KINDS: dict[str, TokenizerKind] = {
    "image": TokenizerKind(image_tokenizer, learner_of, report_tokenizer),
    "video": TokenizerKind(video_tokenizer, learner_of, _blind(report_video)),
    "audio": TokenizerKind(
        audio_tokenizer,
        lambda settings, tokenizer, batches, judge: audio_learner(settings, tokenizer, batches),
        _blind(report_audio),
    ),
}


def kind_of_tokenizer(settings: TrainTokenizer, dataset: Dataset) -> TokenizerKind:
    """The record for the stream to learn; ValueError where the dataset has no such stream, or one that the tokenizer cannot learn."""
    stream = dataset.streams.get(settings.stream)
    if stream is None or stream.kind not in TOKENIZER_KINDS:
        found = ", ".join(f"{name} ({about.kind})" for name, about in dataset.streams.items())
        raise ValueError(
            f"stream: {settings.stream!r} is no stream of this dataset that train_tokenizer can learn ({', '.join(TOKENIZER_KINDS)}); "
            f"the dataset has {found}"
        )
    check_fits(settings, stream)
    return TOKENIZER_KINDS[stream.kind]
