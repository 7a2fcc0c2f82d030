"""Trains an encoder on the pictures of a dataset: by labels, by hidden pixels, or by agreement between views."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from worldloom.stages.artifact import Artifact
from worldloom.stages.encoder_settings import Dino, LabelBy, Objective, SimMim, Supervised
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NOT_IN_OUTPUT, DatasetRef, ImageStream, StreamName
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Worker
from worldloom.world_model.encoders.settings import ConvSettings, EncoderSettings, VitSettings

if TYPE_CHECKING:
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.encoder_learner import EncoderLearner, Recipe
    from worldloom.stages.labels import Labels
    from worldloom.stages.learner import Learner
    from worldloom.world_model.encoders.build import Network, NetworkSettings


class PretrainEncoder(TrainingSettings):
    """One pre-training."""

    run: Literal["pretrain_encoder"]
    data: DatasetRef
    stream: Annotated[str, StreamName(("image",))] = Field(description="the pictures to learn from; squares")
    encoder: EncoderSettings = Field(
        VitSettings(patch=8, width=192, depth=6, heads=3),
        description="vit, swin or conv; grid and mask_token follow from pictures and objective",
    )
    objective: Objective = Field(Dino(), description="supervised, simmim or dino")
    labels: Annotated[str, StreamName(("text",))] | None = Field(
        None, description="stream that names each picture's class: taught by under supervised, otherwise figures only; null: no figures"
    )
    label_by: LabelBy = Field("text", description="what of the text is the class: all of it, or what a caption of shapes tells")
    batch_size: PositiveInt = Field(64, description="pictures a step, all workers together")
    learning_rate: PositiveFloat = Field(5e-4, description="at its highest, after the warm-up")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="AdamW's two rates of forgetting"
    )
    weight_decay: NonNegativeFloat = Field(0.05, description="decoupled, on matrices only")
    clip: NonNegativeFloat = Field(3.0, description="highest gradient norm; 0 leaves gradients as they are")
    knn_every: Annotated[NonNegativeInt, NOT_IN_OUTPUT] = Field(
        100, description="steps between points of the curve of k-NN accuracy on pictures that training does not see; 0: no curve"
    )
    measured: PositiveInt = Field(2_000, description="pictures of each split that the figures are taken from, at most")

    @model_validator(mode="after")
    def _has_what_it_learns_by(self) -> Self:
        if isinstance(self.objective, Supervised) and self.labels is None:
            raise ValueError("objective supervised needs labels; set labels to a stream of text, or choose simmim or dino")
        return self

    @model_validator(mode="after")
    def _can_hide_patches(self) -> Self:
        if isinstance(self.objective, SimMim) and isinstance(self.encoder, ConvSettings):
            raise ValueError("simmim hides patches from its encoder, and a conv encoder has none; set encoder.type to vit or swin")
        return self


def run(settings: PretrainEncoder, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Trains; rank 0 then writes the encoder, measures its features on pictures that training has not seen, and shows some."""
    from dataclasses import replace

    import torch

    from worldloom.stages.dataset import Dataset
    from worldloom.stages.encoder_figures import report_encoder
    from worldloom.stages.encoder_learner import Recipe, SimMimLearner
    from worldloom.stages.labels import read_labels
    from worldloom.stages.learner import resolve_precision
    from worldloom.stages.picture_batches import PictureBatches
    from worldloom.stages.training import train
    from worldloom.stages.value_batches import Values
    from worldloom.world_model.encoders.build import build_encoder
    from worldloom.world_model.encoders.joined import save_redrawer
    from worldloom.world_model.encoders.load import save_pretrained

    if (out / "card.json").exists():
        return
    dataset = Dataset(inputs["data"])
    labels = read_labels(dataset, settings.labels, settings.label_by) if settings.labels is not None else None
    about = encoder_of(settings, dataset)
    encoder = build_encoder(about, torch.Generator().manual_seed(settings.seed))
    precision = resolve_precision(settings.precision)
    recipe = Recipe(settings.steps, settings.seed, settings.learning_rate, settings.betas, settings.weight_decay, precision)
    learner = learner_of(settings, encoder, labels, dataset, recipe)
    taught = labels.of["train"] if labels is not None and isinstance(settings.objective, Supervised) else None
    batches = PictureBatches(Values(dataset, "train", settings.stream), settings.batch_size, settings.seed, worker, taught)
    # The teacher follows whole parameters, so a profile's ZeRO 3 stops at 2 here.
    train(watched(settings, learner, dataset, labels), settings, batches, out, replace(worker, zero=min(worker.zero, 2)), out.name)
    if worker.rank == 0:
        save_pretrained(out / "encoder", learner.judged, about)
        if isinstance(learner, SimMimLearner):
            save_redrawer(out, learner.redrawer)
        report_encoder(settings, about, learner, dataset, labels, out, worker.threads)


