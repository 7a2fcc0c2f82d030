"""The one training loop: whatever a learner holds, it steps, clips, schedules, measures, saves, stops and goes on."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from worldloom.stages import disk
from worldloom.stages.checkpoint import Checkpoints, Saved
from worldloom.stages.deepspeed_engine import Engine, gather_gang
from worldloom.stages.device_rate import product_rate
from worldloom.stages.hang_guard import hang_guard
from worldloom.stages.learner import Batches, Learner, Player, Precision, Turn
from worldloom.stages.metrics import Metrics
from worldloom.stages.numerics import numerics_of_this_process
from worldloom.stages.spike_guard import Spike, SpikeGuard
from worldloom.stages.tallies import Tallies
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Interrupted, Worker


class Before(NamedTuple):
    """What trainings before this one have done, where one goes on from another in the same folder."""

    steps: int = 0
    position: dict[str, Any] | None = None  # of the data
    tallies: dict[str, Any] | None = None
    number: int = 0  # how many they were; names this one's checkpoints
    total: int | None = None  # steps of all together, those to come included


def train(
    learner: Learner,
    training: TrainingSettings,
    batches: Batches,
    out: Path,
    worker: Worker,
    fingerprint: str,
    before: Before | None = None,
) -> Before:
    """Trains whatever `learner` holds; called again on the same `out`, it continues. Every rank calls it.

    Returns what the next training goes on from. Afterwards the learner's modules are on the CPU in fp32, with the masters that the
    optimizer kept or, for players that ask for it, their averages. Raises Interrupted, after a
    checkpoint, when the run was asked to stop, and Diverged.
    """
    before = before or Before()
    with _reproducible(worker.threads, training.seed + worker.rank):
        gather_gang(worker)
        engines = {player.name: Engine(player, training, worker) for player in learner.players}
        numerics = numerics_of_this_process(worker.threads, "cuda" if torch.cuda.is_available() else "cpu")
        numerics |= {"zero": worker.zero, **{f"precision.{player.name}": player.precision for player in learner.players}}
        folder = out / "checkpoints" / f"stage-{before.number}" if before.number else out / "checkpoints"
        checkpoints = Checkpoints(folder, worker, fingerprint, numerics, training.keep, training.spike_guard)
        with checkpoints.alone():
            saved = checkpoints.restore(engines)
            if worker.rank == 0:
                disk.write_file(out / "logs" / "numerics.json", disk.canonical_json(numerics))
            loop = _Loop(learner, training, batches, out, worker, engines, checkpoints, before)
            while True:
                try:
                    after = loop.run(saved)
                    break
                except Spike as spike:
                    saved = checkpoints.roll_back(engines, spike)
        for engine in engines.values():
            engine.release()
    return after


def learning_rate_share(training: TrainingSettings, step: int) -> float:
    """The learning rate at `step` (from 0) as a share of the highest."""
    if step < training.warmup:
        return (step + 1) / training.warmup
    if training.schedule == "constant":
        return 1.0
    begin = training.warmup
    if training.schedule == "wsd":
        begin = max(begin, training.steps - max(1, round(training.decay_share * training.steps)))
    progress = max(0.0, (step - begin) / max(1, training.steps - 1 - begin))
    left = 0.5 * (1 + math.cos(math.pi * progress)) if training.schedule == "cosine" else 1 - progress
    return training.final_share + (1 - training.final_share) * left


def weight_decay_at(player: Player, steps: int, step: int) -> float:
    """That of `step` (from 0): along half a cosine from the first to the last, which stands behind the last step (DINO, arXiv:2104.14294,
    section 3.2)."""
    if player.last_weight_decay is None:
        return player.weight_decay
    return player.last_weight_decay + (player.weight_decay - player.last_weight_decay) * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass
class _Loop:
    """One training, and how far it is."""

    learner: Learner
    training: TrainingSettings
    batches: Batches
    out: Path
    worker: Worker
    engines: Mapping[str, Engine]
    checkpoints: Checkpoints
    before: Before
    step: int = field(init=False)
    position: dict[str, Any] | None = field(init=False)  # of the data
    tallies: Tallies = field(init=False)
    guard: SpikeGuard | None = field(init=False)
    failed: set[str] = field(default_factory=set)  # players of whose turns since their last step one is no number
    taken: dict[str, list[tuple[Turn, Tensor]]] = field(default_factory=dict)  # the other turns of each player since then

    def run(self, saved: Saved | None) -> Before:
        """All steps behind a checkpoint, or all there are; Spike where it would be better to go back."""
        self._begin(saved)
        if self.step < self.training.steps:
            metrics = Metrics(self.out / "logs", self.before.steps + self.step) if self.worker.rank == 0 else None
            patience = self.training.hang_seconds if self.worker.world_size > 1 else None
            try:
                with hang_guard(self.out / "logs", self.worker.rank, patience) as alive:
                    self._steps(metrics, alive)
            finally:
                if metrics is not None:
                    metrics.close()
        before = self.before
        return Before(before.steps + self.training.steps, self.position, self.tallies.state(), before.number + 1, before.total)

    def _begin(self, saved: Saved | None) -> None:
        before = self.before
        self.failed, self.taken = set(), {name: [] for name in self.engines}
        if saved is not None:
            self.learner.load_state(saved.learner)
        self.step, self.position = (saved.step, saved.position) if saved is not None else (0, before.position)
        counted = saved.tallies if saved is not None else {"tallies": before.tallies}
        self.tallies = Tallies(counted.get("tallies"))
        self.guard = SpikeGuard(counted.get("guard")) if self.training.spike_guard else None
        if self.guard is not None and saved is None:
            self._save()
        if self.step < self.training.steps and self.checkpoints.roll_backs:
            # Of this training alone, as its checkpoints are: those of an earlier one stay in the metrics under its name.
            name = f"roll_backs/stage-{before.number}" if before.number else "roll_backs"
            self.tallies.set_total(name, len(self.checkpoints.roll_backs))

    def _steps(self, metrics: Metrics | None, alive: Callable[[], None]) -> None:
        """The steps up to the last, with checkpoints between and behind them."""
        training, worker, before = self.training, self.worker, self.before
        saved_at = time.monotonic()
        notes: dict[str, float] = {}
        passed_over = self.checkpoints.passed_over()
        for batch, after in self.batches.after(self.position):
            if after in passed_over:
                continue
            alive()
            began = time.monotonic()
            share = learning_rate_share(training, self.step)
            for turn in self.learner.turns(batch, self.step):
                self._take(turn, share)
            if self.guard is not None:
                self.guard.end_step(self.step, after)
            self.step, self.position = self.step + 1, after
            done = self.step == training.steps
            self.tallies.end_step(time.monotonic() - began)
            if self.step % training.log_every == 0 or done:
                notes = self._measure(share, metrics)
            worker.report(before.steps + self.step, before.total or training.steps, "steps", notes)
            due = time.monotonic() - saved_at >= training.save_seconds or (
                training.save_every is not None and self.step % training.save_every == 0
            )
            save, stop = _on_any_rank(due, worker.stopping())
            if save or stop or done:
                self._save()
                saved_at = time.monotonic()
            if done:
                return
            if stop:
                raise Interrupted
        raise AssertionError(f"the batches ended after {self.step} of {training.steps} steps; they must go on for ever")

    def _take(self, turn: Turn, share: float) -> None:
        """One turn: taken by all ranks, or, where a number is not finite on one of them, by none. Parts of a batch, which are turns that
        end in one step, are all taken or none: the others' losses are divided by what the whole batch weighs."""
        engine, player = self.engines[turn.player], turn.player
        if player not in self.failed:
            loss = sum(turn.losses.values(), start=torch.zeros((), device=engine.device))
            if not _on_any_rank(not bool(torch.isfinite(loss.detach())))[0]:
                engine.backward(loss)
                self.taken[player].append((turn.detached(), loss.detach()))
            else:
                self.failed.add(player)
                if engine.pending:
                    engine.backward(loss * math.nan)  # under a gradient that is no number, every kind of engine forgets all it has
        if turn.step:
            self._step(player, share)

    def _weight_decay(self, player: Player, step: int) -> float:
        """That of a step of this training, among those of all."""
        return weight_decay_at(player, self.before.total or self.training.steps, self.before.steps + step)

    def _step(self, player: str, share: float) -> None:
        """A player's step, behind the last of its turns."""
        engine = self.engines[player]
        decay = self._weight_decay(engine.player, self.step)
        norm = engine.step(share, decay) if engine.pending else 0.0
        if player in self.failed:
            self.tallies.fail(f"the loss of {player}", self.step)
        else:
            self._note(self.taken[player])
            if math.isfinite(norm):
                self.tallies.succeed(player, norm)
            else:
                self.tallies.fail(f"the gradient of {player}", self.step)
        self.failed.discard(player)
        self.taken[player].clear()

    def _note(self, taken: list[tuple[Turn, Tensor]]) -> None:
        for turn, loss in taken:
            self.tallies.note(turn, loss)
            if self.guard is not None:
                self.guard.note(turn, loss)

    def _measure(self, share: float, metrics: Metrics | None) -> dict[str, float]:
        """Closes the window since the last line of metrics and writes it on rank 0; returns what a person wants to see of it."""
        players = self.learner.players
        values = {**self.tallies.close_window(), "learning_rate": share * max(player.learning_rate for player in players)}
        moving = [player for player in players if player.last_weight_decay is not None]
        if moving:
            values["weight_decay"] = max(self._weight_decay(player, self.step - 1) for player in moving)
        if metrics is not None:
            if "operations_per_second" in values:
                best: Precision = "bf16" if any(player.precision == "bf16" for player in players) else "fp32"
                values["mfu"] = values["operations_per_second"] / (self.worker.world_size * product_rate(metrics.path.parent, best))
            metrics.write(self.before.steps + self.step, self.tallies.seconds, values)
        shown = [name for name in values if name.endswith("_per_second") and not name.startswith("operations")]
        return {name: values[name] for name in ("loss", *shown) if name in values}

    def _save(self) -> None:
        counted = {"tallies": self.tallies.state(), "guard": self.guard.state() if self.guard is not None else {}}
        self.checkpoints.save(self.engines, self.step, self.position, self.learner.state(), counted)


def _on_any_rank(*flags: bool) -> list[bool]:
    """Each flag: whether it is set on any rank; one small message where there are several."""
    if dist.get_world_size() == 1:
        return list(flags)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    box = torch.tensor(flags, dtype=torch.uint8, device=device)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in box.tolist()]


@contextmanager
def _reproducible(threads: int, seed: int) -> Iterator[None]:
    """The same numbers on every start: a fixed number of threads, seeded generators, deterministic kernels on the CPU."""
    # As a variable, because torch keeps this switch in a module's property that type checkers cannot see.
    filling: Any = torch.utils.deterministic
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
        filling.fill_uninitialized_memory = False  # would write every new tensor twice
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        filling.fill_uninitialized_memory = before[2]
