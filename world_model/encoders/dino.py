"""DINO (arXiv:2104.14294): a student learns to say of every view of a picture what a slowly following teacher says of the others.

The teacher's output is centred by a running mean (without it one dimension wins) and sharpened by a low temperature (without it all become
uniform). It sees global views only and follows the student's parameters; nothing passes back to it.

G global views, S views of the student (the global ones first), B pictures, D width, K prototypes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.ranks import sum_over_ranks

STUDENT_TEMPERATURE = 0.1
CENTRE_MOMENTUM = 0.9


class DinoHead(nn.Module):
    """[..., D] -> [..., K]: an MLP of three layers to a bottleneck, l2 norm, and the cosines to K prototypes (appendix C)."""

    def __init__(
        self, width: int, prototypes: int = 65_536, hidden: int = 2048, bottleneck: int = 256, generator: torch.Generator | None = None
    ) -> None:
        """Matrices are drawn from `generator`: N(0, 0.02), cut at two; biases are zero."""
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        # Of weight norm with its gain frozen at one only directions are left, so that copies (the teacher) need no special care.
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        with torch.no_grad():
            for weight in (self.prototypes, *(layer.weight for layer in self.mlp if isinstance(layer, nn.Linear))):
                nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04, generator=generator)
            for layer in self.mlp:
                if isinstance(layer, nn.Linear):
                    layer.bias.zero_()

    def forward(self, x: Tensor, freeze_last: bool = False) -> Tensor:
        """`freeze_last` keeps the prototypes where they are, as in the first epoch: their gradient is zero."""
        weight = self.prototypes.detach() + 0 * self.prototypes if freeze_last else self.prototypes
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(weight, dim=-1))


class Centre(nn.Module):
    """The running mean of what the teacher says, of the global batch; a buffer, so that it is saved with the model."""

    value: Tensor

    def __init__(self, prototypes: int, momentum: float = CENTRE_MOMENTUM) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes, dtype=torch.float32))

    def forward(self, teacher: Tensor, temperature: float) -> Tensor:
        """Logits [..., K] -> probabilities, centred and sharpened; float32, no gradient."""
        return F.softmax((teacher.detach().float() - self.value) / temperature, -1)

    @torch.no_grad()
    def update(self, teacher: Tensor) -> None:
        """Moves towards the mean of [..., K] over all ranks, which may have different numbers of rows; call it after the loss."""
        rows = teacher.detach().float().flatten(0, -2)
        total = sum_over_ranks(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))
        mean = torch.where(total[-1] > 0, total[:-1] / total[-1].clamp(min=1), self.value)
        self.value.mul_(self.momentum).add_(mean, alpha=1 - self.momentum)


def dino_loss(student: Tensor, targets: Tensor, temperature: float = STUDENT_TEMPERATURE) -> Tensor:
    """Cross-entropy of student logits [S, B, K] with targets [G, B, K], averaged over pictures and over pairs of different views."""
    pairs = cross_entropies(student, targets, temperature)
    apart = ~torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs[apart].mean()


def cross_entropies(student: Tensor, targets: Tensor, temperature: float = STUDENT_TEMPERATURE) -> Tensor:
    """[G, S]: of every target view with every student view, mean over pictures."""
    # -sum t log softmax(s) = logsumexp(s) - t s where t sums to one: no log-softmax of all views is kept.
    scaled = student.float() / temperature
    agreement = torch.einsum("gbk,sbk->gs", targets, scaled) / student.shape[1]
    return scaled.logsumexp(-1).mean(-1)[None] - agreement


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum x teacher + (1 - momentum) x student, parameters only."""
    ours: list[Tensor] = list(teacher.parameters())
    theirs = [parameter.detach().to(mine.dtype) for parameter, mine in zip(student.parameters(), ours, strict=True)]
    torch._foreach_lerp_(ours, theirs, 1 - momentum)


def entropy(probabilities: Tensor) -> Tensor:
    """Mean over rows [..., K], in nats: log K where the teacher has collapsed to uniform, 0 where to one dimension for every picture."""
    found: Tensor = torch.special.entr(probabilities).sum(-1).mean()
    return found


def cosine_schedule(first: float, last: float, step: int, steps: int, warmup: int = 0, start: float = 0.0) -> float:
    """From `first` at the end of the warm-up to `last` at the last of `steps`, by a half cosine; before, linearly from `start`."""
    if step < warmup:
        return start + (first - start) * step / warmup
    share = (step - warmup) / max(1, steps - 1 - warmup)
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * min(share, 1.0)))


def linear_schedule(first: float, last: float, step: int, warmup: int) -> float:
    """From `first` at step 0 to `last` at `warmup`, then `last`."""
    return last if step >= warmup else first + (last - first) * step / warmup
