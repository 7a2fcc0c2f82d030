"""What the training loop trains: a learner owns the mathematics, the loop (training.py) everything else."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Precision = Literal["bf16", "fp32"]


class Player(NamedTuple):
    """One module tree with one optimizer (AdamW); a GAN has two.

    `precision` is the number format of the parameters: "bf16" keeps bf16 parameters and buffers with fp32 masters in the optimizer,
    "fp32" leaves the module as it is, and the learner may compute under `torch.autocast`. Modules arrive in fp32 on the CPU.
    """

    name: str
    module: nn.Module
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0  # on parameters of two or more dimensions, but for those of `undecayed`
    precision: Precision = "fp32"
    average: float | None = None  # how much of the moving average of the weights, which is what is kept in the end, each update keeps
    shares: Mapping[str, float] = {}  # of the learning rate, by the parameter's name in the module; others have all of it
    undecayed: frozenset[str] = frozenset()  # names of parameters in the module
    last_weight_decay: float | None = None  # what weight decay goes to, along half a cosine over all steps; None: it stays


class Mean(NamedTuple):
    """A metric that is logged as sum of totals / sum of weights over the ranks and the steps between two lines."""

    total: Tensor | float
    weight: Tensor | float


class Turn(NamedTuple):
    """One backward pass of one player.

    `losses` are summed and differentiated; gradients are *averaged* over the ranks, so a loss is this rank's mean over an equal
    share, or `world_size * sum / global count`. `losses` (as loss/<name>) and `metrics` are logged as means over ranks and steps,
    `counts` of this rank ("tokens", "pictures") as totals and per second. `step` False keeps the gradients for the player's next
    turn: that is how a learner splits a batch that does not fit. `unjudged` is the part of the losses whose weight grows during the
    training: where it leaps, nothing is wrong.
    """

    player: str
    losses: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor | float | Mean] = {}
    counts: Mapping[str, int] = {}
    step: bool = True
    unjudged: Tensor | float = 0.0

    def detached(self) -> "Turn":
        """The same numbers, without what their gradients need."""
        metrics = {
            name: Mean(detached(metric.total), detached(metric.weight)) if isinstance(metric, Mean) else detached(metric)
            for name, metric in self.metrics.items()
        }
        losses = {name: loss.detach() for name, loss in self.losses.items()}
        return self._replace(losses=losses, metrics=metrics, unjudged=detached(self.unjudged))


def detached(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, Tensor) else value


class Learner(Protocol):
    """What is trained. Everything that must survive a stop is in the players' modules or in `state`."""

    @property
    def players(self) -> tuple[Player, ...]: ...

    def turns(self, batch: Any, step: int) -> Iterator[Turn]:
        """The backward passes of one step; the loop finishes each turn before it asks for the next.

        Parameters are on the device of the players' modules; moving `batch` there is the learner's work.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What is neither a parameter nor a buffer: JSON values and tensors by name; usually empty."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class Batches(Protocol):
    """Where batches come from: the same sequence on every start, whatever the number of ranks."""

    def after(self, position: dict[str, Any] | None) -> Iterator[tuple[Any, dict[str, Any]]]:
        """This rank's part of every global batch after `position` (None: from the start), each with the position behind it."""
        ...


def resolve_precision(wanted: Literal["auto", "bf16", "fp32"]) -> Precision:
    """`auto` is bf16 where the hardware multiplies it: a GPU, or a CPU with AMX or AVX-512 BF16."""
    if wanted != "auto":
        return wanted
    cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if cpu or torch.cuda.is_available() else "fp32"
