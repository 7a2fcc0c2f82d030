from typing import Any

import numpy as np
import pytest
import torch

from bench.taming_reference import TamingModel
from bench.taming_training import Discriminator, TamingTraining
from worldloom.stages.tokenizer_learner import DvaeLearner, VqGanLearner, VqVaeLearner, learner_of
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.value_batches import ValueBatches
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.image_settings import Dvae, VqGan, VqVae
from worldloom.tokenizers.quantizers.gumbel_quantizer import GumbelQuantizer
from worldloom.tokenizers.quantizers.settings import Ema
from worldloom.tokenizers.taming import architecture, key_table, put_weights


class Even(ValueBatches):
    """Stands in for batches of which only the variance is asked."""

    def __init__(self) -> None:
        pass

    def some(self, most: int) -> np.ndarray:
        return np.array([0.0, 255.0])


SMALL: dict[str, Any] = {"codebook_size": 13, "downsample": 4, "width": 4, "blocks": 1}
RANDOM = Ema(code_width=3, place_after=-1)


def untrained(settings: VqGan | VqVae | Dvae) -> ImageTokenizer:
    return ImageTokenizer.build(settings, {"height": 16, "width": 16}, seed=0)


def pictures(count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def vqgan(**changes: object) -> VqGanLearner:
    settings = VqGan(
        **{
            **SMALL,
            "quantizer": RANDOM,
            "discriminator_width": 4,
            "adversarial_from": 0.5,
            "adversarial_ramp": 0.2,
            "adversarial_weight": 0.8,
            **changes,
        }
    )
    return VqGanLearner(untrained(settings), settings, 10, 1e-3, (0.9, 0.95), 0.0, 0, "fp32")


def gradients(module: torch.nn.Module) -> list[bool]:
    return [parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in module.parameters()]


def test_the_discriminator_joins_at_its_step_and_not_before() -> None:
    learner = vqgan()
    names = [[turn.player for turn in learner.turns(pictures(), step)] for step in range(7)]
    assert names == [["generator"]] * 5 + [["generator", "discriminator"]] * 2
    gates = [
        turn.metrics.get("adversarial_gate") for step in (4, 5, 6) for turn in learner.turns(pictures(), step) if turn.player == "generator"
    ]
    assert gates == [None, 0.5, 1.0]


def test_the_gate_weighs_both_sides_of_the_game() -> None:
    half, whole = ([turn.losses for turn in vqgan(adversarial_ramp=ramp).turns(pictures(), 5)] for ramp in (0.2, 0.0))
    assert half[0]["adversarial"].item() == pytest.approx(whole[0]["adversarial"].item() / 2, rel=1e-5)
    assert half[1]["discriminator"].item() == pytest.approx(whole[1]["discriminator"].item() / 2, rel=1e-5)
    assert half[0]["l1"].item() == whole[0]["l1"].item()


def test_each_turn_moves_its_own_player() -> None:
    learner = vqgan()
    assert learner.discriminator is not None
    # With both hinges open the last bias has a gradient of 0 but for rounding; this closes the one for real pictures.
    with torch.no_grad():
        learner.discriminator.stages[-1].bias.fill_(3.0)
    turns = learner.turns(pictures(), 9)
    sum(next(turns).losses.values(), torch.zeros(())).backward()
    assert any(gradients(learner.autoencoder)) and not any(gradients(learner.discriminator))
    learner.autoencoder.zero_grad(set_to_none=True)
    sum(next(turns).losses.values(), torch.zeros(())).backward()
    assert all(gradients(learner.discriminator)) and not any(gradients(learner.autoencoder))
    assert next(turns, None) is None


def test_the_generators_loss_is_what_the_paper_adds_up() -> None:
    learner = vqgan(adversarial_ramp=0.0)
    turn = next(learner.turns(pictures(), 8))
    weight = turn.metrics["adversarial_weight"]
    assert float(weight) == pytest.approx(0.8 * float(turn.metrics["gradient_ratio"]))
    assert set(turn.losses) == {"l1", "random_vgg", "codebook", "adversarial"}
    assert isinstance(weight, torch.Tensor) and not weight.requires_grad and weight > 0
    last = learner.autoencoder.last_weight
    nll = torch.autograd.grad(turn.losses["l1"] + turn.losses["random_vgg"], last, retain_graph=True)[0].norm()
    adversarial = torch.autograd.grad(turn.losses["adversarial"], last, retain_graph=True)[0].norm()
    assert (adversarial / nll).item() == pytest.approx(0.8, rel=1e-2)  # equal gradients, times the weight of 0.8


def test_a_step_has_the_losses_and_gradients_of_tamings_scheme() -> None:
    """Which differentiates through everything as often as a loss asks for it; ours does so once."""
    torch.manual_seed(0)
    network = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn": (False, True), "z_channels": 24, "embed_dim": 16, "n_embed": 50}
    model, judge = TamingModel(**network), Discriminator(width=8, layers=2)
    about = architecture(model.state_dict())
    tokenizer = ImageTokenizer.build(about, {"height": 16, "width": 16}, seed=0)
    put_weights(tokenizer.autoencoder, about, model.state_dict())
    settings = VqGan(adversarial_weight=0.8, adversarial_from=0.0, adversarial_ramp=0.0, discriminator_width=8)
    learner = VqGanLearner(tokenizer, settings, 10, 1e-3, (0.5, 0.9), 0.0, 0, "fp32")
    assert learner.discriminator is not None and learner.perceptual is not None
    for parameter, other in zip(learner.discriminator.parameters(), judge.parameters(), strict=True):
        parameter.data.copy_(other.data)
    plain = TamingTraining(model, learner.perceptual, judge)
    x = torch.from_numpy(pictures()).permute(0, 3, 1, 2) / 127.5 - 1
    expected = [plain.generator_loss(x), plain.discriminator_loss(x)]
    for turn, loss, module, other in zip(
        learner.turns(pictures(), 5), expected, (tokenizer.autoencoder, learner.discriminator), (model, judge), strict=True
    ):
        total = sum(turn.losses.values(), torch.zeros(()))
        assert total.item() == pytest.approx(loss.item(), rel=1e-5)
        total.backward()
        other.zero_grad()
        loss.backward()
        theirs = dict(other.named_parameters())
        order = iter(theirs)
        for name, parameter in module.named_parameters():
            wanted = theirs[key_table(about)[name] if other is model else next(order)].grad
            assert parameter.grad is not None and wanted is not None
            # A bias before a norm has no gradient but rounding.
            assert torch.allclose(parameter.grad, wanted, atol=1e-5 * wanted.abs().max().item() + 1e-6, rtol=0), name


def test_without_adversarial_weight_there_is_one_player() -> None:
    assert [player.name for player in vqgan(adversarial_weight=0.0).players] == ["generator"]
    assert [player.name for player in vqgan(adversarial_from=1.0).players] == ["generator"]


@pytest.mark.parametrize("tokenizer", [VqGan(**SMALL), VqVae(**SMALL), Dvae(**SMALL)], ids=lambda tokenizer: tokenizer.type)
def test_weight_decay_reaches_the_autoencoder_of_every_type(tokenizer: VqGan | VqVae | Dvae) -> None:
    settings = TrainTokenizer(run="train_tokenizer", data="data", stream="view", tokenizer=tokenizer, weight_decay=0.25)
    learner = learner_of(settings, untrained(tokenizer), Even())
    assert [player.weight_decay for player in learner.players if player.name == "generator"] == [0.25]


def test_the_dvaes_schedules_are_set_for_the_step() -> None:
    settings = Dvae(**SMALL, code_width=3, kl_rise=0.5, temperature_fall=0.5, temperature=0.25)
    learner = DvaeLearner(untrained(settings), settings, 1.0, 40, 1e-3, (0.9, 0.95), 0.0, "fp32")
    quantizer, found = learner.autoencoder.quantizer, {}
    assert isinstance(quantizer, GumbelQuantizer)
    for step in (0, 10, 20, 39):
        (turn,) = learner.turns(pictures(), step)
        found[step] = (quantizer.temperature, turn.metrics["temperature"], quantizer.kl_weight)
    highest = 6.6 / (3 * 4 * 4)  # summed over codes, divided by the values of the cells of 4 x 4 pixels
    assert found[0] == (1.0, 1.0, 0.0)
    assert found[10] == pytest.approx((0.625, 0.625, highest / 2))
    assert found[20] == found[39] == pytest.approx((0.25, 0.25, highest))


def test_pictures_too_small_for_the_discriminator_are_refused() -> None:
    with pytest.raises(ValueError, match="layers needs pictures of at least 48 pixels, these have 16"):
        vqgan(discriminator_layers=4)


def test_every_type_learns_a_picture_by_heart() -> None:
    vae, gumbel = VqVae(**SMALL, quantizer=Ema(code_width=3, place_after=5)), Dvae(**SMALL, code_width=3, kl_weight=0.0)
    learners = (
        vqgan(adversarial_weight=0.0),
        VqVaeLearner(untrained(vae), vae, 0.3, 1e-3, (0.9, 0.95), 0.0, "fp32"),
        DvaeLearner(untrained(gumbel), gumbel, 1.0, 40, 1e-3, (0.9, 0.95), 0.0, "fp32"),
    )
    batch = np.repeat(pictures(1) // 2 * 0 + np.array([200, 40, 90], np.uint8), 4, axis=0)
    for learner in learners:
        optimizer = torch.optim.AdamW(learner.autoencoder.parameters(), lr=1e-2)
        losses = []
        for step in range(40):
            (turn,) = learner.turns(batch, step)
            loss = sum(turn.losses.values(), torch.zeros(()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.3 * abs(losses[0]), type(learner).__name__


def test_bfloat16_is_for_the_networks_and_not_for_codes_and_losses() -> None:
    settings = VqGan(**SMALL, quantizer=RANDOM, adversarial_from=0.0, discriminator_width=4)
    learner = VqGanLearner(untrained(settings), settings, 10, 1e-3, (0.9, 0.95), 0.0, 0, "bf16")
    for turn in learner.turns(pictures(), 5):
        assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in turn.losses.values())
    assert all(value.dtype in (torch.float32, torch.int64) for value in learner.autoencoder.state_dict().values())


def test_a_dvae_with_squared_errors_says_pictures_as_they_are_and_has_a_weight_of_its_own() -> None:
    settings = Dvae(**SMALL, code_width=3, reconstruction="l2")
    tokenizer = untrained(settings)
    about = TrainTokenizer(run="train_tokenizer", data="data", stream="view", tokenizer=settings, steps=40, precision="fp32")
    learner = learner_of(about, tokenizer, Even())
    assert isinstance(learner, DvaeLearner) and learner.variance == pytest.approx(1.0, abs=0.01)
    turn = next(learner.turns(pictures(), 39))
    x = tokenizer.to_network(torch.from_numpy(pictures()))
    tokenizer.autoencoder.quantizer.statistics.updates.zero_()  # the noise of the codes follows from the number of the update
    expected = (tokenizer.autoencoder(x).output - x).square().mean() / learner.variance
    assert set(turn.losses) == {"reconstruction", "kl"} and turn.losses["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert x.min() < -0.9 and tokenizer.autoencoder(x).output.shape[1] == 3
    weights = [made.last_kl_weight for made in (settings, Dvae(**SMALL), Dvae(**SMALL, reconstruction="l2", kl_weight=0.0))]
    assert weights == [0.1, 6.6, 0.0] and settings.resolved(10).kl_weight == 0.1


def test_lecam_stands_beside_the_hinge_and_its_averages_are_state() -> None:
    learner = vqgan(lecam_weight=0.5, adversarial_ramp=0.0)
    assert learner.lecam is not None
    turn = list(learner.turns(pictures(), 9))[1]
    real, fake = turn.metrics["logit_real"], turn.metrics["logit_fake"]
    assert learner.state() == {"lecam": {"real": pytest.approx(float(real)), "fake": pytest.approx(float(fake))}}
    assert set(turn.losses) == {"discriminator", "lecam"} and turn.losses["lecam"] > 0
    other = vqgan(lecam_weight=0.5)
    other.load_state(learner.state())
    assert other.state() == learner.state() and vqgan().state() == {}
    with pytest.raises(ValueError, match=r"lecam_weight \(0\.5\) .* an adversarial_from of 1 never joins; set adversarial_from below"):
        vqgan(lecam_weight=0.5, adversarial_from=1.0)
    with pytest.raises(ValueError, match="lecam_weight regularises the discriminator"):
        vqgan(lecam_weight=0.5, adversarial_weight=0.0)
