"""The one training loop: whatever a learner holds, it steps, clips, schedules, measures, saves, stops and goes on."""

import math
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from worldloom.stages import disk
from worldloom.stages.checkpoint import Checkpoints
from worldloom.stages.deepspeed_engine import Engine, gather_gang
from worldloom.stages.learner import Batches, Learner, Turn
from worldloom.stages.metrics import Metrics
from worldloom.stages.numerics import numerics_of_this_process
from worldloom.stages.tallies import Tallies
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Interrupted, Worker


def train(learner: Learner, training: TrainingSettings, batches: Batches, out: Path, worker: Worker, fingerprint: str) -> None:
    """Trains whatever `learner` holds; called again on the same `out`, it continues. Every rank calls it.

    Afterwards the learner's modules are on the CPU in fp32, with the masters that the optimizer kept. Raises Interrupted, after a
    checkpoint, when the run was asked to stop, and Diverged.
    """
    with _reproducible(worker.threads, training.seed + worker.rank):
        gather_gang(worker)
        engines = {player.name: Engine(player, training, worker) for player in learner.players}
        numerics = numerics_of_this_process(worker.threads, "cuda" if torch.cuda.is_available() else "cpu")
        numerics |= {"zero": worker.zero, **{f"precision.{player.name}": player.precision for player in learner.players}}
        checkpoints = Checkpoints(out, worker, fingerprint, numerics, training.keep)
        with checkpoints.alone():
            saved = checkpoints.restore(engines)
            if saved is not None:
                learner.load_state(saved.learner)
            step, position = (saved.step, saved.position) if saved is not None else (0, None)
            tallies = Tallies(saved.tallies if saved is not None else None)
            metrics = None
            if worker.rank == 0:
                disk.write_file(out / "logs" / "numerics.json", disk.canonical_json(numerics))
                metrics = Metrics(out / "logs", step)
            try:
                _steps(learner, training, batches, worker, engines, checkpoints, tallies, metrics, step, position)
            finally:
                if metrics is not None:
                    metrics.close()
        for engine in engines.values():
            engine.release()


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


def _steps(
    learner: Learner,
    training: TrainingSettings,
    batches: Batches,
    worker: Worker,
    engines: Mapping[str, Engine],
    checkpoints: Checkpoints,
    tallies: Tallies,
    metrics: Metrics | None,
    step: int,
    position: dict[str, Any] | None,
) -> None:
    """The steps from `step` to the last, with checkpoints between and behind them."""
    if step == training.steps:
        return
    peak = max(player.learning_rate for player in learner.players)
    saved_at = time.monotonic()
    notes: dict[str, float] = {}
    for batch, after in batches.after(position):
        began = time.monotonic()
        share = learning_rate_share(training, step)
        for turn in learner.turns(batch, step):
            _take(turn, engines[turn.player], share, step, tallies)
        step += 1
        done = step == training.steps
        tallies.end_step(time.monotonic() - began)
        if step % training.log_every == 0 or done:
            values = {**tallies.close_window(), "learning_rate": peak * share}
            notes = {name: value for name, value in values.items() if name == "loss" or name.endswith("_per_second")}
            if metrics is not None:
                metrics.write(step, tallies.seconds, values)
        worker.report(step, training.steps, "steps", notes)
        due = time.monotonic() - saved_at >= training.save_seconds or (training.save_every is not None and step % training.save_every == 0)
        save, stop = _on_any_rank(due, worker.stopping())
        if save or stop or done:
            checkpoints.save(engines, step, after, learner.state(), tallies.state())
            saved_at = time.monotonic()
        if done:
            return
        if stop:
            raise Interrupted
    raise AssertionError(f"the batches ended after {step} of {training.steps} steps; they must go on for ever")


def _take(turn: Turn, engine: Engine, share: float, step: int, tallies: Tallies) -> None:
    """One turn: taken by all ranks, or, where a number is not finite on one of them, by none."""
    loss = sum(turn.losses.values(), start=torch.zeros((), device=engine.device))
    if _on_any_rank(not bool(torch.isfinite(loss.detach())))[0]:
        tallies.fail(f"the loss of {turn.player}", step)
    else:
        engine.backward(loss)
        tallies.note(turn, loss)
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
