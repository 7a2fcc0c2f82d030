"""Trains an encoder on the pictures of a dataset: by labels, a teacher, hidden pixels, agreement between views, or captions."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from worldloom.stages.artifact import Artifact
from worldloom.stages.encoder_settings import Coca, Deit, Dino, Dinov2, Distill, LabelBy, Objective, SimMim, Supervised
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NOT_IN_OUTPUT, DatasetRef, EncoderRef, ImageStream, StreamName
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Worker
from worldloom.world_model.encoders.settings import ConvSettings, EncoderSettings, VitSettings

if TYPE_CHECKING:
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.encoder_learner import EncoderLearner, Recipe
    from worldloom.stages.labels import Labels
    from worldloom.stages.learner import Learner, Precision
    from worldloom.stages.picture_batches import PictureBatches
    from worldloom.world_model.encoders.build import NetworkSettings

FORM = VitSettings(patch=8, width=192, depth=6, heads=3)


class PretrainEncoder(TrainingSettings):
    """One pre-training."""

    run: Literal["pretrain_encoder"]
    data: DatasetRef
    stream: Annotated[str, StreamName(("image",))] = Field(description="the pictures to learn from; squares")
    init: EncoderRef | None = Field(
        None, description="name of a stage whose encoder this one goes on from, in its form; null: weights are drawn by the seed"
    )
    encoder: EncoderSettings = Field(
        FORM, description="vit, swin or conv; grid, mask_token and distillation_token follow from pictures and objective"
    )
    encoder_stem: EncoderRef | None = Field(
        None, description="name of a stage whose conv encoder the encoder's stem begins with, in the same form; null: weights are drawn"
    )
    objective: Objective = Field(Dino(), description="supervised, distill, deit, simmim, dino, dinov2 or coca")
    labels: Annotated[str, StreamName(("text",))] | None = Field(
        None,
        description="stream that names each picture's class: taught by under supervised, deit, distill of form soft or hard, and in coca's "
        "first phase, otherwise figures only; null: no figures",
    )
    label_by: LabelBy = Field("text", description="what of the text is the class: all of it, or what a caption of shapes tells")
    labelled: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the pictures that a supervised training sees, as if the others had no labels; always the same ones"
    )
    batch_size: PositiveInt = Field(64, description="pictures a step, all workers together")
    learning_rate: PositiveFloat = Field(5e-4, description="at its highest, after the warm-up")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="AdamW's two rates of forgetting"
    )
    weight_decay: NonNegativeFloat = Field(
        0.05, description="decoupled, on matrices only; positions, tables of relative ones and learnt tokens are none"
    )
    last_weight_decay: NonNegativeFloat | None = Field(
        None, description="what weight decay rises or falls to along half a cosine over the steps; 0.4, from 0.04, in DINO; null: it stays"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="a block's learning rate as a share of that of the one behind it; 0.9 or 1 in DINOv2, 0.65 (ViT-B) or 0.9 (Swin-B) "
        "where SimMIM is fine-tuned",
    )
    patch_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="learning rate of the patch embedding as a share of what it would be; 0.2 in DINOv2"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="what is kept is a moving average of the weights, of which each step keeps this much; 0.99996 in DeiT; null: none"
    )
    clip: NonNegativeFloat = Field(3.0, description="highest gradient norm; 0 leaves gradients as they are")
    knn_every: Annotated[NonNegativeInt, NOT_IN_OUTPUT] = Field(
        100, description="steps between points of the curve of k-NN accuracy on pictures that training does not see; 0: no curve"
    )
    measured: PositiveInt = Field(2_000, description="pictures of each split that the figures are taken from, at most")

    @model_validator(mode="after")
    def _has_what_it_learns_by(self) -> Self:
        about = self.objective
        if isinstance(about, Supervised | Deit) and self.labels is None:
            others = "simmim or dino" if isinstance(about, Supervised) else "distill, which needs none"
            raise ValueError(f"objective {about.type} needs labels; set labels to a stream of text, or choose {others}")
        if isinstance(about, Coca) and about.classify and self.init is None and self.labels is None:
            raise ValueError(
                "coca's first phase classifies, and there are no labels; set labels to a stream of text, or init to an encoder that has "
                "learnt already, or objective.classify to 0"
            )
        if isinstance(about, Distill) and self.labels is None and about.alpha != Distill.model_fields["alpha"].default:
            raise ValueError(f"alpha ({about.alpha}) weighs the teacher against labels, and there are none; set labels, or leave out alpha")
        if isinstance(about, Coca | Dinov2) and self.batch_size < 2:
            raise ValueError(f"objective {about.type} compares pictures of a batch with each other; set batch_size to 2 or more")
        if isinstance(about, Supervised | Deit) and about.mixing is not None and self.batch_size < 2:
            raise ValueError("mixing pairs pictures of a batch with each other; set batch_size to 2 or more, or leave out objective.mixing")
        if isinstance(about, Coca) and about.classify and self.steps < 2:
            raise ValueError("coca trains twice, by classes and by captions, and steps is 1; set steps to 2 or more")
        if self.ema is not None and isinstance(about, Dino | Dinov2):
            raise ValueError(f"what {about.type} keeps is its teacher, an average already; leave out ema, and set objective.momentum")
        if self.labelled < 1 and not isinstance(about, Supervised):
            raise ValueError(f"labelled leaves pictures out of a supervised training, and the objective is {about.type}; leave it out")
        return self

    @model_validator(mode="after")
    def _has_an_encoder_for_it(self) -> Self:
        about, encoder = self.objective, self.encoder
        if self.init is not None:
            if encoder != FORM:
                raise ValueError("the encoder's form is that of init; leave out encoder, or init")
            return self
        if isinstance(about, SimMim) and isinstance(encoder, ConvSettings):
            raise ValueError("simmim hides patches from its encoder, and a conv encoder has none; set encoder.type to vit or swin")
        if isinstance(about, Deit | Dinov2) and not isinstance(encoder, VitSettings):
            raise ValueError(f"objective {about.type} needs an encoder of type vit, got {encoder.type}")
        if isinstance(about, Deit) and isinstance(encoder, VitSettings) and not encoder.class_token:
            raise ValueError("objective deit needs a class token; set encoder.class_token")
        return self

    @model_validator(mode="after")
    def _has_weights_for_its_stem(self) -> Self:
        stem = self.encoder.stem if isinstance(self.encoder, VitSettings) else None
        if self.encoder_stem is not None and self.init is not None:
            raise ValueError("all weights are those of init, its stem's among them; leave out encoder_stem, or init")
        if self.encoder_stem is not None and stem is None:
            raise ValueError("encoder_stem has weights for a stem, and the encoder has none; set encoder.stem, or leave out encoder_stem")
        if self.encoder_stem is None and stem is not None and stem.frozen:
            raise ValueError(
                "a frozen stem does not learn, so another stage must have trained it; name one of a conv encoder in encoder_stem, "
                "or leave out encoder.stem.frozen"
            )
        return self

    @property
    def phases(self) -> tuple["PretrainEncoder", ...]:
        """The settings of each training in turn: of coca classification comes first, otherwise there is one."""
        about = self.objective
        if not isinstance(about, Coca) or not about.classify or self.init is not None:
            return (self,)
        steps = min(max(1, round(about.classify * self.steps)), self.steps - 1)
        first = Supervised(smoothing=about.smoothing, crop_from=about.crop_from, flip=about.flip)
        return self.model_copy(update={"objective": first, "steps": steps}), self.model_copy(update={"steps": self.steps - steps})


def run(settings: PretrainEncoder, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Trains; rank 0 then writes the encoder, measures its features on pictures that training has not seen, and shows some."""
    from dataclasses import replace

    import torch

    from worldloom.stages.dataset import Dataset
    from worldloom.stages.encoder_figures import report_encoder
    from worldloom.stages.encoder_learner import EncoderLearner
    from worldloom.stages.encoder_objectives import Lesson, first_encoder, learner_of
    from worldloom.stages.labels import read_labels
    from worldloom.stages.learner import resolve_precision
    from worldloom.stages.training import Before, train
    from worldloom.world_model.encoders.build import build_encoder

    if (out / "card.json").exists():
        return
    dataset = Dataset(inputs["data"])
    labels = read_labels(dataset, settings.labels, settings.label_by) if settings.labels is not None else None
    encoder, about = first_encoder(settings, inputs, dataset)
    precision = resolve_precision(settings.precision)
    before, learner = Before(total=settings.steps), None
    for phase in settings.phases:
        if learner is not None:
            # Not the same module again: DeepSpeed leaves its marks on it.
            encoder = build_encoder(about, torch.Generator())
            encoder.load_state_dict(learner.encoder.state_dict())
        recipe = recipe_of(phase, precision)
        learner = learner_of(Lesson(phase, inputs, dataset, labels, encoder, recipe, worker.world_size))
        # The teacher follows whole parameters, so a profile's ZeRO 3 stops at 2 here.
        gang = replace(worker, zero=min(worker.zero, 2))
        before = train(
            watched(settings, learner, dataset, labels), phase, batches_of(phase, dataset, labels, worker), out, gang, out.name, before
        )
    assert isinstance(learner, EncoderLearner)
    if worker.rank == 0:
        learner.save(out, about)
        report_encoder(settings, first_encoder(settings, inputs, dataset)[0], learner, dataset, labels, out, worker.threads)


