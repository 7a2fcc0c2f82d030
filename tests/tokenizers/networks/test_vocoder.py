"""The vocoder: untrained it changes nothing, trained it makes what Griffin-Lim found better, and it keeps a tone's pitch."""

import torch

from worldloom.tokenizers.networks.vocoder import Vocoder

M, F, WINDOW, HOP = 5, 9, 64, 16


def vocoder() -> Vocoder:
    torch.manual_seed(0)
    return Vocoder(bins=M, window=WINDOW, hop=HOP, width=6, blocks=2)


def inputs(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand((count, M, F), generator=generator) * 2 - 1, torch.randn((count, (F - 1) * HOP), generator=generator) * 0.1


def test_untrained_it_changes_nothing() -> None:
    pictures, start = inputs()
    torch.testing.assert_close(vocoder()(pictures, start).detach(), start, atol=1e-6, rtol=1e-4)
    assert float(vocoder()(pictures, start * 0).detach().abs().max()) == 0.0


def test_every_weight_learns_and_silence_gives_finite_gradients() -> None:
    made, (pictures, start) = vocoder(), inputs()
    torch.nn.init.normal_(made.head.weight, std=0.1)
    for sound in (start, start * 0):
        made.zero_grad()
        made(pictures, sound).square().sum().backward()
        assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in made.parameters())
    made.zero_grad()
    made(pictures, start).square().sum().backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in made.parameters())


def test_nothing_is_added_to_silence() -> None:
    made, (pictures, start) = vocoder(), inputs()
    torch.nn.init.normal_(made.head.weight)
    assert float(made(pictures, start * 0).detach().abs().max()) == 0.0
    assert float((made(pictures, start) - start).detach().abs().max()) > 0.01


def test_it_learns_to_take_away_a_hum() -> None:
    made, (pictures, start) = vocoder(), inputs()
    hum = 0.1 * torch.sin(torch.arange(start.shape[1]) * 2 * torch.pi * 8 / WINDOW)
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    errors = []
    for _ in range(40):
        error = (made(pictures, start + hum) - start).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]
