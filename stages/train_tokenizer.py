"""Trains a tokenizer on one stream of a dataset, or on several of one kind and form: VQ-GAN (the default), VQ-VAE or dVAE."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from worldloom.stages.artifact import Artifact
from worldloom.stages.estimate import Estimate
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import AudioStream, DatasetRef, EncoderRef, ImageStream, StreamName, VideoStream
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Worker
from worldloom.tokenizers.audio_settings import Codec, Mel
from worldloom.tokenizers.backbone_settings import VitBackbone
from worldloom.tokenizers.image_settings import Dvae, VqGan, VqVae

TokenizerSettings = Annotated[VqGan | VqVae | Dvae | Codec | Mel, Field(discriminator="type")]


class TrainTokenizer(TrainingSettings):
    """One tokenizer training."""

    run: Literal["train_tokenizer"]
    data: DatasetRef
    stream: Annotated[str, StreamName(("image", "video", "audio"))] = Field(description="the stream to learn")
    also: tuple[Annotated[str, StreamName(("image", "video", "audio"))], ...] = Field(
        (),
        description="streams of the same kind and form that share the tokenizer: depth and mask beside rgb, or clips, frame by frame, "
        "beside pictures; batches mix them all",
    )
    tokenizer: TokenizerSettings = Field(VqGan(), description="vqgan, vqvae or dvae for pictures and clips, codec or mel for sounds")
    perceptual: EncoderRef | None = Field(
        None,
        description="stage whose encoder compares pictures: a vqgan's perceptual loss, and the distances of every tokenizer's figures; "
        "null: LPIPS weights where the tokenizer names some, or else a random network",
    )
    encoder: EncoderRef | None = Field(
        None, description="stage whose ViT the encoder of a tokenizer with a vit backbone begins with; null: drawn weights"
    )
    batch_size: PositiveInt = Field(32, description="values a step, all workers together")
    learning_rate: float = Field(3e-3, gt=0, description="at its highest, after the warm-up")
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="share of the moving average of all weights that each step keeps, in the first steps less: 0.999; "
        "where it is given, the average is what is measured and saved. null: the weights of the last step",
    )
    measured: PositiveInt = Field(2_000, description="values of each split that the final figures are taken from, at most")

    @model_validator(mode="after")
    def _names_each_stream_once(self) -> Self:
        names = (self.stream, *self.also)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"also: {', '.join(twice)} is named twice, stream itself included; name each stream once")
        return self

    @model_validator(mode="after")
    def _encoders_have_a_use(self) -> Self:
        sounds = isinstance(self.tokenizer, Codec | Mel)
        if self.perceptual is not None and sounds:
            raise ValueError(f"perceptual ({self.perceptual}) compares pictures, and {self.tokenizer.type} is for sounds; leave it out")
        if self.perceptual is not None and getattr(self.tokenizer, "perceptual_weights", None) is not None:
            raise ValueError(f"perceptual ({self.perceptual}) and tokenizer.perceptual_weights name two networks; leave one of them out")
        if self.encoder is not None and not isinstance(getattr(self.tokenizer, "backbone", None), VitBackbone):
            raise ValueError(
                f"encoder ({self.encoder}) begins a vit backbone, and this tokenizer has none; set tokenizer.backbone.type to vit"
            )
        return self

    @model_validator(mode="after")
    def _places_codes_before_it_ends(self) -> Self:
        after = getattr(getattr(self.tokenizer, "quantizer", None), "place_after", None)
        if after is not None and after >= self.steps - 1:
            raise ValueError(
                f"tokenizer.quantizer.place_after ({after}) must be below steps ({self.steps}) by two or more; "
                f"leave it out to have it follow steps"
            )
        return self


def run(settings: TrainTokenizer, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Trains; rank 0 then writes the tokenizer, measures it on values that training has not seen, and shows some."""
    from dataclasses import replace
    from functools import partial

    from worldloom.stages.averaged import Averaged
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.judge import judge_of
    from worldloom.stages.stream_reports import report_streams
    from worldloom.stages.together import check_together
    from worldloom.stages.tokenizer_kinds import kind_of_tokenizer
    from worldloom.stages.training import train
    from worldloom.stages.value_batches import ValueBatches
    from worldloom.stages.vit_networks import begin_with

    if (out / "tokenizer" / "README.md").exists():  # what is written last
        return
    dataset = Dataset(inputs["data"])
    kind = kind_of_tokenizer(settings, dataset)
    check_together(settings.stream, settings.also, dataset.streams)
    tokenizer = kind.build(settings, dataset.streams[settings.stream])
    batches = ValueBatches(dataset, "train", (settings.stream, *settings.also), settings.batch_size, settings.seed, worker)
    # The adaptive weight needs whole parameters, so a profile's ZeRO 3 stops at 2 here.
    if settings.encoder is not None:
        begin_with(tokenizer, inputs["encoder"])
    judge = judge_of(settings, inputs)
    learner = kind.learner(settings, tokenizer, batches, judge)
    averaged = None if settings.ema is None else Averaged(learner, tokenizer.weights, settings.ema)
    train(averaged or learner, settings, batches, out, replace(worker, zero=min(worker.zero, 2)), out.name)
    if averaged is not None:
        averaged.put()
    if worker.rank == 0:
        report_streams(partial(kind.report, judge=judge), settings, tokenizer, dataset, out, worker.threads)
        tokenizer.save_pretrained(out / "tokenizer")