def recipe_of(phase: PretrainEncoder, precision: "Precision") -> "Recipe":
    """What every objective takes from the settings."""
    from worldloom.stages.encoder_learner import Recipe

    rates = (phase.learning_rate, phase.betas, phase.weight_decay)
    return Recipe(phase.steps, phase.seed, *rates, precision, phase.layer_decay, phase.patch_rate, phase.ema, phase.last_weight_decay)


def finish(settings: PretrainEncoder, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """What there is, read back."""
    import json

    figures = json.loads((out / "figures.json").read_bytes())
    return {"parameters": int(figures[f"{settings.stream}.parameters"]), "steps": settings.steps}


def side_of(settings: PretrainEncoder, dataset: "Dataset") -> int:
    """Pixels along the side of a picture; ValueError where they are no squares."""
    stream = dataset.streams[settings.stream]
    assert isinstance(stream, ImageStream)
    if stream.height != stream.width:
        raise ValueError(
            f"encoders learn from squares, the pictures of {settings.stream!r} are {stream.height} x {stream.width}; crop them"
        )
    return stream.height


def encoder_of(settings: PretrainEncoder, dataset: "Dataset", form: "NetworkSettings") -> "NetworkSettings":
    """`form` with what follows from pictures and objective written out; ValueError where they do not go together."""
    from worldloom.world_model.encoders.patches import patch_grid

    side, about = side_of(settings, dataset), settings.objective
    changes: dict[str, Any] = {"channels": 3}
    if isinstance(about, SimMim | Dinov2):
        if isinstance(form, ConvSettings) or (isinstance(about, Dinov2) and not isinstance(form, VitSettings)):
            raise ValueError(f"objective {about.type} hides patches from its encoder, which {form.type} cannot; go on from a vit")
        changes["mask_token"] = True
    elif isinstance(about, Deit) and not isinstance(form, VitSettings):
        raise ValueError(f"objective deit needs an encoder of type vit, got {form.type}; go on from a vit")
    if isinstance(form, VitSettings):
        sides = {"pictures": side}
        if isinstance(about, Dino | Dinov2) and about.local_views:
            sides["local views"] = about.local_size or max(side // 2, 8)
        for what, length in sides.items():
            if length % form.patch and form.fitting == "error":
                way_out = "encoder.patch to a divisor" if what == "pictures" else "objective.local_size"
                raise ValueError(f"patches of {form.patch} pixels do not divide {what} of {length}; set {way_out}")
        grids = [patch_grid(length, length, form.patch, form.fitting) for length in sides.values()]
        changes |= {"grid": grids[0], "distillation_token": form.distillation_token or isinstance(about, Deit)}
    return form.model_copy(update=changes)


def watched(settings: PretrainEncoder, learner: "EncoderLearner", dataset: "Dataset", labels: "Labels | None") -> "Learner":
    """The learner, looked at every so many steps where there are labels and pictures that training does not see."""
    from worldloom.stages.encoder_figures import UNSEEN
    from worldloom.stages.encoder_watch import Watched
    from worldloom.stages.value_batches import Values

    queries = next((values for split in UNSEEN if len(values := Values(dataset, split, settings.stream))), None)
    if labels is None or queries is None or not settings.knn_every:
        return learner
    return Watched(learner, Values(dataset, "train", settings.stream), queries, labels, settings.knn_every)


def batches_of(settings: PretrainEncoder, dataset: "Dataset", labels: "Labels | None", worker: Worker) -> "PictureBatches":
    """The pictures that a training sees, with labels where it is taught by them."""
    from worldloom.stages.picture_batches import PictureBatches, share_of
    from worldloom.stages.value_batches import Values

    about, values = settings.objective, Values(dataset, "train", settings.stream)
    taught = labels.of["train"] if labels is not None and isinstance(about, Supervised | Distill | Deit) else None
    chosen = share_of(len(values), settings.labelled) if settings.labelled < 1 else None
    repeats = about.repeats if isinstance(about, Supervised | Deit) else 1
    return PictureBatches(values, settings.batch_size, settings.seed, worker, taught, chosen, repeats)


STAGE = StageKind(
    name="pretrain_encoder",
    settings=PretrainEncoder,
    run=run,
    finish=finish,
    produces="encoder",
    version=5,
    placement="gang",
)
