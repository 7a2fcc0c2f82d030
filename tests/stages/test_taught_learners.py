"""What supervised and DeiT learn from: pictures that are operated on, erased and mixed, the teacher's eyes on the same ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldloom.stages import distill_learner
from worldloom.stages.deit_learner import DeitLearner
from worldloom.stages.distill_learner import DistillLearner
from worldloom.stages.encoder_learner import EncoderLearner, Recipe, SupervisedLearner
from worldloom.stages.encoder_settings import Deit, Distill, Mixing, RandAugment, Supervised
from worldloom.stages.mixing import mix
from worldloom.stages.picture_batches import Pictures
from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.classifier import Classifier
from worldloom.world_model.encoders.deit import deit_loss, deit_soft_loss
from worldloom.world_model.encoders.joined import Namer
from worldloom.world_model.encoders.ranks import sum_over_ranks
from worldloom.world_model.encoders.settings import ConvSettings, VitSettings

B, CLASSES = 4, ("a", "b", "c")
STRONG: dict[str, Any] = {"randaugment": RandAugment(), "erase": 0.5, "mixing": Mixing(each="picture")}


def recipe() -> Recipe:
    return Recipe(5, 3, 1e-3, (0.9, 0.95), 0.0, "fp32")


def encoder(distillation_token: bool = False) -> Any:
    about = VitSettings(patch=4, width=16, depth=1, heads=2, grid=(4, 4), distillation_token=distillation_token)
    return build_encoder(about, torch.Generator().manual_seed(0))


def teacher() -> Namer:
    model = Classifier(build_encoder(ConvSettings(width=8, depths=(1,)), torch.Generator().manual_seed(1)), len(CLASSES))
    torch.nn.init.normal_(model.head.weight, std=1.0, generator=torch.Generator().manual_seed(2))
    return Namer(model, CLASSES, "sum")


def told_apart(learner: Any) -> Any:
    """With heads that are not zero any more."""
    for name, parameter in learner.module.named_parameters():
        if "head" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    return learner


def supervised(**changes: Any) -> SupervisedLearner:
    found: SupervisedLearner = told_apart(SupervisedLearner(encoder(), Supervised(**changes), CLASSES, 16, recipe()))
    return found


def deit(**changes: Any) -> DeitLearner:
    found: DeitLearner = told_apart(DeitLearner(encoder(True), Deit(teacher="t", **changes), teacher(), CLASSES, 16, recipe()))
    return found


def batch_of(mine: Any) -> Pictures:
    values = np.random.default_rng(0).integers(0, 256, (B, 16, 16, 3), dtype=np.uint8)
    return Pictures(values[mine], mine * 0, mine, np.array([0, 2, 1, 1])[mine], mine * 0, mine)


BATCH = batch_of(np.arange(B))


def test_supervised_learns_from_mixed_labels_smoothed_once() -> None:
    learner = supervised(**STRONG, smoothing=0.2)
    turn = next(learner.turns(BATCH, 2))
    (x,) = learner.recipe.views(BATCH, (learner.view,), torch.device("cpu"))
    assert BATCH.labels is not None
    given = mix(STRONG["mixing"], x, torch.from_numpy(BATCH.labels), 3, 3, 2, BATCH.place)
    target = 0.8 * given.target + 0.2 / 3
    logits = learner.classifier(given.pixels)
    torch.testing.assert_close(turn.losses["labels"], -(target * logits.log_softmax(1)).sum(1).mean())
    assert float(turn.metrics["accuracy"]) == float((logits.argmax(1) == given.first).float().mean())  # type: ignore[arg-type]


def test_nothing_is_mixed_where_nobody_asks_for_it() -> None:
    learner = supervised()
    (x,) = learner.recipe.views(BATCH, (learner.view,), torch.device("cpu"))
    assert BATCH.labels is not None
    expected = F.cross_entropy(learner.classifier(x), torch.from_numpy(BATCH.labels), label_smoothing=0.1)
    assert torch.equal(next(learner.turns(BATCH, 0)).losses["labels"], expected)


@pytest.mark.parametrize("changes", [{"randaugment": RandAugment(share=1.0)}, {"erase": 1.0}])
def test_what_pictures_go_through_is_in_the_view(changes: dict[str, Any]) -> None:
    plain, strong = supervised(), supervised(**changes)
    views = [each.recipe.views(BATCH, (each.view,), torch.device("cpu"))[0] for each in (plain, strong)]
    assert not torch.allclose(*views, atol=0.01)


def test_the_teacher_sees_the_mixed_pictures() -> None:
    learner = deit(**STRONG, label_smoothing=0.1)
    seen: list[Tensor] = []
    learner.teacher.model.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    turn = next(learner.turns(BATCH, 2))
    given = learner.recipe.lesson(BATCH, learner.view, STRONG["mixing"], 3, 2, torch.device("cpu"))
    assert len(seen) == 1 and torch.equal(seen[0], given.pixels)
    with torch.no_grad():
        told = learner.teacher.logits(given.pixels)
    expected = deit_loss(learner.deit(given.pixels), given.target, told, label_smoothing=0.1)
    torch.testing.assert_close(turn.losses["deit"], expected)


def test_the_reduction_of_the_official_code_is_a_choice() -> None:
    losses = {}
    for reduction in ("batch", "numbers"):
        learner = deit(form="soft", alpha=0.5, reduction=reduction)
        losses[reduction] = float(next(learner.turns(BATCH, 0)).losses["deit"].detach())
        (x,) = learner.recipe.views(BATCH, (learner.view,), torch.device("cpu"))
        with torch.no_grad():
            told, said = learner.teacher.logits(x), learner.deit(x)
        assert BATCH.labels is not None
        expected = deit_soft_loss(said, torch.from_numpy(BATCH.labels), told, 0.5, 3.0, reduction)  # type: ignore[arg-type]
        assert losses[reduction] == pytest.approx(float(expected), rel=1e-6)
    assert losses["batch"] != pytest.approx(losses["numbers"], rel=1e-3)


class Held:
    """The pictures of a batch as those of a split in which others lie between them."""

    samples = np.array([2, 3, 5, 9])

    def __len__(self) -> int:
        return B

    def __getitem__(self, index: Any) -> Any:
        return BATCH.values[index]


def distilled(keep: int | None) -> DistillLearner:
    about = Distill(teacher="t", crop_from=1.0, flip=0.0, keep=keep)
    found: DistillLearner = told_apart(DistillLearner(encoder(), about, teacher(), CLASSES, Held(), 16, recipe()))  # type: ignore[arg-type]
    return found


def test_a_teacher_whose_answers_are_kept_is_asked_once_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill_learner, "AT_ONCE", 3)
    batch = BATCH._replace(sample=Held.samples[[3, 0, 2, 1]], values=BATCH.values[[3, 0, 2, 1]])
    seen: list[int] = []
    turns = {}
    for keep in (None, 3, 1):
        learner = distilled(keep)
        learner.teacher.model.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
        for _ in range(2):
            turns[keep] = next(learner.turns(batch, 0))
        asked, seen[:] = sum(seen), []
        assert asked == (2 * B if keep is None else B)
    for what in ("losses", "metrics"):
        for name, value in getattr(turns[None], what).items():
            torch.testing.assert_close(getattr(turns[3], what)[name], value, rtol=1e-5, atol=1e-6)
    assert 0 < float(turns[1].losses["teacher"].detach()) < float(turns[3].losses["teacher"].detach())  # two classes are one tail


def results(rank: int, ranks: int) -> dict[str, Tensor]:
    batch, found = batch_of(np.array_split(np.arange(B), ranks)[rank]), {}
    learners: dict[str, EncoderLearner] = {
        "supervised": supervised(**STRONG),
        "deit": deit(**STRONG),
        "cut": supervised(mixing=Mixing(mixup=0)),
    }
    for name, learner in learners.items():
        for turn in learner.turns(batch, 1):
            loss = sum(turn.losses.values(), start=torch.zeros(()))
            loss.backward()  # type: ignore[no-untyped-call]
            found[f"{name} loss"] = sum_over_ranks(loss) / ranks
        for each, parameter in learner.module.named_parameters():
            assert parameter.grad is not None
            found[f"{name} {each}"] = sum_over_ranks(parameter.grad) / ranks
    return found


def test_two_ranks_equal_one(of_two_ranks: Callable[..., list[dict[str, Tensor]]]) -> None:
    alone = results(0, 1)
    for together in of_two_ranks(results):
        assert together.keys() == alone.keys() and len(alone) > 30
        for name, value in alone.items():
            near = 1e-5 * max(1.0, float(value.abs().max()))
            torch.testing.assert_close(together[name], value, rtol=1e-5, atol=near, msg=lambda text, name=name: f"{name}: {text}")
