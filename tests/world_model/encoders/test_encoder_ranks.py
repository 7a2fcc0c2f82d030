"""Two ranks with half a batch each do what one rank does with the whole: centring, Sinkhorn, contrastive and caption losses, gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from worldloom.world_model.encoders.contrastive import Contrastive
from worldloom.world_model.encoders.dino import Centre
from worldloom.world_model.encoders.ranks import gather_with_gradient, mirrored, sum_over_ranks
from worldloom.world_model.encoders.sinkhorn import sinkhorn

B = 6


def some(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def results(rank: int, ranks: int) -> dict[str, Tensor]:
    """What every rank agrees on, and its rows of what each has for itself, gathered."""

    def mine(x: Tensor) -> Tensor:
        return x.chunk(ranks)[rank]

    centre = Centre(5)
    for step in range(3):
        centre.update(mine(some(step, B, 2, 5)).transpose(0, 1))
    # A rank may have more rows than another: hidden patches are not spread evenly.
    rows = some(7, B, 5)
    uneven = rows if ranks == 1 else rows[:2] if rank == 0 else rows[2:]
    share = sinkhorn(uneven, 0.5)
    padded = torch.zeros(B, 5)
    padded[(0 if rank == 0 else 2) :][: len(share)] = share
    loss, weights = Contrastive(), [some(8, 3, 4).requires_grad_(), some(9, 3, 4).requires_grad_()]
    value = loss(mine(some(10, B, 3)) @ weights[0], mine(some(11, B, 3)) @ weights[1])
    value.backward()
    gradients = [sum_over_ranks(each.grad) / ranks for each in (*weights, loss.log_scale) if each.grad is not None]
    assert len(gradients) == 3
    whole = torch.zeros(B, 2)
    mine(whole).copy_(mirrored(mine(some(12, B, 2))))
    found = {
        "mirrored": sum_over_ranks(whole),
        "centre": centre.value,
        "sinkhorn": sum_over_ranks(padded),
        "contrastive": sum_over_ranks(value) / ranks,
    }
    return found | {f"gradient {number}": gradient for number, gradient in enumerate(gradients)} | captions(rank, ranks)


def captions(rank: int, ranks: int) -> dict[str, Tensor]:
    """A whole CoCa: ranks have captions of different lengths."""
    from worldloom.world_model.encoders.build import build_encoder
    from worldloom.world_model.encoders.coca import CoCa
    from worldloom.world_model.encoders.settings import VitSettings
    from worldloom.world_model.encoders.text_decoder import TextDecoder

    generator = torch.Generator().manual_seed(0)
    about = VitSettings(width=8, depth=1, heads=2, patch=2, grid=(2, 2), class_token=False, pooling="mean")
    model = CoCa(build_encoder(about, generator), TextDecoder(9, 5, 8, 2, 2, 8, generator), 8, 2, 3, generator=generator)
    ids = torch.randint(3, 9, (4, 5), generator=generator)
    present = torch.arange(5)[None] < torch.tensor([2, 3, 5, 5])[:, None]
    losses = model(some(1, 4, 3, 4, 4).chunk(ranks)[rank], ids.chunk(ranks)[rank], present.chunk(ranks)[rank])
    (losses.contrastive + 2 * losses.caption).backward()
    found = {
        f"coca {name}": sum_over_ranks(parameter.grad) / ranks for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    return found | {"coca caption": sum_over_ranks(losses.caption) / ranks}


def test_two_ranks_equal_one(of_two_ranks: Callable[..., list[dict[str, Tensor]]]) -> None:
    alone = results(0, 1)
    for together in of_two_ranks(results):
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(
                together[name].double(), value.double(), rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_alone_the_collectives_give_back_what_they_got() -> None:
    rows = some(0, 4, 2)
    assert gather_with_gradient(rows) is rows and torch.equal(sum_over_ranks(rows), rows)
