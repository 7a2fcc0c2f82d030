"""How a tokenizer of each kind of stream is built, taught and judged: one record a kind."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from worldloom.stages.audio_figures import report_audio
from worldloom.stages.audio_learner import audio_learner, audio_tokenizer
from worldloom.stages.dataset import Dataset
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

    types: tuple[str, ...]  # of tokenizers that learn such streams
    build: Callable[[TrainTokenizer, Any], LearnedTokenizer]  # settings, the stream's -> untrained
    learner: Callable[[TrainTokenizer, Any, ValueBatches, PerceptualLoss], Learner]
    report: Report  # writes figures.json, pictures, card.json; sets tokenizer.measured


TOKENIZER_KINDS: dict[str, TokenizerKind] = {
    "image": TokenizerKind(("vqgan", "vqvae", "dvae"), image_tokenizer, learner_of, report_tokenizer),
    "video": TokenizerKind(("vqgan", "vqvae", "dvae"), video_tokenizer, learner_of, _blind(report_video)),
    "audio": TokenizerKind(
        ("codec", "mel"),
        audio_tokenizer,
        lambda settings, tokenizer, batches, judge: audio_learner(settings, tokenizer, batches),
        _blind(report_audio),
    ),
}


def kind_of_tokenizer(settings: TrainTokenizer, dataset: Dataset) -> TokenizerKind:
    """The record for the stream to learn; ValueError where the dataset has no such stream, or one that is not learnt by an autoencoder."""
    stream = dataset.streams.get(settings.stream)
    if stream is None or stream.kind not in TOKENIZER_KINDS:
        found = ", ".join(f"{name} ({about.kind})" for name, about in dataset.streams.items())
        raise ValueError(
            f"stream: {settings.stream!r} is no stream of this dataset that train_tokenizer can learn ({', '.join(TOKENIZER_KINDS)}); "
            f"the dataset has {found}"
        )
    kind = TOKENIZER_KINDS[stream.kind]
    if settings.tokenizer.type not in kind.types:
        raise ValueError(
            f"tokenizer.type: {settings.tokenizer.type!r} does not learn {settings.stream!r}, which is of kind {stream.kind}; "
            f"set it to {' or '.join(kind.types)}"
        )
    return kind
