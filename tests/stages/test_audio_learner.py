"""What trains tokenizers of sounds: who moves whom, and when the discriminator joins."""

from typing import Any

import numpy as np
import pytest
import torch

from worldloom.stages.audio_learner import CodecLearner, MelLearner, audio_learner
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.value_batches import ValueBatches
from worldloom.tokenizers.audio import AudioTokenizer
from worldloom.tokenizers.audio_settings import Codec, Mel
from worldloom.tokenizers.mel_picture import MelTokenizer
from worldloom.tokenizers.quantizers.settings import Ema, Residual

FORM = {"channels": 1, "samples": 300, "sample_rate": 8_000}
SMALL: dict[str, Any] = {"codebook_size": 7, "downsample": 16, "patch": 4, "width": 4, "blocks": 1}
BOOK: dict[str, Any] = {"code_width": 3, "place_after": -1}


class Loud(ValueBatches):
    """Stands in for batches of which only some values are asked."""

    def __init__(self, amplitude: float) -> None:
        self.amplitude = amplitude

    def some(self, most: int) -> np.ndarray:
        return np.array([self.amplitude, -self.amplitude], np.float32)


def sounds(count: int = 3) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(count, 1, 300)) * 0.1).astype(np.float32)


def codec(precision: Any = "fp32", **changes: Any) -> CodecLearner:
    about = {"adversarial_weight": 3.0, "adversarial_from": 0.5, "adversarial_ramp": 0.2, "discriminator_width": 3, **changes}
    settings = Codec(**SMALL, quantizer=Residual(levels=2, **BOOK), loudness=0.1, **about)
    return CodecLearner(AudioTokenizer.build(settings, FORM, seed=0), 10, 1e-3, (0.9, 0.95), 0.0, 0, precision)


def gradients(module: torch.nn.Module) -> bool:
    return any(parameter.grad is not None and float(parameter.grad.abs().sum()) > 0 for parameter in module.parameters())


def test_the_discriminator_joins_at_its_step_and_its_weight_grows() -> None:
    learner = codec()
    turns = {step: list(learner.turns(sounds(), step)) for step in (4, 5, 6)}
    assert [[turn.player for turn in turns[step]] for step in (4, 5, 6)] == [["generator"]] + [["generator", "discriminator"]] * 2
    assert set(turns[4][0].losses) == {"waveform", "energy", "mel", "codebook"}
    assert [float(turns[step][0].metrics["adversarial_gate"]) for step in (5, 6)] == [0.5, 1.0]
    half, whole = (next(codec(adversarial_ramp=ramp).turns(sounds(), 5)).losses for ramp in (0.2, 0.0))
    for name in ("adversarial", "features"):
        assert half[name].item() == pytest.approx(whole[name].item() / 2, rel=1e-4)
    assert half["mel"].item() == whole["mel"].item()


def test_each_turn_moves_its_own_player() -> None:
    learner = codec()
    assert learner.discriminator is not None
    turns = learner.turns(sounds(), 9)
    torch.stack(list(next(turns).losses.values())).sum().backward()
    assert gradients(learner.tokenizer.autoencoder) and not gradients(learner.discriminator)
    learner.tokenizer.autoencoder.zero_grad(set_to_none=True)
    torch.stack(list(next(turns).losses.values())).sum().backward()
    assert gradients(learner.discriminator) and not gradients(learner.tokenizer.autoencoder)
    assert next(turns, None) is None


def test_adversarial_losses_pull_by_their_weight_times_the_waveforms_gradient() -> None:
    learner = codec(feature_weight=2.0, adversarial_ramp=0.0)
    losses = next(learner.turns(sounds(), 9)).losses
    last = learner.tokenizer.autoencoder.last_weight

    def pull(loss: torch.Tensor) -> float:
        return torch.autograd.grad(loss, last, retain_graph=True)[0].norm().item()

    own = pull(losses["waveform"] + losses["energy"] + losses["mel"])
    assert pull(losses["adversarial"]) / own == pytest.approx(3.0, rel=1e-2)
    assert pull(losses["features"]) / own == pytest.approx(2.0, rel=1e-2)


@pytest.mark.parametrize("changes", [{"adversarial_weight": 0.0}, {"adversarial_from": 1.0}])
def test_without_it_there_is_one_player(changes: dict[str, float]) -> None:
    assert [player.name for player in codec(**changes).players] == ["generator"]
    assert Codec().adversarial_weight == 0.0


def test_a_step_learns_from_a_part_at_a_place_that_follows_from_the_step() -> None:
    learner, seen = codec(crop=64), []
    learner.tokenizer.autoencoder.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for step in (0, 1, 0):
        next(learner.turns(sounds(), step))
    whole = learner.tokenizer.to_network(torch.from_numpy(sounds()))
    assert all(x.shape == (3, 1, 64) for x in seen)
    starts = [next(at for at in range(241) if torch.equal(whole[..., at : at + 64], x)) for x in seen]
    assert starts[0] == starts[2] != starts[1]
    assert codec(crop=640)._part(3) == codec()._part(3) == slice(0, 304)  # longer than the sound: all of it
    assert all(loss.isfinite() for turn in codec(crop=64).turns(sounds(), 9) for loss in turn.losses.values())


def test_losses_are_float32_and_finite_under_bfloat16() -> None:
    for turn in codec("bf16").turns(sounds(), 9):
        assert all(loss.dtype == torch.float32 and bool(torch.isfinite(loss)) for loss in turn.losses.values())


def test_the_vocoder_moves_neither_codes_nor_autoencoder_and_they_not_it() -> None:
    small = {"bins": 8, "window": 64, "hop": 16, "downsample": 8, "patch": 4, "width": 4, "blocks": 1, "rounds": 2}
    settings = Mel(codebook_size=7, quantizer=Ema(**BOOK), **small, decoder="learned", vocoder_width=4, vocoder_blocks=1)
    learner = MelLearner(MelTokenizer.build(settings, FORM, seed=0), 1e-3, (0.9, 0.95), 0.0, "fp32")
    vocoder, autoencoder = learner.tokenizer.vocoder, learner.tokenizer.autoencoder
    assert vocoder is not None and [player.name for player in learner.players] == ["generator", "vocoder"]
    turns = learner.turns(sounds(), 0)
    torch.stack(list(next(turns).losses.values())).sum().backward()
    assert gradients(autoencoder) and not gradients(vocoder)
    autoencoder.zero_grad(set_to_none=True)
    torch.stack(list(next(turns).losses.values())).sum().backward()
    assert gradients(vocoder) and not gradients(autoencoder)
    plain = MelLearner(
        MelTokenizer.build(settings.model_copy(update={"decoder": "griffin_lim"}), FORM, seed=0), 1e-3, (0.9, 0.95), 0.0, "fp32"
    )
    assert [turn.player for turn in plain.turns(sounds(), 0)] == ["generator"]


def test_loudness_is_measured_where_it_is_not_given() -> None:
    settings = TrainTokenizer(run="train_tokenizer", data="data", stream="sound", tokenizer=Codec(**SMALL), precision="fp32")
    for given, expected in ((None, 0.0123), (0.2, 0.2)):
        tokenizer = AudioTokenizer.build(Codec(**SMALL, loudness=given), FORM, seed=0)
        audio_learner(settings, tokenizer, Loud(0.0123))
        assert tokenizer.settings.loudness == expected
        assert float(tokenizer.to_network(torch.full((1, 1, 300), expected))[0, 0, 0]) == pytest.approx(1 / 3)
