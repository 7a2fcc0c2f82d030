"""The one training loop: whatever a learner holds, it steps, clips, schedules, measures, saves, stops and goes on."""

import math
from pathlib import Path

from worldloom.stages.deepspeed_engine import Engine, gather_gang
from worldloom.stages.learner import Batches, Learner
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Worker


def train(learner: Learner, training: TrainingSettings, batches: Batches, out: Path, worker: Worker, fingerprint: str) -> None:
    """Trains whatever `learner` holds; called again on the same `out`, it continues.

    Afterwards the learner's modules are on the CPU in fp32, with the masters that the optimizer kept.
    """
    gather_gang(worker)
    engines = {player.name: Engine(player, training, worker) for player in learner.players}
    step = 0
    for batch, _position in batches.after(None):
        share = learning_rate_share(training, step)
        for turn in learner.turns(batch, step):
            engines[turn.player].backward(sum(turn.losses.values()))  # type: ignore[arg-type]
            if turn.step:
                engines[turn.player].step(share)
        step += 1
        worker.report(step, training.steps, "steps", {})
        if step == training.steps:
            break
    for player in learner.players:
        masters = engines[player.name].masters()
        player.module.float().cpu().load_state_dict(masters, strict=False)


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
    fallen = 0.5 * (1 + math.cos(math.pi * progress)) if training.schedule == "cosine" else 1 - progress
    return training.final_share + (1 - training.final_share) * fallen
