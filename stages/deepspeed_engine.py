"""The only door to DeepSpeed: one engine for each player of a learner.

DeepSpeed is imported when the first engine is made, never before: that takes seconds, and it binds its device then.
"""

import atexit
import gc
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldloom.stages.learner import Player
from worldloom.stages.masters import AVERAGE, MASTER, Masters, checksum
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Worker

OTHERS = "others.safetensors"


class Engine:
    """One player under DeepSpeed: ZeRO, fp32 masters, AdamW, gradient clipping and the averaging of gradients over the ranks."""

    def __init__(self, player: Player, training: TrainingSettings, worker: Worker) -> None:
        """Moves the module to this worker's device and shares rank 0's parameters; the process group must be there (`gather_gang`)."""
        self.player = player
        self.module = player.module
        self.device = _device()
        self.pending = False  # gradients since the last step
        self._clip = training.clip
        self._plain = worker.zero == 0 and player.precision == "fp32"
        self.module.to(self.device)
        groups = parameter_groups(player)
        trained = [parameter for group in groups for parameter in group["params"]]
        called = {id(parameter): name for name, parameter in self.module.named_parameters()}
        names = [called[id(parameter)] for parameter in trained]
        self._shapes = {name: parameter.shape for name, parameter in self.module.named_parameters()}
        deepspeed = _deepspeed()
        # Of collectives inside DeepSpeed, which it calls in every step; torch has renamed them.
        warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)
        with _quiet():
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=self.module,
                # No rate yet: to make its state, DeepSpeed may take a step on gradients of zero, in which the masters would decay.
                optimizer=torch.optim.AdamW(groups, lr=0.0, betas=player.betas, fused=True),
                config=configuration(player, training, worker),
                dist_init_required=False,
            )
        self.masters = Masters(names, trained, self._optimizer, worker.zero, player.average)

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradients to those since the last `step`."""
        if self.pending and self.masters.zero == 3:
            # DeepSpeed's own forward would say so: the gradients to come are added to those that are there, instead of replacing them.
            self._optimizer.clear_backward_seen_flag()
        self._engine.backward(loss)
        self.pending = True

    def step(self, share: float, weight_decay: float | None = None) -> float:
        """One AdamW update at `share` of the player's learning rates, and that weight decay (None: as the player says); returns the
        gradient norm before clipping.

        A norm that is not finite leaves the parameters as they are.
        """
        set_rates(
            self._optimizer.param_groups,
            self.player.learning_rate * share,
            self.player.weight_decay if weight_decay is None else weight_decay,
        )
        self.pending = False
        if self._plain:
            norm = self._plain_step()
        else:
            self._engine.step()
            norm = float(self._engine.get_global_grad_norm())
        if math.isfinite(norm):
            self.masters.average()
        return norm

    def _plain_step(self) -> float:
        """ZeRO 0 in fp32, where DeepSpeed neither tells the norm nor minds that it is not finite."""
        if dist.get_world_size() > 1:
            # Not `allreduce_gradients`: outside `step` it holds that there is more to accumulate, and does nothing.
            self._engine.buffered_allreduce_fallback()
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), self._clip or float("inf")))
        self._engine.enable_backward_allreduce = False
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.zero_grad()
        return norm

    def save(self, folder: Path) -> None:
        """Writes masters, optimizer and averages of this rank, and rank 0 everything else that the module holds; every rank calls it."""
        rank = dist.get_rank()
        self.masters.save(folder / f"rank-{rank}.safetensors")
        if rank == 0:
            save_file({name: tensor.cpu().contiguous().clone() for name, tensor in self._others()}, folder / OTHERS)

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, by as many ranks as there were then or by others; every rank calls it."""
        paths = sorted(folder.glob("rank-*.safetensors"))
        if not paths:
            raise FileNotFoundError(f"{folder} holds no checkpoint")
        self.masters.load(paths)
        others = load_file(folder / OTHERS)
        for name, tensor in self._others():
            tensor.copy_(others[name])

    def finite(self) -> bool:
        """Whether every number that `save` would write on this rank is finite."""
        return all(bool(torch.isfinite(tensor.sum())) for _, tensor in self._tensors() if tensor.is_floating_point())

    def digest(self) -> dict[str, int]:
        """A checksum of every tensor that this rank holds, to compare what was restored with what was saved.

        Summed over the ranks (modulo 2^64) they do not depend on how many there are.
        """
        digests = {name: checksum(tensor) for name, tensor in self._tensors()}
        return digests | ({"steps": self.masters.steps(), "averaged": self.masters.averaged} if dist.get_rank() == 0 else {})

    def release(self) -> None:
        """Takes DeepSpeed off the module, which is left in fp32 on the CPU; every rank calls it.

        Its parameters are then the masters or, where the player asked for it, their averages.
        """
        full = self.masters.full(AVERAGE if self.masters.averages else MASTER)
        for name, parameter in self.module.named_parameters():
            if name not in full:
                full[name] = parameter.detach().float().cpu().clone()
        self._engine.destroy()
        for name, parameter in self.module.named_parameters():
            parameter.grad = None
            parameter.data = full[name].view(self._shapes[name])
        self.module.cpu()

    def _others(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers, and parameters that are not trained."""
        trained = self.masters.parameters.keys()
        for name, tensor in self.module.state_dict().items():
            if name not in trained:
                yield name, tensor.detach()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        if dist.get_rank() == 0:
            yield from self._others()
        yield from self.masters.tensors()


def configuration(player: Player, training: TrainingSettings, worker: Worker) -> dict[str, Any]:
    """DeepSpeed's configuration: the user's `deepspeed` block, with the keys that are ours."""
    zero = {"overlap_comm": False, **_offload(worker), **training.deepspeed.get("zero_optimization", {}), "stage": worker.zero}
    return {
        **training.deepspeed,
        # The batch is the learner's affair; these numbers only have to agree with one another.
        "train_batch_size": worker.world_size,
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if worker.zero == 0 and player.precision == "fp32" else training.clip,
        "bf16": {"enabled": player.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it would be compiled; torch's fused AdamW runs on CPUs as well
    }


def _offload(worker: Worker) -> dict[str, Any]:
    if worker.offload == "none":
        return {}
    parts = ("offload_optimizer", "offload_param") if worker.zero == 3 else ("offload_optimizer",)
    return {part: {"device": worker.offload} for part in parts}


def gather_gang(worker: Worker) -> None:
    """Makes the process group that a training needs, unless the executor already has.

    One worker alone needs no network; several meet at MASTER_ADDR and MASTER_PORT.
    """
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if worker.world_size == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        else:
            dist.init_process_group(backend, rank=worker.rank, world_size=worker.world_size)
        if backend == "gloo":
            atexit.register(_leave_gang)
    assert dist.get_world_size() == worker.world_size, "the process group and the worker disagree about the number of ranks"


def _leave_gang() -> None:
    """Ends gloo's threads while Python still runs: one that lets go of a tensor later than that aborts the whole process.

    They end with the last reference to their group; DeepSpeed keeps one to a group of its own, and so do engines that are left.
    """
    if dist.is_initialized():
        if "deepspeed.utils.groups" in sys.modules:
            sys.modules["deepspeed.utils.groups"]._WORLD_GROUP = None  # type: ignore[attr-defined]
        gc.collect()
        dist.destroy_process_group()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def parameter_groups(player: Player) -> list[dict[str, Any]]:
    """One group for each decay and share of the learning rate, none of them empty, which would upset ZeRO.

    Matrices decay; vectors (norms, biases) and what the player names do not.
    """
    decay, groups = player.weight_decay, dict[tuple[bool, float], list[Tensor]]()
    none = not decay and not player.last_weight_decay
    for name, parameter in player.module.named_parameters():
        if parameter.requires_grad:
            still = none or parameter.dim() < 2 or name in player.undecayed
            groups.setdefault((still, player.shares.get(name, 1.0)), []).append(parameter)
    return [
        {"params": groups[still, share], "weight_decay": 0.0 if still else decay, "share": share, "decays": not still}
        for still, share in sorted(groups)
    ]


def set_rates(groups: list[dict[str, Any]], learning_rate: float, weight_decay: float) -> None:
    """Each group's share of the first, and the second where the group decays."""
    for group in groups:
        group["lr"] = learning_rate * group["share"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def _deepspeed() -> ModuleType:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    with _quiet():
        import deepspeed
        import deepspeed.comm
        import deepspeed.ops

        logger = logging.getLogger("DeepSpeed")
        logger.setLevel(logging.ERROR)  # what it warns of (a skipped step, say) the loop counts and reports itself
        logger.handlers.clear()  # they write to stdout
        logger.propagate = True
        if not torch.cuda.is_available():
            # What it would find by compiling little programs: a collective in shared memory, which it then builds at the first start
            # and has no fallback for where there is no compiler. gloo does.
            deepspeed.ops.__compatible_ops__ = {}
        deepspeed.comm.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, dist_init_required=False, verbose=False)
    return deepspeed  # type: ignore[no-any-return]


@contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed's own warnings (deprecations inside it and in what it imports) tell our users nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
