"""Trains an image tokenizer on one stream of a dataset: VQ-GAN (the default), VQ-VAE or dVAE."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from worldloom.stages.artifact import Artifact
from worldloom.stages.estimate import Estimate
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import DatasetRef, ImageStream, StreamName
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Worker
from worldloom.tokenizers.image_settings import Dvae, ImageTokenizerSettings, VqGan


class TrainTokenizer(TrainingSettings):
    """One tokenizer training."""

    run: Literal["train_tokenizer"]
    data: DatasetRef
    stream: Annotated[str, StreamName("image")] = Field(description="the stream of pictures to learn")
    tokenizer: ImageTokenizerSettings = VqGan()
    batch_size: PositiveInt = Field(32, description="pictures a step, all workers together")
    learning_rate: float = Field(3e-3, gt=0, description="at its highest, after the warm-up")
    measured: PositiveInt = Field(2_000, description="pictures of each split that the final figures are taken from, at most")

    @model_validator(mode="after")
    def _places_codes_before_it_ends(self) -> Self:
        after = None if isinstance(self.tokenizer, Dvae) else self.tokenizer.place_after
        if after is not None and after >= self.steps - 1:
            raise ValueError(
                f"tokenizer.place_after ({after}) must be below steps ({self.steps}) by two or more; leave it out to have it follow steps"
            )
        return self


def run(settings: TrainTokenizer, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Trains; rank 0 then writes the tokenizer, measures it on pictures that training has not seen, and shows some."""
    from dataclasses import replace

    from worldloom.stages.dataset import Dataset
    from worldloom.stages.picture_batches import PictureBatches
    from worldloom.stages.tokenizer_figures import report_tokenizer
    from worldloom.stages.tokenizer_learner import image_tokenizer, learner_of
    from worldloom.stages.training import train

    if (out / "card.json").exists():
        return
    dataset = Dataset(inputs["data"])
    tokenizer = image_tokenizer(settings, dataset)
    batches = PictureBatches(dataset, "train", settings.stream, settings.batch_size, settings.seed, worker)
    # The adaptive weight needs whole parameters, so a profile's ZeRO 3 stops at 2 here.
    train(learner_of(settings, tokenizer, batches), settings, batches, out, replace(worker, zero=min(worker.zero, 2)), out.name)
    if worker.rank == 0:
        tokenizer.save_pretrained(out / "tokenizer")
        report_tokenizer(settings, tokenizer, dataset, out, worker.threads)


def finish(settings: TrainTokenizer, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """What there is, read back."""
    import json

    config = json.loads((out / "tokenizer" / "config.json").read_bytes())
    return {"codebook_size": config["codebook_size"], "codes_per_sample": config["shape"][0] * config["shape"][1]}


def outside(settings: TrainTokenizer, digest: Callable[[Path], str]) -> dict[str, str]:
    """The digest of perceptual weights from outside."""
    weights = settings.tokenizer.perceptual_weights if isinstance(settings.tokenizer, VqGan) else None
    if weights is None:
        return {}
    if not Path(weights).is_file():
        raise FileNotFoundError(f"tokenizer.perceptual_weights: there is no file {weights}; leave it out for the random perceptual network")
    return {"tokenizer.perceptual_weights": digest(Path(weights))}


def estimate(settings: TrainTokenizer, inputs: Mapping[str, Estimate]) -> Estimate:
    """Codes of one picture."""
    stream = (inputs["data"].streams or {}).get(settings.stream)
    return Estimate(codes=(stream.size // settings.tokenizer.downsample) ** 2) if isinstance(stream, ImageStream) else Estimate()


STAGE = StageKind(
    name="train_tokenizer",
    settings=TrainTokenizer,
    run=run,
    finish=finish,
    produces="tokenizer",
    version=1,
    placement="gang",
    outside=outside,
    estimate=estimate,
)
