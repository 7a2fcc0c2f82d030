"""Causal networks of clips: which frame sees which, parts give bit for bit what the whole gives, pictures are clips of one frame."""

import pytest
import torch

from worldloom.tokenizers.networks.causal_video import CausalVideoDecoder, CausalVideoEncoder, halvings_of, inflate
from worldloom.tokenizers.networks.convnet import ConvDecoder, ConvEncoder
from worldloom.tokenizers.networks.streaming import Past

C, D = 3, 5
SIZES = {"width": 4, "blocks": 1, "patch": 2, "downsample": 8}


def networks(stride: int = 4) -> tuple[CausalVideoEncoder, CausalVideoDecoder]:
    torch.manual_seed(0)
    encoder = CausalVideoEncoder(channels=C, code_width=D, time_stride=stride, **SIZES)
    decoder = CausalVideoDecoder(channels=C, code_width=D, time_stride=stride, **SIZES)
    for network in (encoder, decoder):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval(), decoder.eval()


def clip(frames: int, seed: int = 1) -> torch.Tensor:
    return torch.randn((2, C, frames, 8, 16), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_1_plus_n_strides_of_frames_make_1_plus_n_steps_and_come_back(stride: int) -> None:
    encoder, decoder = networks(stride)
    for n in range(4):
        steps = encoder(clip(1 + n * stride))
        assert steps.shape == (2, D, 1 + n, 1, 2)
        assert decoder(steps).shape == (2, C, 1 + n * stride, 8, 16)


def test_a_step_sees_its_frames_and_those_before_and_the_first_stands_alone() -> None:
    encoder, _ = networks()
    encoder.train()
    x = clip(9).requires_grad_(True)
    for step, last in ((0, 0), (1, 4), (2, 8)):
        (gradient,) = torch.autograd.grad(encoder(x)[0, :, step].sum(), x, retain_graph=True)
        seen = gradient[0].abs().sum((0, 2, 3)) > 0
        assert seen[: last + 1].any() and seen[last] and not seen[last + 1 :].any()
        assert not gradient[1].any()


def test_a_frame_sees_its_step_and_those_before() -> None:
    _, decoder = networks()
    decoder.train()
    z = torch.randn((1, D, 3, 1, 2), generator=torch.Generator().manual_seed(2), requires_grad=True)
    for frame, step in ((0, 0), (1, 1), (4, 1), (5, 2)):
        (gradient,) = torch.autograd.grad(decoder(z)[0, :, frame].sum(), z, retain_graph=True)
        seen = gradient[0].abs().sum((0, 2, 3)) > 0
        assert seen[step] and not seen[step + 1 :].any()


@pytest.mark.parametrize("parts", [(1, 4, 4, 4), (5, 8), (1, 8, 4), (9, 4)])
def test_parts_give_bit_for_bit_what_the_whole_gives(parts: tuple[int, ...]) -> None:
    encoder, decoder = networks()
    x = clip(13)
    whole = encoder(x)
    past = Past()
    assert torch.equal(torch.cat([encoder(part, past) for part in torch.split(x, list(parts), dim=2)], 2), whole)
    past = Past()
    assert torch.equal(torch.cat([decoder(part, past) for part in torch.split(whole, [1, 2, 1], dim=2)], 2), decoder(whole))


def test_training_gives_what_evaluation_gives() -> None:
    encoder, decoder = networks()
    x = clip(9)
    steps = encoder(x)
    torch.testing.assert_close(encoder.train()(x), steps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoder.train()(steps), decoder.eval()(steps), rtol=1e-4, atol=1e-5)


def test_inflated_networks_give_each_first_frame_what_the_networks_of_pictures_give() -> None:
    encoder, decoder = networks()
    torch.manual_seed(5)
    flat = ConvEncoder(channels=C, code_width=D, **SIZES).eval(), ConvDecoder(channels=C, code_width=D, **SIZES).eval()
    inflate(encoder, flat[0])
    inflate(decoder, flat[1])
    x = clip(5)
    step = encoder(x[:, :, :1])
    torch.testing.assert_close(step[:, :, 0], flat[0](x[:, :, 0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder(x)[:, :, 0], flat[0](x[:, :, 0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(decoder(step)[:, :, 0], flat[1](step[:, :, 0]), rtol=0, atol=1e-6)


def test_halvings_lie_as_deep_as_they_can() -> None:
    assert [list(halvings_of(stride, 3)) for stride in (1, 2, 4, 8)] == [[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert list(halvings_of(4, 1)) == [2]
    with pytest.raises(ValueError, match="time_stride must be a power of two"):
        halvings_of(3, 2)


def test_clips_that_do_not_come_out_even_are_refused() -> None:
    encoder, _ = networks()
    with pytest.raises(ValueError, match=r"must have 1 \+ n \* 4 frames, it has 4"):
        encoder(clip(4))
    past = Past()
    encoder(clip(1), past)
    with pytest.raises(ValueError, match=r"must have n \* 4 frames, it has 5"):
        encoder(clip(5), past)
    with pytest.raises(ValueError, match="frames of 8 x 12 pixels"):
        encoder(torch.zeros(1, C, 1, 8, 12))
