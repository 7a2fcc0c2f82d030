"""What each objective needs of the stage's settings and inputs to become a learner: one function an objective.

Wrong combinations that only the inputs show are refused here, before the training begins.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from worldloom.stages.artifact import Artifact
from worldloom.stages.coca_learner import CocaLearner, read_captions
from worldloom.stages.dataset import Dataset
from worldloom.stages.deit_learner import DeitLearner
from worldloom.stages.dinov2_learner import Dinov2Learner
from worldloom.stages.distill_learner import DistillLearner, FeatureLearner
from worldloom.stages.encoder_learner import DinoLearner, EncoderLearner, Recipe, SimMimLearner, SupervisedLearner
from worldloom.stages.encoder_settings import Coca, Deit, Dino, Dinov2, Distill, SimMim, Supervised
from worldloom.stages.labels import Labels
from worldloom.stages.open_encoder import open_encoder, open_namer
from worldloom.stages.open_tokenizer import open_tokenizer
from worldloom.stages.pretrain_encoder import PretrainEncoder, encoder_of, side_of
from worldloom.stages.value_batches import Values
from worldloom.tokenizers.text import TextTokenizer
from worldloom.world_model.encoders.build import Network, NetworkSettings, build_encoder
from worldloom.world_model.encoders.continued import begin_stem, continue_from
from worldloom.world_model.encoders.convnet import ConvNet
from worldloom.world_model.encoders.settings import VitSettings
from worldloom.world_model.encoders.vit import ViT


class Lesson(NamedTuple):
    """What there is to learn from and with."""

    settings: PretrainEncoder
    inputs: Mapping[str, Artifact]
    dataset: Dataset
    labels: Labels | None
    encoder: Network
    recipe: Recipe
    workers: int

    @property
    def side(self) -> int:
        """Pixels along the side of a picture."""
        return side_of(self.settings, self.dataset)

    @property
    def classes(self) -> tuple[str, ...]:
        assert self.labels is not None
        return self.labels.classes


def first_encoder(settings: PretrainEncoder, inputs: Mapping[str, Artifact], dataset: Dataset) -> tuple[Network, NetworkSettings]:
    """The encoder that training begins with, and what it is: drawn by the seed, or with the weights of `init`, or its stem with
    those of `encoder_stem`."""
    generator = torch.Generator().manual_seed(settings.seed)
    if settings.init is None:
        about = encoder_of(settings, dataset, settings.encoder)
        drawn = build_encoder(about, generator)
        if settings.encoder_stem is not None:
            assert isinstance(drawn, ViT) and isinstance(about, VitSettings) and about.stem is not None, "settings see to it"
            stem = open_encoder(inputs["encoder_stem"].folder)
            begin_stem(drawn, about.stem, *stem, f"encoder_stem ({settings.encoder_stem})")
        return drawn, about
    before, form = open_encoder(inputs["init"].folder)
    about = encoder_of(settings, dataset, form)
    encoder = build_encoder(about, generator)
    continue_from(encoder, before, f"init ({settings.init})")
    return encoder, about


def learner_of(lesson: Lesson) -> EncoderLearner:
    """The learner of the objective's type."""
    return LEARNERS[type(lesson.settings.objective)](lesson)


def _supervised(lesson: Lesson) -> EncoderLearner:
    about = lesson.settings.objective
    assert isinstance(about, Supervised)
    return SupervisedLearner(lesson.encoder, about, lesson.classes, lesson.side, lesson.recipe)


def _simmim(lesson: Lesson) -> EncoderLearner:
    about = lesson.settings.objective
    assert isinstance(about, SimMim) and not isinstance(lesson.encoder, ConvNet)
    return SimMimLearner(lesson.encoder, about, lesson.side, lesson.recipe)


def _dino(lesson: Lesson) -> EncoderLearner:
    about = lesson.settings.objective
    assert isinstance(about, Dino)
    _can_be_spread(about, lesson)
    return DinoLearner(lesson.encoder, about, lesson.side, lesson.recipe)


def _dinov2(lesson: Lesson) -> EncoderLearner:
    about, batch_size = lesson.settings.objective, lesson.settings.batch_size
    assert isinstance(about, Dinov2) and isinstance(lesson.encoder, ViT)
    _can_be_spread(about, lesson)
    return Dinov2Learner(lesson.encoder, about, lesson.side, batch_size, lesson.recipe)


def _can_be_spread(about: Dino | Dinov2, lesson: Lesson) -> None:
    if about.koleo and lesson.settings.batch_size // lesson.workers < 2:
        raise ValueError(
            f"koleo needs two pictures on each worker at least, batch_size is {lesson.settings.batch_size} for {lesson.workers} workers; "
            "enlarge it or set objective.koleo to 0"
        )


def _distill(lesson: Lesson) -> EncoderLearner:
    about, folder = lesson.settings.objective, lesson.inputs["objective.teacher"].folder
    assert isinstance(about, Distill)
    if about.form in ("features", "tokens"):
        return FeatureLearner(lesson.encoder, about, open_encoder(folder)[0], lesson.side, lesson.recipe)
    classes = lesson.classes if lesson.labels is not None else None
    values = Values(lesson.dataset, "train", lesson.settings.stream)
    return DistillLearner(lesson.encoder, about, open_namer(folder), classes, values, lesson.side, lesson.recipe)


def _deit(lesson: Lesson) -> EncoderLearner:
    about = lesson.settings.objective
    assert isinstance(about, Deit) and isinstance(lesson.encoder, ViT)
    teacher = open_namer(lesson.inputs["objective.teacher"].folder)
    return DeitLearner(lesson.encoder, about, teacher, lesson.classes, lesson.side, lesson.recipe)


def _coca(lesson: Lesson) -> EncoderLearner:
    about = lesson.settings.objective
    assert isinstance(about, Coca)
    tokenizer = open_tokenizer(lesson.inputs["objective.tokenizer"].folder / "tokenizer")
    if not isinstance(tokenizer, TextTokenizer):
        raise ValueError(f"objective.tokenizer ({about.tokenizer}) is of kind {tokenizer.kind}; name a stage that trains a text tokenizer")
    captions = read_captions(lesson.dataset, about.captions, tokenizer, about.text.length)
    return CocaLearner(lesson.encoder, about, tokenizer, captions, lesson.side, lesson.recipe)


LEARNERS: dict[type, Callable[[Lesson], EncoderLearner]] = {
    Supervised: _supervised,
    SimMim: _simmim,
    Dino: _dino,
    Dinov2: _dinov2,
    Distill: _distill,
    Deit: _deit,
    Coca: _coca,
}
