"""The one training loop: whatever a learner holds, it steps, clips, schedules, measures, saves, stops and goes on."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from worldloom.stages import disk
from worldloom.stages.checkpoint import Checkpoints, Saved
from worldloom.stages.deepspeed_engine import Engine, gather_gang
from worldloom.stages.device_rate import product_rate
from worldloom.stages.hang_guard import hang_guard
from worldloom.stages.learner import Batches, Learner, Precision, Turn
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
            while True:
                try:
                    after = _run(learner, training, batches, out, worker, engines, checkpoints, saved, before)
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


def _run(
    learner: Learner,
    training: TrainingSettings,
    batches: Batches,
    out: Path,
    worker: Worker,
    engines: Mapping[str, Engine],
    checkpoints: Checkpoints,
    saved: Saved | None,
    before: Before,
) -> Before:
    """All steps behind a checkpoint, or all there are; Spike where it would be better to go back."""
    if saved is not None:
        learner.load_state(saved.learner)
    step, position = (saved.step, saved.position) if saved is not None else (0, before.position)
    counted = saved.tallies if saved is not None else {"tallies": before.tallies}
    tallies = Tallies(counted.get("tallies"))
    guard = SpikeGuard(counted.get("guard")) if training.spike_guard else None
    if guard is not None and saved is None:
        checkpoints.save(engines, 0, position, learner.state(), {"tallies": tallies.state(), "guard": guard.state()})
    if step < training.steps and checkpoints.roll_backs:
        # Of this training alone, as its checkpoints are: those of an earlier one stay in the metrics under its name.
        tallies.set_total(f"roll_backs/stage-{before.number}" if before.number else "roll_backs", len(checkpoints.roll_backs))
    if step < training.steps:
        metrics = Metrics(out / "logs", before.steps + step) if worker.rank == 0 else None
        patience = training.hang_seconds if worker.world_size > 1 else None
        try:
            with hang_guard(out / "logs", worker.rank, patience) as alive:
                position = _steps(
                    learner, training, batches, worker, engines, checkpoints, tallies, guard, metrics, step, position, before, alive
                )
        finally:
            if metrics is not None:
                metrics.close()
    return Before(before.steps + training.steps, position, tallies.state(), before.number + 1, before.total)


def _steps(
    learner: Learner,
    training: TrainingSettings,
    batches: Batches,
    worker: Worker,
    engines: Mapping[str, Engine],
    checkpoints: Checkpoints,
    tallies: Tallies,
    guard: SpikeGuard | None,
    metrics: Metrics | None,
    step: int,
    position: dict[str, Any] | None,
    before: Before,
    alive: Callable[[], None],
) -> dict[str, Any]:
    """The steps from `step` to the last, with checkpoints between and behind them; returns the position of the data behind them."""
    peak = max(player.learning_rate for player in learner.players)
    best: Precision = "bf16" if any(player.precision == "bf16" for player in learner.players) else "fp32"
    saved_at = time.monotonic()
    notes: dict[str, float] = {}
    passed_over = checkpoints.passed_over()
    for batch, after in batches.after(position):
        if after in passed_over:
            continue
        alive()
        began = time.monotonic()
        share = learning_rate_share(training, step)
        for turn in learner.turns(batch, step):
            _take(turn, engines[turn.player], share, step, tallies, guard)
        if guard is not None:
            guard.end_step(step, after)
        step += 1
        done = step == training.steps
        tallies.end_step(time.monotonic() - began)
        if step % training.log_every == 0 or done:
            values = {**tallies.close_window(), "learning_rate": peak * share}
            if metrics is not None and "operations_per_second" in values:
                values["mfu"] = values["operations_per_second"] / (worker.world_size * product_rate(metrics.path.parent, best))
            shown = [name for name in values if name.endswith("_per_second") and not name.startswith("operations")]
            notes = {name: values[name] for name in ("loss", *shown) if name in values}
            if metrics is not None:
                metrics.write(before.steps + step, tallies.seconds, values)
        worker.report(before.steps + step, before.total or training.steps, "steps", notes)
        due = time.monotonic() - saved_at >= training.save_seconds or (training.save_every is not None and step % training.save_every == 0)
        save, stop = _on_any_rank(due, worker.stopping())
        if save or stop or done:
            counted = {"tallies": tallies.state(), "guard": guard.state() if guard is not None else {}}
            checkpoints.save(engines, step, after, learner.state(), counted)
            saved_at = time.monotonic()
        if done:
            return after
        if stop:
            raise Interrupted
    raise AssertionError(f"the batches ended after {step} of {training.steps} steps; they must go on for ever")


def _take(turn: Turn, engine: Engine, share: float, step: int, tallies: Tallies, guard: SpikeGuard | None) -> None:
    """One turn: taken by all ranks, or, where a number is not finite on one of them, by none."""
    loss = sum(turn.losses.values(), start=torch.zeros((), device=engine.device))
    if _on_any_rank(not bool(torch.isfinite(loss.detach())))[0]:
        tallies.fail(f"the loss of {turn.player}", step)
    else:
        engine.backward(loss)
        tallies.note(turn, loss)
        if guard is not None:
            guard.note(turn, loss)
    if turn.step and engine.pending:
        norm = engine.step(share)
        if math.isfinite(norm):
            tallies.succeed(turn.player, norm)
        else:
            tallies.fail(f"the gradient of {turn.player}", step)


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