def finish(settings: PretrainEncoder, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """What there is, read back."""
    import json

    figures = json.loads((out / "figures.json").read_bytes())
    return {"parameters": int(figures[f"{settings.stream}.parameters"]), "steps": settings.steps}


def encoder_of(settings: PretrainEncoder, dataset: "Dataset") -> "NetworkSettings":
    """The encoder's settings with what follows from pictures and objective written out; ValueError where they do not go together."""
    stream = dataset.streams[settings.stream]
    assert isinstance(stream, ImageStream)
    side = stream.height
    if side != stream.width:
        raise ValueError(f"encoders learn from squares, the pictures of {settings.stream!r} are {side} x {stream.width}; crop them")
    changes: dict[str, Any] = {"channels": 3}
    if not isinstance(settings.encoder, ConvSettings):
        changes["mask_token"] = settings.encoder.mask_token or settings.objective.type == "simmim"
    if isinstance(settings.encoder, VitSettings):
        if side % settings.encoder.patch and settings.encoder.fitting == "error":
            raise ValueError(f"patches of {settings.encoder.patch} pixels do not divide pictures of {side}; set encoder.patch to a divisor")
        changes["grid"] = (-(-side // settings.encoder.patch),) * 2
        if isinstance(settings.objective, Dino):
            local = settings.objective.local_size or max(side // 2, 8)
            if local % settings.encoder.patch and settings.encoder.fitting == "error":
                raise ValueError(
                    f"patches of {settings.encoder.patch} pixels do not divide local views of {local}; set objective.local_size"
                )
    return settings.encoder.model_copy(update=changes)


def watched(settings: PretrainEncoder, learner: "EncoderLearner", dataset: "Dataset", labels: "Labels | None") -> "Learner":
    """The learner, looked at every so many steps where there are labels and pictures that training does not see."""
    from worldloom.stages.encoder_figures import UNSEEN
    from worldloom.stages.encoder_watch import Watched
    from worldloom.stages.value_batches import Values

    queries = next((values for split in UNSEEN if len(values := Values(dataset, split, settings.stream))), None)
    if labels is None or queries is None or not settings.knn_every:
        return learner
    return Watched(learner, Values(dataset, "train", settings.stream), queries, labels, settings.knn_every)


def learner_of(
    settings: PretrainEncoder, encoder: "Network", labels: "Labels | None", dataset: "Dataset", recipe: "Recipe"
) -> "EncoderLearner":
    """The learner of the objective's type."""
    from worldloom.stages.encoder_learner import DinoLearner, SimMimLearner, SupervisedLearner
    from worldloom.world_model.encoders.convnet import ConvNet

    stream, about = dataset.streams[settings.stream], settings.objective
    assert isinstance(stream, ImageStream)
    side = stream.height
    if isinstance(about, Supervised):
        assert labels is not None
        return SupervisedLearner(encoder, about, len(labels.classes), side, recipe)
    if isinstance(about, Dino):
        return DinoLearner(encoder, about, side, recipe)
    assert not isinstance(encoder, ConvNet)
    return SimMimLearner(encoder, about, side, recipe)


STAGE = StageKind(
    name="pretrain_encoder",
    settings=PretrainEncoder,
    run=run,
    finish=finish,
    produces="encoder",
    version=2,
    placement="gang",
)
