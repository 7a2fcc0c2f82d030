"""DeiT against transformers' class and closed forms, and the three ways to predict."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.deit import DeiT, DeitLogits, combine, deit_loss, deit_soft_loss, smoothed
from worldloom.world_model.encoders.settings import VitSettings
from worldloom.world_model.encoders.transformers_layout import load_transformers
from worldloom.world_model.encoders.vit import ViT


def some(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_transformers_gives_the_same_logits_of_both_heads_and_their_mean(tmp_path) -> None:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    config = DeiTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=12, patch_size=4, num_labels=5
    )
    theirs = DeiTForImageClassificationWithTeacher(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    theirs.save_pretrained(tmp_path)
    encoder, _ = load_transformers(tmp_path)
    assert isinstance(encoder, ViT)
    ours = DeiT(encoder, 5)
    ours.head.load_state_dict(theirs.cls_classifier.state_dict())
    ours.distillation_head.load_state_dict(theirs.distillation_classifier.state_dict())
    x = some(3, 2, 3, 12, 12)
    with torch.no_grad():
        found, expected = ours(x), theirs(x)
    torch.testing.assert_close(found.classes, expected.cls_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.distilled, expected.distillation_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(combine(found, "mean"), expected.logits, rtol=0, atol=1e-5)


def test_smoothed_targets_sum_to_one_and_are_torchs_with_another_epsilon() -> None:
    labels, logits, K, eps = torch.tensor([2, 0, 4]), some(0, 3, 5), 5, 0.2
    target = smoothed(labels, K, eps)
    torch.testing.assert_close(target.sum(1), torch.ones(3))
    assert target[0].tolist() == pytest.approx([0.05, 0.05, 0.8, 0.05, 0.05])
    theirs = F.cross_entropy(logits, labels, label_smoothing=eps * K / (K - 1))
    torch.testing.assert_close(F.cross_entropy(logits, target), theirs, rtol=0, atol=1e-6)
    over_all = F.cross_entropy(logits, smoothed(labels, K, eps, "all"))
    torch.testing.assert_close(over_all, F.cross_entropy(logits, labels, label_smoothing=eps), rtol=0, atol=1e-6)


def test_the_default_loss_is_the_mean_of_both_and_without_smoothing_the_papers() -> None:
    logits, labels, teacher = DeitLogits(some(0, 3, 5), some(1, 3, 5)), torch.tensor([2, 0, 4]), some(2, 3, 5)
    logs = [np.log(np.exp(x.double().numpy()) / np.exp(x.double().numpy()).sum(1, keepdims=True)) for x in logits]
    hard = teacher.numpy().argmax(1)
    target = np.full((3, 5), 0.1 / 4)
    target[range(3), hard] = 0.9
    expected = (-logs[0][range(3), labels].mean() - (target * logs[1]).sum(1).mean()) / 2
    assert float(deit_loss(logits, labels, teacher)) == pytest.approx(expected, abs=1e-6)
    paper = (-logs[0][range(3), labels].mean() - logs[1][range(3), hard].mean()) / 2
    assert float(deit_loss(logits, labels, teacher, epsilon=0)) == pytest.approx(paper, abs=1e-6)
    mixed = F.one_hot(labels, 5).float()
    torch.testing.assert_close(deit_loss(logits, mixed, teacher), deit_loss(logits, labels, teacher))


def test_labels_that_are_smoothed_leave_the_teachers_part_alone() -> None:
    logits, labels, teacher = DeitLogits(some(0, 3, 5), some(1, 3, 5)), torch.tensor([2, 0, 4]), some(2, 3, 5)
    target = torch.full((3, 5), 0.2 / 5).scatter_add(1, labels[:, None], torch.full((3, 1), 0.8))
    more = float(-(target * logits.classes.log_softmax(1)).sum(1).mean() - F.cross_entropy(logits.classes, labels))
    for given in (labels, F.one_hot(labels, 5).float()):
        found = deit_loss(logits, given, teacher, label_smoothing=0.2) - deit_loss(logits, given, teacher)
        assert float(found) == pytest.approx(more / 2, abs=1e-6)
        soft = deit_soft_loss(logits, given, teacher, label_smoothing=0.2) - deit_soft_loss(logits, given, teacher)
        assert float(soft) == pytest.approx(0.9 * more, abs=1e-6)


def test_the_soft_loss_is_that_of_the_paper_and_the_code_divides_by_all_numbers() -> None:
    logits, labels, teacher = DeitLogits(some(0, 3, 5), some(1, 3, 5)), torch.tensor([2, 0, 4]), some(2, 3, 5)
    p, log_q = (teacher / 3).double().softmax(1), (logits.distilled / 3).double().log_softmax(1)
    kl = float((p * (p.log() - log_q)).sum())
    cross = float(F.cross_entropy(logits.classes, labels))
    assert float(deit_soft_loss(logits, labels, teacher)) == pytest.approx(0.9 * cross + 0.1 * 9 * kl / 3, abs=1e-6)
    assert float(deit_soft_loss(logits, labels, teacher, reduction="numbers")) == pytest.approx(0.9 * cross + 0.1 * 9 * kl / 15, abs=1e-6)


def test_late_fusion_is_another_classifier_than_the_sum() -> None:
    logits = DeitLogits(torch.tensor([[4.0, 3.9, -9.0]]), torch.tensor([[-9.0, 0.0, 2.0]]))
    total, mean, fused = (combine(logits, mode) for mode in ("sum", "mean", "softmaxes"))
    assert total.argmax() == mean.argmax() == 1 and fused.argmax() == 2
    torch.testing.assert_close(mean.softmax(1), (total / 2).softmax(1))
    torch.testing.assert_close(fused.exp(), (logits.classes.softmax(1) + logits.distilled.softmax(1)) / 2)


def test_an_encoder_without_a_distillation_token_is_refused_and_heads_start_at_zero() -> None:
    about = VitSettings(width=24, depth=1, heads=3, patch=4, grid=(3, 3))
    with pytest.raises(ValueError, match="needs a class token and a distillation token"):
        DeiT(build_encoder(about, torch.Generator()), 5)  # type: ignore[arg-type]
    fresh = DeiT(build_encoder(about.model_copy(update={"distillation_token": True}), torch.Generator()), 5)  # type: ignore[arg-type]
    assert not any(each.any() for each in fresh(some(3, 2, 3, 12, 12)))
