"""The fp32 masters of a module's parameters with their AdamW state and averages: where they lie under ZeRO, and as files.

ZeRO cuts parameters where it likes, differently for every stage and number of ranks. Here each rank's share is a list of pieces of named
parameters, so that what some ranks have written any other number of ranks can read.
"""

import json
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

MASTER, AVERAGE = "master", "average"
MOMENTS = ("exp_avg", "exp_avg_sq")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Piece(NamedTuple):
    """Elements of one parameter that lie together in one of this rank's flat masters."""

    name: str
    start: int  # the first of them, within the parameter
    numel: int
    flat: int  # the number of the flat master
    offset: int  # where they begin in it

    def of(self, flat: Tensor) -> Tensor:
        """The view of them in a tensor of the flat master's size."""
        return flat.detach().view(-1)[self.offset : self.offset + self.numel]


class Masters:
    """This rank's masters of all trained parameters. With `decay`, moving averages of them as well."""

    def __init__(self, names: Sequence[str], parameters: Sequence[Tensor], optimizer: Any, zero: int, decay: float | None) -> None:
        """`names` and `parameters` in the order of the optimizer's groups; `optimizer` is DeepSpeed's, or torch's own under ZeRO 0."""
        self.zero = zero
        self.parameters = dict(zip(names, parameters, strict=True))
        self.optimizer = optimizer
        self.torch_optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        groups = self.torch_optimizer.param_groups
        self.flats: list[Tensor] = (
            list(optimizer.fp32_partitioned_groups_flat) if zero == 3 else [master for group in groups for master in group["params"]]
        )
        self.pieces = list(self._pieces())
        for state in self.torch_optimizer.state.values():
            # ZeRO may make the optimizer's state by a step on gradients of zero, and leave it counted.
            state["step"].zero_()
        self.decay = decay
        self.averaged = 0  # updates that the averages have seen
        self.averages = [flat.detach().clone() for flat in self.flats] if decay is not None else []

    def average(self) -> None:
        """Moves the averages towards the masters; call it after every update.

        The rate at update t is at most (1 + t) / (10 + t), so that the first weights are soon forgotten.
        """
        if self.decay is not None:
            rate = min(self.decay, (1 + self.averaged) / (10 + self.averaged))
            torch._foreach_lerp_(self.averages, [flat.detach() for flat in self.flats], 1 - rate)
            self.averaged += 1

    def kinds(self, flat: int) -> dict[str, Tensor]:
        """All that is kept of one flat master, tensors of its size by what they are."""
        state = self.torch_optimizer.state.get(self.flats[flat], {})
        # Before the first update there may be moments or none, and they say nothing.
        moments = MOMENTS if int(state.get("step", 0)) else ()
        kept = {MASTER: self.flats[flat], **{moment: state[moment] for moment in moments}}
        return kept | ({AVERAGE: self.averages[flat]} if self.averages else {})

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All pieces of this rank, as "kind/name"; under ZeRO 0, where every rank has all, rank 0's only."""
        if self.zero == 0 and dist.get_rank() > 0:
            return
        for piece in self.pieces:
            for kind, flat in self.kinds(piece.flat).items():
                yield f"{kind}/{piece.name}", piece.of(flat)

    def steps(self) -> int:
        """Updates that the optimizer has counted."""
        return max((int(state["step"]) for state in self.torch_optimizer.state.values()), default=0)

    def save(self, path: Path) -> None:
        """Writes this rank's pieces as safetensors."""
        about = {
            "starts": json.dumps({piece.name: [piece.start, piece.numel] for piece in self.pieces}),
            "steps": str(self.steps()),
            "averaged": str(self.averaged),
        }
        save_file({name: tensor.cpu().clone() for name, tensor in self.tensors()}, path, metadata=about)

    def load(self, paths: Sequence[Path]) -> None:
        """Reads this rank's pieces out of what all ranks have written, however many they were, and gives them to the parameters."""
        with ExitStack() as stack:
            files = [_File(stack.enter_context(safe_open(path, "pt"))) for path in paths]
            steps, self.averaged = (max((file.count(name) for file in files), default=0) for name in ("steps", "averaged"))
            stepped = {piece.flat for piece in self.pieces if any(f"{MOMENTS[0]}/{piece.name}" in file.names for file in files)}
            self._set_steps(steps, stepped)
            for piece in self.pieces:
                for kind, flat in self.kinds(piece.flat).items():
                    found = sum(file.read(kind, piece, piece.of(flat)) for file in files)
                    if found != piece.numel:
                        raise ValueError(f"{found} of {piece.numel} numbers of {kind}/{piece.name} are in {', '.join(map(str, paths))}")
        self._refresh()

    def full(self, kind: str) -> dict[str, Tensor]:
        """All parameters whole, flat, on the CPU, from every rank's pieces; every rank calls it."""
        whole = {}
        for name, parameter in self.parameters.items():
            numel = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO 3 leaves the parameter itself empty
            whole[name] = torch.zeros(numel, dtype=torch.float32, device=self.flats[0].device)
        for piece in self.pieces:
            whole[piece.name][piece.start : piece.start + piece.numel] = piece.of(self.kinds(piece.flat)[kind])
        if self.zero and dist.get_world_size() > 1:
            for tensor in whole.values():
                dist.all_reduce(tensor)
        return {name: tensor.cpu() for name, tensor in whole.items()}

    def _pieces(self) -> Iterator[Piece]:
        if self.zero == 0:
            for flat, (name, parameter) in enumerate(self.parameters.items()):
                yield Piece(name, 0, parameter.numel(), flat, 0)
            return
        for name, parameter in self.parameters.items():
            if self.zero == 3:
                partition: Any = parameter
                flat, offset, share = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
                start = share * dist.get_rank()
                numel = min(share, partition.ds_numel - start)
                if numel > 0:
                    yield Piece(name, start, numel, flat, offset)
            elif (mapping := getattr(parameter, "_hp_mapping", None)) is not None:
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield Piece(name, here.start, here.numel, mapping.param_group_index, there.start)

    def _set_steps(self, steps: int, stepped: Container[int]) -> None:
        """AdamW's state for so many updates: none yet, or room for the moments of the flat masters in `stepped`, by number.

        Others never had a gradient, which is where torch's own optimizer keeps nothing.
        """
        if steps == 0:
            for state in self.torch_optimizer.state.values():
                for value in state.values():
                    value.zero_()
            return
        for number, flat in enumerate(self.flats):
            if number not in stepped:
                self.torch_optimizer.state.pop(flat, None)
                continue
            state = self.torch_optimizer.state[flat]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
                state.update({moment: torch.zeros_like(flat) for moment in MOMENTS})
            state["step"].fill_(steps)

    def _refresh(self) -> None:
        """Makes the parameters what their masters say."""
        if self.zero == 0:
            for parameter, master in zip(self.parameters.values(), self.flats, strict=True):
                parameter.detach().copy_(master.detach())
        elif self.zero < 3:
            self.optimizer.update_lp_params()
        else:
            z3 = self.optimizer
            z3.checkpoint_event_prologue()
            for master, flat, group in zip(self.flats, z3.fp16_partitioned_groups_flat, z3.fp16_partitioned_groups, strict=True):
                flat.data.copy_(master.data)
                for partition, values in zip(group, z3.unflatten(flat, group), strict=True):
                    partition.data = values.data
            z3.checkpoint_event_epilogue()


class _File:
    """What one rank has written."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.about: dict[str, str] = file.metadata()
        self.starts: dict[str, list[int]] = json.loads(self.about["starts"])
        self.names = set(file.keys())

    def count(self, name: str) -> int:
        return int(self.about[name])

    def read(self, kind: str, piece: Piece, target: Tensor) -> int:
        """Copies what is here of a piece; how many numbers that are."""
        if f"{kind}/{piece.name}" not in self.names:
            return 0
        start, numel = self.starts[piece.name]
        first, last = max(start, piece.start), min(start + numel, piece.start + piece.numel)
        if first < last:
            part = self.file.get_slice(f"{kind}/{piece.name}")[first - start : last - start]
            target[first - piece.start : last - piece.start] = part.to(target.device)
        return max(0, last - first)


def checksum(tensor: Tensor) -> int:
    """The sum of a tensor's numbers as integers of their width: equal for equal bits, whatever the cuts between ranks."""
    return int(tensor.detach().contiguous().view(_INTEGERS[tensor.itemsize]).sum(dtype=torch.int64))
