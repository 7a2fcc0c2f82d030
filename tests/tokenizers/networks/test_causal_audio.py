"""Causal networks of sounds: who sees whom, and parts give what the whole gives."""

import pytest
import torch

from worldloom.tokenizers.networks.causal_audio import CausalAudioDecoder, CausalAudioEncoder
from worldloom.tokenizers.networks.streaming import Past

HOP, C, D = 16, 2, 3
SIZES = {"width": 4, "blocks": 2, "patch": 4, "downsample": HOP, "code_width": D}


def networks(width: int = 4) -> tuple[CausalAudioEncoder, CausalAudioDecoder]:
    torch.manual_seed(0)
    sizes = {**SIZES, "width": width}
    made = CausalAudioEncoder(C, **sizes), CausalAudioDecoder(C, **sizes)
    for network in made:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def sound(frames: int = 6) -> torch.Tensor:
    return torch.randn((2, C, frames * HOP), generator=torch.Generator().manual_seed(1))


def test_a_frame_sees_its_own_samples_and_those_before_and_nothing_behind() -> None:
    encoder, _ = networks()
    x = sound().requires_grad_(True)
    (gradient,) = torch.autograd.grad(encoder(x)[0, :, 3].sum(), x)
    seen = gradient[0].abs().sum(0) > 0
    assert seen[3 * HOP : 4 * HOP].all() and not seen[4 * HOP :].any() and not gradient[1].any()


def test_a_sample_sees_its_own_frame_and_those_before() -> None:
    _, decoder = networks()
    z = torch.randn((1, D, 6), generator=torch.Generator().manual_seed(2), requires_grad=True)
    out = decoder(z)
    assert out.shape == (1, C, 6 * HOP)
    (gradient,) = torch.autograd.grad(out[0, :, 3 * HOP].sum(), z)
    seen = gradient[0].abs().sum(0) > 0
    assert seen[3] and not seen[4:].any()


@pytest.mark.parametrize("parts", [(8, 8, 5), (8, 13), (16, 5)])
def test_parts_of_whole_units_give_bit_for_bit_what_the_whole_gives(parts: tuple[int, ...]) -> None:
    encoder, decoder = (network.eval() for network in networks(width=24))
    x = sound(21)
    whole = encoder(x)
    assert torch.equal(in_parts(encoder, x, [frames * HOP for frames in parts]), whole)
    assert torch.equal(in_parts(decoder, whole, list(parts)), decoder(whole))


def in_parts(network: torch.nn.Module, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    past = Past()
    return torch.cat([network(part, past) for part in torch.split(x, sizes, dim=2)], 2)


@pytest.mark.parametrize("parts", [(1, 1, 1, 1, 1, 1), (2, 3, 1), (5, 1)])
def test_units_and_parts_of_any_size_give_nearly_what_training_sees(parts: tuple[int, ...]) -> None:
    encoder, decoder = networks()
    x = sound()
    whole = encoder(x)
    rebuilt = decoder(whole)
    encoder.eval()
    decoder.eval()
    pieces = in_parts(encoder, x, [frames * HOP for frames in parts])
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(in_parts(decoder, whole, list(parts)), rebuilt, rtol=1e-4, atol=1e-5)


def test_a_sound_of_broken_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="17 samples cannot be divided into frames of 16"):
        networks()[0](torch.zeros(1, C, 17))
