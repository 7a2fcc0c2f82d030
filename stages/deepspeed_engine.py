"""The only door to DeepSpeed: one engine for each player of a learner.

DeepSpeed is imported when the first engine is made, never before: that takes seconds, and it binds its device then.
"""

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from worldloom.stages.learner import Player
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Worker

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Engine:
    """One player under DeepSpeed: ZeRO, fp32 masters, AdamW, gradient clipping and the averaging of gradients over the ranks."""

    def __init__(self, player: Player, training: TrainingSettings, worker: Worker) -> None:
        """Moves the module to this worker's device and shares rank 0's parameters; the process group must be there (`gather_gang`)."""
        self.name = player.name
        self.module = player.module
        self.device = _device()
        self.pending = False  # gradients since the last step
        self._peak = player.learning_rate
        self._clip = training.clip
        self._plain = worker.zero == 0 and player.precision == "fp32"
        self.module.to(self.device)
        deepspeed = _deepspeed()
        # Of collectives inside DeepSpeed, which it calls in every step; torch has renamed them.
        warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)
        with _quiet():
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=self.module,
                optimizer=torch.optim.AdamW(
                    _groups(self.module, player.weight_decay), lr=player.learning_rate, betas=player.betas, fused=True
                ),
                config=configuration(player, training, worker),
                dist_init_required=False,
            )
        for state in self._torch_optimizer.state.values():
            # ZeRO 0 in bf16 makes the optimizer's state by a step on zeros and leaves it counted.
            state["step"].zero_()

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self._optimizer, "optimizer", self._optimizer)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradients to those since the last `step`."""
        self._engine.backward(loss)
        self.pending = True

    def step(self, share: float) -> float:
        """One AdamW update at `share` of the player's learning rate; returns the gradient norm before clipping.

        A norm that is not finite leaves the parameters as they are.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak * share
        self.pending = False
        if self._plain:
            return self._plain_step()
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def _plain_step(self) -> float:
        """ZeRO 0 in fp32, where DeepSpeed neither tells the norm nor minds that it is not finite."""
        self._engine.allreduce_gradients()
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), self._clip or float("inf")))
        self._engine.enable_backward_allreduce = False
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.zero_grad()
        return norm

    def save(self, folder: Path, tag: str) -> None:
        """Writes parameters, buffers and optimizer below folder/tag; every rank calls it."""
        with _quiet():
            self._engine.save_checkpoint(str(folder), tag=tag, save_latest=False)

    def load(self, folder: Path, tag: str) -> None:
        """Restores what `save` wrote; every rank calls it."""
        path = None
        if (folder / tag).is_dir():
            with _quiet():
                path, _ = self._engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise FileNotFoundError(f"{folder / tag} holds no checkpoint that DeepSpeed can load")

    def finite(self) -> bool:
        """Whether every number that `save` would write on this rank is finite."""
        return all(bool(torch.isfinite(tensor.sum())) for _, tensor in self._tensors() if tensor.is_floating_point())

    def digest(self) -> dict[str, int]:
        """A checksum of every tensor that this rank holds, to compare what was restored with what was saved."""
        return {name: int(tensor.contiguous().view(_INTEGERS[tensor.itemsize]).sum(dtype=torch.int64)) for name, tensor in self._tensors()}

    def release(self) -> None:
        """Takes DeepSpeed off the module, which is left in fp32 on the CPU, its parameters being the masters; every rank calls it."""
        from deepspeed.utils import safe_get_full_fp32_param

        full = {}
        for name, parameter in self.module.named_parameters():
            master = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            full[name] = (parameter if master is None else master).detach().float().cpu().clone()
        self._engine.destroy()
        for name, parameter in self.module.named_parameters():
            parameter.grad = None
            parameter.data = full[name]
        self.module.cpu()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.module.state_dict().items():
            yield f"module.{name}", tensor.detach()
        for group, settings in enumerate(self._torch_optimizer.param_groups):
            for index, master in enumerate(settings["params"]):
                yield f"master.{group}.{index}", master.detach()
                for name, value in sorted(self._torch_optimizer.state[master].items()):
                    if isinstance(value, Tensor):
                        yield f"{name}.{group}.{index}", value.detach()


def configuration(player: Player, training: TrainingSettings, worker: Worker) -> dict[str, Any]:
    """DeepSpeed's configuration: the user's `deepspeed` block, with the keys that are ours."""
    zero = {"overlap_comm": False, **training.deepspeed.get("zero_optimization", {}), "stage": worker.zero}
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
    }


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
    assert dist.get_world_size() == worker.world_size, "the process group and the worker disagree about the number of ranks"


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (norms, biases) do not; an empty group would upset ZeRO."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]] if weight_decay else [{"params": trained, "weight_decay": 0.0}]


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