def finish(settings: TrainTokenizer, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """What there is, read back."""
    import json
    from math import prod

    config = json.loads((out / "tokenizer" / "config.json").read_bytes())
    return {"codebook_size": config["codebook_size"], "codes_per_sample": prod(config["shape"])}


def outside(settings: TrainTokenizer, digest: Callable[[Path], str]) -> dict[str, str]:
    """The digest of perceptual weights from outside."""
    weights = settings.tokenizer.perceptual_weights if isinstance(settings.tokenizer, VqGan) else None
    if weights is None:
        return {}
    if not Path(weights).is_file():
        raise FileNotFoundError(f"tokenizer.perceptual_weights: there is no file {weights}; leave it out for the random perceptual network")
    return {"tokenizer.perceptual_weights": digest(Path(weights))}


def estimate(settings: TrainTokenizer, inputs: Mapping[str, Estimate]) -> Estimate:
    """Codes of one value. ValueError where the tokenizer cannot learn the stream, or those of `also` cannot share it."""
    streams = inputs["data"].streams or {}
    stream = streams.get(settings.stream)
    if stream is not None:
        from worldloom.stages.fitting import check_fits
        from worldloom.stages.together import check_together

        check_fits(settings, stream)
        check_together(settings.stream, settings.also, streams)
    each, depth = settings.tokenizer.downsample, getattr(getattr(settings.tokenizer, "quantizer", None), "depth", 1)
    if isinstance(stream, ImageStream):
        return Estimate(codes=stream.height * stream.width // each**2 * depth)
    if isinstance(stream, VideoStream):
        stride = getattr(settings.tokenizer, "time_stride", None) or 1
        return Estimate(codes=(1 + -(-(stream.frames - 1) // stride)) * (stream.height * stream.width // each**2) * depth)
    if isinstance(stream, AudioStream) and isinstance(settings.tokenizer, Mel):
        frames = -(-(stream.samples // settings.tokenizer.hop + 1) // each)
        return Estimate(codes=frames * (settings.tokenizer.bins // each) * depth)
    if isinstance(stream, AudioStream):
        return Estimate(codes=-(-stream.samples // each) * depth)
    return Estimate()


STAGE = StageKind(
    name="train_tokenizer",
    settings=TrainTokenizer,
    run=run,
    finish=finish,
    produces="tokenizer",
    version=4,
    placement="gang",
    outside=outside,
    estimate=estimate,
)
