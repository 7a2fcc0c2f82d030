"""The training loop, with a learner that has all there is to lose: two players, buffers, hidden generators and one of its own."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldloom.stages import checkpoint, metrics, spike_guard, tallies, training
from worldloom.stages.deepspeed_engine import _deepspeed, gather_gang
from worldloom.stages.learner import Batches, Mean, Player, Turn
from worldloom.stages.order import uniform
from worldloom.stages.training import Before, learning_rate_share, train, weight_decay_at
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Interrupted, Worker

FINGERPRINT = "f" * 12
GLOBAL_BATCH = 6


class Toy:
    """A small GAN: G makes 3 numbers of 5, D tells them from the truth; dropout draws from torch's hidden generator."""

    def __init__(self, precision: str = "fp32") -> None:
        generator = torch.Generator().manual_seed(3)
        self.generator = _mlp(5, 7, 3, generator)
        self.generator.register_buffer("average", torch.ones(3) / 3)
        self.critic = _mlp(3, 5, 1, generator)
        self.players = (
            Player("generator", self.generator, 1e-2, precision=precision, weight_decay=0.1),  # type: ignore[arg-type]
            Player("critic", self.critic, 2e-2, betas=(0.5, 0.9), precision=precision),  # type: ignore[arg-type]
        )
        self.noise = torch.Generator().manual_seed(11)
        self.poison: set[int] = set()
        self.seen: list[list[float]] = []

    def turns(self, batch: Tensor, step: int) -> Iterator[Turn]:
        self.seen.append(batch[:, 0].tolist())
        dtype = next(self.generator.parameters()).dtype
        truth = batch[:, :3].to(dtype)
        made = self.generator(nn.functional.dropout(batch.to(dtype), 0.1))
        made = made + 0.01 * torch.randn(made.shape[0], 1, generator=self.noise).to(dtype)
        with torch.no_grad():
            buffer = self.generator.get_buffer("average")
            buffer.lerp_(made.float().mean(0), 0.1)
        self.critic.requires_grad_(False)
        fooled = -self.critic(made).float().mean()
        self.critic.requires_grad_(True)
        near = (made - truth).float().square().mean() + (made.float().mean(0) - self.generator.get_buffer("average")).square().mean()
        if step in self.poison:
            near = near * float("nan")
        yield Turn(
            "generator", {"near": near, "fooled": 0.1 * fooled}, {"size": Mean(made.float().sum(), made.numel())}, {"rows": len(batch)}
        )
        wrong = self.critic(made.detach()).float().relu().mean() + (1 - self.critic(truth).float()).relu().mean()
        yield Turn("critic", {"critic": wrong})

    def state(self) -> dict[str, Any]:
        return {"noise": self.noise.get_state(), "nested": [1, {"two": torch.arange(2)}]}

    def load_state(self, state: dict[str, Any]) -> None:
        assert state["nested"][1]["two"].tolist() == [0, 1]
        self.noise.set_state(state["noise"])


class Regression:
    """A learner without randomness, the same for any number of ranks."""

    def __init__(self, precision: str = "fp32", average: float | None = None) -> None:
        self.module = _mlp(5, 7, 3, torch.Generator().manual_seed(3))
        self.players = (Player("model", self.module, 1e-2, precision=precision, average=average),)  # type: ignore[arg-type]

    def turns(self, batch: Tensor, step: int) -> Iterator[Turn]:
        rows = batch.to(next(self.module.parameters()).dtype)
        for part in (rows[:1], rows[1:]):  # unequal parts of a batch, as accumulation makes them
            loss = (self.module(part) - part[:, 2:]).float().square().sum() / (3 * len(rows))
            yield Turn("model", {"squares": loss}, step=part is not rows and len(part) == len(rows) - 1)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        assert state == {}


class Rows:
    """Rank r's rows of global batches of 6 rows of 5 numbers, counter-based."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.mine = slice(rank * GLOBAL_BATCH // world_size, (rank + 1) * GLOBAL_BATCH // world_size)

    def after(self, position: dict[str, Any] | None) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for number in count(0 if position is None else position["consumed"]):
            numbers = torch.from_numpy(uniform(5, number, torch.arange(5 * GLOBAL_BATCH).numpy())).float().view(GLOBAL_BATCH, 5)
            yield numbers[self.mine], {"consumed": number + 1}


def _mlp(inputs: int, width: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    module = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return module


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings(**{"run": "toy", "steps": 20, "warmup": 3, "log_every": 1, "save_seconds": 1e9, **changes})


def run(
    out: Path,
    learner: Any = None,
    batches: Batches | None = None,
    stop_at: int | None = None,
    worker: Mapping[str, Any] = {},
    **changes: Any,
) -> Any:
    """One start of a training; returns its learner. `stop_at`: the step after which somebody asks it to stop."""
    learner = learner or Toy()
    at = [0]
    worker = Worker(**worker, stopping=lambda: at[0] == stop_at, report=lambda done, total, unit, notes: at.__setitem__(0, done))
    train(learner, settings(**changes), batches or Rows(), out, worker, FINGERPRINT)
    return learner


def stopped(out: Path, at: int = 7, **changes: Any) -> None:
    with pytest.raises(Interrupted):
        run(out, stop_at=at, **changes)


def losses(out: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if "time" not in name and "second" not in name and name != "mfu"}
        for line in metrics.read(out / "logs" / "metrics.jsonl")
    ]


def parameters(learner: Toy) -> list[Tensor]:
    return [value for player in learner.players for value in player.module.state_dict().values()]


@pytest.mark.parametrize("zero", [0, 1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resuming_equals_not_stopping_to_the_last_bit(tmp_path: Path, precision: str, zero: int) -> None:
    whole = run(tmp_path / "whole", Toy(precision), worker={"zero": zero})
    stopped(tmp_path / "two", learner=Toy(precision), worker={"zero": zero})
    resumed = run(tmp_path / "two", Toy(precision), worker={"zero": zero})
    assert losses(tmp_path / "two") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "two")) == 20
    assert whole.seen[7:] == resumed.seen
    assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(resumed), strict=True))


def test_a_parameter_that_never_has_a_gradient_stands_in_no_ones_way(tmp_path: Path) -> None:
    def idle() -> Regression:
        learner = Regression()
        learner.module.register_parameter("idle", nn.Parameter(torch.ones(3)))
        return learner

    whole = run(tmp_path / "whole", idle(), steps=6, worker={"zero": 0})
    stopped(tmp_path / "two", 3, learner=idle(), steps=6, worker={"zero": 0})
    resumed = run(tmp_path / "two", idle(), steps=6, worker={"zero": 0})
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), resumed.module.parameters(), strict=True))


@pytest.mark.parametrize("left_out", ["position", "learner", "generators", "optimizer", "buffers", "step"])
def test_whatever_is_left_out_of_a_checkpoint_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str) -> None:
    run(tmp_path / "whole")
    stopped(tmp_path / "two")
    restore = checkpoint.Checkpoints.restore

    def forgetful(self: checkpoint.Checkpoints, engines: Any) -> checkpoint.Saved | None:
        hidden = torch.get_rng_state()
        saved = restore(self, engines)
        assert saved is not None
        fresh = Toy()
        if left_out == "generators":
            torch.set_rng_state(hidden)
        if left_out == "optimizer":
            engines["generator"].masters.torch_optimizer.state.clear()
        if left_out == "buffers":
            engines["generator"].module.get_buffer("average").fill_(1 / 3)
        return checkpoint.Saved(
            step=saved.step - (left_out == "step"),
            position={"consumed": 0} if left_out == "position" else saved.position,
            learner=fresh.state() if left_out == "learner" else saved.learner,
            tallies=saved.tallies,
        )

    monkeypatch.setattr(checkpoint.Checkpoints, "restore", forgetful)
    run(tmp_path / "two")
    assert losses(tmp_path / "two") != losses(tmp_path / "whole")


def test_saving_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "seldom", steps=5)
    run(tmp_path / "often", steps=5, save_every=1)
    assert losses(tmp_path / "seldom") == losses(tmp_path / "often")


def test_means_over_a_window_go_on_where_they_stopped(tmp_path: Path) -> None:
    run(tmp_path / "whole", log_every=4)
    stopped(tmp_path / "two", at=7, log_every=4)
    run(tmp_path / "two", log_every=4)
    assert losses(tmp_path / "two") == losses(tmp_path / "whole")
    assert [line["step"] for line in losses(tmp_path / "two")] == [4, 8, 12, 16, 20]
    assert losses(tmp_path / "two")[-1]["rows"] == 20 * GLOBAL_BATCH


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_mfu_is_the_share_of_the_devices_rate_that_the_learners_operations_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    class Counted(Regression):
        def turns(self, batch: Tensor, step: int) -> Iterator[Turn]:
            return (turn._replace(counts={"operations": 1_000}) for turn in super().turns(batch, step))

    seconds = count(step=0.25)  # the clock is read at the beginning and at the end of a step, and once between steps
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(training, "product_rate", lambda logs, asked: {"fp32": 40_000.0, "bf16": 80_000.0}[asked])
    run(tmp_path, Counted(precision), steps=6, log_every=3)
    lines = metrics.read(tmp_path / "logs" / "metrics.jsonl")
    # Two turns of 1,000 operations in a quarter of a second.
    assert [line["operations_per_second"] for line in lines] == [8_000.0, 8_000.0]
    assert [line["mfu"] for line in lines] == [0.2 if precision == "fp32" else 0.1] * 2


def test_a_finished_training_started_again_does_nothing_and_has_its_weights(tmp_path: Path) -> None:
    first = run(tmp_path, Toy("bf16"), steps=5)
    again = run(tmp_path, Toy("bf16"), steps=5)
    assert again.seen == []
    assert all(torch.equal(a, b) for a, b in zip(parameters(first), parameters(again), strict=True))
    assert {p.dtype for p in again.generator.parameters()} == {torch.float32}
    # Masters, not what bfloat16 makes of them.
    assert not torch.equal(again.generator[0].weight, again.generator[0].weight.bfloat16().float())


def test_buffers_keep_their_format_where_parameters_are_bfloat16(tmp_path: Path) -> None:
    learner = Toy("bf16")
    formats: set[torch.dtype] = set()
    turns = learner.turns

    def watched(batch: Tensor, step: int) -> Iterator[Turn]:
        formats.update({learner.generator.get_buffer("average").dtype, learner.generator[0].weight.dtype})
        return turns(batch, step)

    learner.turns = watched  # type: ignore[method-assign]
    run(tmp_path, learner, steps=4)
    assert formats == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_step_is_the_step_of_plain_torch(tmp_path: Path, zero: int) -> None:
    """Clipping, weight decay on matrices only, two learning rates and the schedule, against torch.optim.AdamW."""
    training = settings(steps=6, clip=0.5)
    # ZeRO 3 would keep parameters as small as these on every rank.
    block = {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if zero == 3 else {}
    ours = run(tmp_path, worker={"zero": zero}, steps=6, clip=0.5, deepspeed=block)
    plain = Toy()
    optimizers = {}
    for player in plain.players:
        matrices, vectors = ([p for p in player.module.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
        groups = [{"params": matrices, "weight_decay": player.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizers[player.name] = torch.optim.AdamW(groups, lr=player.learning_rate, betas=player.betas)
    torch.manual_seed(0)
    for step, (batch, _) in zip(range(6), Rows().after(None), strict=False):
        for turn in plain.turns(batch, step):
            optimizer = optimizers[turn.player]
            optimizer.zero_grad()
            sum(turn.losses.values()).backward()  # type: ignore[union-attr]
            player = next(player for player in plain.players if player.name == turn.player)
            nn.utils.clip_grad_norm_(player.module.parameters(), 0.5)
            for group in optimizer.param_groups:
                group["lr"] = player.learning_rate * learning_rate_share(training, step)
            optimizer.step()
    for a, b in zip(parameters(ours), parameters(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    rows = torch.ones(2, 5)
    torch.testing.assert_close(ours.generator(rows), plain.generator(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_turn_whose_loss_is_not_finite_is_left_out(tmp_path: Path, precision: str, zero: int) -> None:
    learner = Toy(precision)
    learner.poison = {2, 3}
    run(tmp_path, learner, steps=5, worker={"zero": zero})
    assert all(bool(torch.isfinite(value).all()) for value in parameters(learner))
    assert [line.get("skipped") for line in losses(tmp_path)] == [None, None, 1, 2, 2]


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_leaves_the_parameters_alone(tmp_path: Path, precision: str, zero: int) -> None:
    class Steep(Regression):
        def turns(self, batch: Tensor, step: int) -> Iterator[Turn]:
            # At zero the root is finite and its slope is not.
            flat = (self.module(batch.to(self.module[0].weight.dtype)).float() * 0).sum()
            yield Turn("model", {"root": flat.sqrt() if step == 1 else self.module[0].weight.float().square().sum()})

    learner = Steep(precision)
    run(tmp_path, learner, steps=3, worker={"zero": zero})
    assert losses(tmp_path)[-1]["skipped"] == 1
    assert all(bool(torch.isfinite(p).all()) for p in learner.module.parameters())
    assert losses(tmp_path)[2]["loss"] < losses(tmp_path)[0]["loss"]


class InParts(Regression):
    """A batch in three turns; the loss of turn `poison[step]` is no number at that step."""

    def __init__(self, poison: Mapping[int, int], precision: str = "fp32") -> None:
        super().__init__(precision)
        self.poison = poison

    def turns(self, batch: Tensor, step: int) -> Iterator[Turn]:
        rows = batch.to(next(self.module.parameters()).dtype)
        for number, part in enumerate(rows.split([1, 3, 2])):
            loss = (self.module(part) - part[:, 2:]).float().square().sum() / (3 * len(rows))
            loss = loss * (math.inf if self.poison.get(step) == number else 1.0)
            yield Turn("model", {"squares": loss}, {"mean": Mean(loss, 1)}, {"rows": len(part)}, step=number == 2)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["the first", "the second", "the last"])
@pytest.mark.parametrize(("precision", "zero"), [("fp32", 0), ("bf16", 0), ("bf16", 1), ("bf16", 2), ("fp32", 3)])
def test_a_part_whose_loss_is_not_finite_leaves_out_the_whole_batch(tmp_path: Path, precision: str, zero: int, part: int) -> None:
    same: dict[str, Any] = {"steps": 4, "schedule": "constant", "warmup": 0, "worker": {"zero": zero}}
    poisoned = run(tmp_path / "poisoned", InParts({1: part}, precision), **same)
    without = run(tmp_path / "without", InParts({}, precision), Leaping(set(), without={2}), **same | {"steps": 3})
    assert all(torch.equal(a, b) for a, b in zip(poisoned.module.parameters(), without.module.parameters(), strict=True))
    first, second, third, fourth = losses(tmp_path / "poisoned")
    assert [line.get("skipped") for line in (first, second, third, fourth)] == [None, 1, 1, 1]
    assert "loss" not in second and "mean" not in second
    assert [line["loss"] for line in (first, third, fourth)] == [line["loss"] for line in losses(tmp_path / "without")]
    assert fourth["rows"] == 3 * GLOBAL_BATCH


def test_a_part_that_is_always_without_numbers_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(tallies.Diverged, match="the loss of model was not finite 20 times in a row, last at step 19"):
        run(tmp_path, InParts(dict.fromkeys(range(100), 1)), steps=30)


def test_a_training_that_stays_without_numbers_is_given_up(tmp_path: Path) -> None:
    learner = Toy()
    learner.poison = set(range(100))
    learner.turns = lambda batch, step: iter([next(Toy.turns(learner, batch, step))])  # type: ignore[method-assign]
    with pytest.raises(tallies.Diverged, match="the loss of generator was not finite 20 times in a row, last at step 19"):
        run(tmp_path, learner, steps=30)


def test_parts_of_a_batch_add_up(tmp_path: Path) -> None:
    """One row and five others, then a step: the same as six at once."""
    parts = run(tmp_path / "parts", Regression(), steps=5)
    whole = Regression()
    optimizer = torch.optim.AdamW(whole.module.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for step, (batch, _) in zip(range(5), Rows().after(None), strict=False):
        optimizer.zero_grad()
        (whole.module(batch) - batch[:, 2:]).square().mean().backward()
        nn.utils.clip_grad_norm_(whole.module.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-2 * learning_rate_share(settings(steps=5), step)
        optimizer.step()
    for a, b in zip(parts.module.parameters(), whole.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_share_of_the_learning_rate_is_that_of_a_group_of_its_own(tmp_path: Path, zero: int) -> None:
    shares = {"0.weight": 0.5, "0.bias": 0.25, "2.bias": 0.25}

    def slow() -> Regression:
        learner = Regression()
        learner.players = (learner.players[0]._replace(shares=shares),)
        return learner

    ours = run(tmp_path / "whole", slow(), steps=6, worker={"zero": zero})
    stopped(tmp_path / "two", 3, learner=slow(), steps=6, worker={"zero": zero})
    resumed = run(tmp_path / "two", slow(), steps=6, worker={"zero": zero})
    assert all(torch.equal(a, b) for a, b in zip(ours.module.parameters(), resumed.module.parameters(), strict=True))
    plain = Regression()
    groups = [{"params": [parameter], "share": shares.get(name, 1.0)} for name, parameter in plain.module.named_parameters()]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for step, (batch, _) in zip(range(6), Rows().after(None), strict=False):
        optimizer.zero_grad()
        (plain.module(batch) - batch[:, 2:]).square().mean().backward()
        nn.utils.clip_grad_norm_(plain.module.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * learning_rate_share(settings(steps=6), step) * group["share"]
        optimizer.step()
    for a, b in zip(ours.module.parameters(), plain.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_killed_anywhere_it_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    out = tmp_path / "toy"
    for _ in range(2):
        process = _start([{"out": str(out), "kind": "toy", "steps": 60, "save_every": 1}])
        until = _newest_step(out) + 12
        while process.poll() is None and _newest_step(out) < until:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    run(out, steps=60, save_every=1)
    run(tmp_path / "whole", steps=60)
    assert losses(out) == losses(tmp_path / "whole")


# Trainings of two ranks, one after the other in the same two processes.
TOGETHER: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "averaged": {"average": 0.7},
    "elastic": {"stop_at": 3},
    **{f"zero-{zero}": {"worker": {"zero": zero}} for zero in range(4)},
    **{f"offload-{zero}": {"worker": {"zero": zero, "offload": "cpu"}} for zero in (1, 2, 3)},
}


@pytest.fixture(scope="module")
def together(gang: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of `TOGETHER`, each with the weights that were left."""
    folder = tmp_path_factory.mktemp("together")
    jobs = [{"out": str(folder / name), "kind": "regression", "steps": 8, **changes} for name, changes in TOGETHER.items()]
    gang(__file__, json.dumps(jobs))
    return folder


class Leaping:
    """Rows without those of some numbers, and thirty times as large at others."""

    def __init__(self, large: set[int], without: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.large, self.without = large, without

    def after(self, position: dict[str, Any] | None) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for batch, behind in Rows().after(position):
            if behind["consumed"] not in self.without:
                yield batch * (30 if behind["consumed"] in self.large else 1), behind


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(spike_guard, "LEAST", 8)
    return {"steps": 30, "spike_guard": True, "save_every": 4}


def test_a_loss_that_leaps_sends_the_training_back_and_past_the_batches(tmp_path: Path, watchful: dict[str, Any]) -> None:
    spiked = run(tmp_path / "spiked", Regression(), Leaping({15, 16, 18}), **watchful)
    calm = run(tmp_path / "calm", Regression(), Leaping(set(), without={15, 16, 18}), **watchful)
    assert all(torch.equal(a, b) for a, b in zip(spiked.module.parameters(), calm.module.parameters(), strict=True))
    lines = losses(tmp_path / "spiked")
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[11].get("roll_backs") is None and {line["roll_backs"] for line in lines[12:]} == {1}
    assert [{**line, "roll_backs": 1} for line in losses(tmp_path / "calm")[12:]] == lines[12:]
    assert len(list((tmp_path / "spiked" / "checkpoints").glob("step-00000016.*.abandoned"))) == 1


def test_each_of_several_trainings_counts_its_own_roll_backs(tmp_path: Path, watchful: dict[str, Any]) -> None:
    def next_of(learner: Regression, batches: Batches, before: Before) -> Before:
        return train(learner, settings(**watchful), batches, tmp_path, Worker(), FINGERPRINT, before)

    first = next_of(Regression(), Leaping({15, 16, 18}), Before())
    next_of(Regression(), Leaping({55, 56, 58}), first)
    lines = losses(tmp_path)
    assert {(line.get("roll_backs"), line.get("roll_backs/stage-1")) for line in lines[:30]} == {(None, None), (1, None)}
    assert (lines[-1]["roll_backs"], lines[-1]["roll_backs/stage-1"]) == (1, 1)


@pytest.mark.parametrize(("precision", "zero"), [("fp32", 0), ("bf16", 1), ("fp32", 3)])
def test_it_goes_back_as_far_as_to_the_first_weights(tmp_path: Path, watchful: dict[str, Any], precision: str, zero: int) -> None:
    changes = {**watchful, "steps": 20, "save_every": None, "worker": {"zero": zero}}
    spiked = run(tmp_path / "spiked", Regression(precision), Leaping({15, 16, 18}), **changes)
    calm = run(tmp_path / "calm", Regression(precision), Leaping(set(), without={15, 16, 18}), **changes)
    assert all(torch.equal(a, b) for a, b in zip(spiked.module.parameters(), calm.module.parameters(), strict=True))


@pytest.mark.parametrize("at", [13, 17, 20], ids=["before it leaps", "between leaps", "after going back"])
def test_a_roll_back_survives_a_stop(tmp_path: Path, watchful: dict[str, Any], at: int) -> None:
    whole = run(tmp_path / "whole", Regression(), Leaping({15, 16, 18}), **watchful)
    stopped(tmp_path / "two", at, learner=Regression(), batches=Leaping({15, 16, 18}), **watchful)
    two = run(tmp_path / "two", Regression(), Leaping({15, 16, 18}), **watchful)
    # Where it goes back to depends on when it saved, what it learns does not.
    for line, other in zip(losses(tmp_path / "two"), losses(tmp_path / "whole"), strict=True):
        assert {**line, "roll_backs": 1} == {**other, "roll_backs": 1}
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), two.module.parameters(), strict=True))


def test_a_branch_that_was_left_is_never_gone_on_with(tmp_path: Path, watchful: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when the roll-back is on the disk, before anything else is."""
    monkeypatch.setattr(checkpoint.Checkpoints, "_abandon", lambda self: None)
    monkeypatch.setattr(checkpoint.Checkpoints, "load", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Regression(), Leaping({15, 16, 18}), **watchful)
    monkeypatch.undo()
    monkeypatch.setattr(spike_guard, "LEAST", 8)
    run(tmp_path / "killed", Regression(), Leaping({15, 16, 18}), **watchful)
    run(tmp_path / "whole", Regression(), Leaping({15, 16, 18}), **watchful)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_after_two_roll_backs_a_training_is_given_up(tmp_path: Path, watchful: dict[str, Any]) -> None:
    with pytest.raises(tallies.Diverged, match=r"loss leapt 3 times between steps .* after 2 roll-backs .*look at the data at"):
        run(tmp_path, Regression(), Leaping({*range(15, 40)}), **watchful)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_two_ranks_learn_what_one_learns(tmp_path: Path, together: Path, precision: str, tolerance: float) -> None:
    run(tmp_path, Regression(precision), steps=8)
    for one, two in zip(losses(tmp_path), losses(together / precision), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=tolerance)


@pytest.mark.parametrize("name", [name for name in TOGETHER if name.startswith(("zero", "offload"))])
def test_every_way_of_sharing_leaves_the_same_weights(together: Path, name: str) -> None:
    expected, got = load_file(together / "fp32" / "weights"), load_file(together / name / "weights")
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-5, atol=1e-5)


def test_more_or_fewer_workers_go_on_with_the_same_samples(gang: Callable[..., None], tmp_path: Path, together: Path) -> None:
    """Two ranks up to step 3, one up to 6, two again to the end, in windows of 8 steps."""
    out = tmp_path / "elastic"
    shutil.copytree(together / "elastic", out)
    stopped(out, at=6, learner=Regression(), steps=8)
    gang(__file__, json.dumps([{"out": str(out), "kind": "regression", "steps": 8}]))
    run(tmp_path / "whole", Regression(), steps=8)
    for one, changed in zip(losses(tmp_path / "whole"), losses(out), strict=True):
        assert changed == pytest.approx(one, rel=1e-5)


def test_what_ranks_counted_since_the_last_line_is_not_lost_with_them(gang: Callable[..., None], tmp_path: Path) -> None:
    gang(__file__, json.dumps([{"out": str(tmp_path / "fewer"), "kind": "regression", "steps": 8, "stop_at": 3, "log_every": 8}]))
    run(tmp_path / "fewer", Regression(), steps=8, log_every=8)
    run(tmp_path / "whole", Regression(), steps=8, log_every=8)
    assert losses(tmp_path / "fewer") == [pytest.approx(line, rel=1e-5) for line in losses(tmp_path / "whole")]


@pytest.mark.parametrize("zero", [0, 1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_averages_of_the_weights_are_their_weighted_sum_and_what_is_left(tmp_path: Path, precision: str, zero: int) -> None:
    path = []
    for steps in range(7):
        plain = Regression(precision)
        if steps:
            run(tmp_path / f"{steps}", plain, steps=steps, schedule="constant", worker={"zero": zero})
        elif precision == "bf16":
            plain.module.bfloat16().float()
        path.append([p.detach().double() for p in plain.module.parameters()])
    averaged = Regression(precision, average=0.3)
    stopped(tmp_path / "averaged", at=4, learner=Regression(precision, average=0.3), steps=6, schedule="constant", worker={"zero": zero})
    run(tmp_path / "averaged", averaged, steps=6, schedule="constant", worker={"zero": zero})
    rates = [min(0.3, (1 + t) / (10 + t)) for t in range(6)]
    shares = [math.prod(rates)] + [(1 - rates[t]) * math.prod(rates[t + 1 :]) for t in range(6)]
    assert sum(shares) == pytest.approx(1)
    for number, value in enumerate(averaged.module.parameters()):
        expected = sum(share * weights[number] for share, weights in zip(shares, path, strict=True))
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_averages_of_two_ranks_are_those_of_one(tmp_path: Path, together: Path) -> None:
    one = run(tmp_path, Regression(average=0.7), steps=8)
    for key, value in load_file(together / "averaged" / "weights").items():
        torch.testing.assert_close(value, one.module.state_dict()[key], rtol=1e-5, atol=1e-6)
    plain = load_file(together / "fp32" / "weights")
    assert not torch.allclose(plain["0.weight"], one.module[0].weight, atol=1e-4)


def test_a_rank_that_hangs_ends_all_of_them_and_says_where(gang: Callable[..., None], tmp_path: Path) -> None:
    gang(__file__, json.dumps([{"out": str(tmp_path), "kind": "stuck", "steps": 8, "hang_seconds": 4.0, "save_every": 1}]), expected=1)
    assert "in _sleep" in (tmp_path / "logs" / "hung-rank-1.txt").read_text()
    assert _newest_step(tmp_path) == 3


def test_a_rank_may_end_while_its_gang_is_still_summing(gang: Callable[..., None]) -> None:
    gang(__file__, "ends at once")


def _end_at_once() -> None:
    gather_gang(Worker(rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])))
    _deepspeed()
    from deepspeed.utils import groups

    for group in [None, groups._clone_world_group()] * 20:  # the gang's own, and the one in which DeepSpeed sums
        tensor = torch.ones(300_000)
        tensor.known_to = "Python"  # type: ignore[attr-defined]
        dist.all_reduce(tensor, group=group, async_op=True)


def _sleep(batch: Tensor, step: int) -> Iterator[Turn]:
    time.sleep(1_000)
    yield from ()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("wsd", [0.5, 1, 1, 1, 1, 1, 1, 0.775, 0.4375, 0.1]),
        ("cosine", [0.5, 1, 1, 0.9554, 0.8305, 0.6501, 0.4499, 0.2695, 0.1446, 0.1]),
    ],
)
def test_the_learning_rate_warms_up_and_falls_as_the_schedule_says(schedule: str, expected: list[float]) -> None:
    training = settings(steps=10, warmup=2, schedule=schedule, decay_share=0.4, final_share=0.1)
    shares = [learning_rate_share(training, step) for step in range(10)]
    if schedule == "wsd":
        assert shares[:6] == expected[:6] and shares[-1] == pytest.approx(0.1)
        assert shares[6:] == pytest.approx([1.0, 0.7, 0.4, 0.1])
    else:
        assert shares == pytest.approx(expected, abs=1e-4)


class Resting:
    """A loss that pulls at nothing, so that weight decay alone moves the weights."""

    def __init__(self, first: float, last: float | None, precision: str) -> None:
        self.module = nn.Linear(3, 2)
        with torch.no_grad():
            self.module.weight.copy_(torch.arange(1.0, 7).view(2, 3))
            self.module.bias.fill_(1)
        self.players = (
            Player("model", self.module, 0.1, weight_decay=first, last_weight_decay=last, precision=precision),  # type: ignore[arg-type]
        )

    def turns(self, batch: Tensor, step: int) -> Iterator[Turn]:
        yield Turn("model", {"none": 0 * self.module(batch[:, :3].to(self.module.weight.dtype)).float().sum()})

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        assert state == {}


@pytest.mark.parametrize(
    ("first", "last", "precision", "zero"),
    [(0.04, 0.4, "fp32", 0), (0.0, 0.4, "bf16", 0), (0.3, 0.0, "fp32", 2), (0.2, None, "bf16", 0), (0.2, None, "bf16", 3)],
)
def test_weights_shrink_by_a_decay_that_moves_along_half_a_cosine(
    tmp_path: Path, first: float, last: float | None, precision: str, zero: int
) -> None:
    found = run(tmp_path, Resting(first, last, precision), steps=8, worker={"zero": zero}, schedule="constant", warmup=0)
    decays = [first if last is None else (first + last) / 2 - (last - first) / 2 * math.cos(math.pi * t / 8) for t in range(8)]
    expected = torch.arange(1.0, 7).view(2, 3) * math.prod(1 - 0.1 * decay for decay in decays)
    torch.testing.assert_close(found.module.weight.detach(), expected, rtol=1e-5, atol=0)
    assert found.module.bias.tolist() == [1, 1]
    logged = [line.get("weight_decay") for line in losses(tmp_path)]
    assert logged == ([None] * 8 if last is None else pytest.approx(decays))
    assert weight_decay_at(found.players[0], 8, 8) == pytest.approx(first if last is None else last)


@pytest.mark.parametrize(("precision", "zero"), [("fp32", 0), ("bf16", 2)])
def test_a_moving_weight_decay_goes_on_where_it_stopped(tmp_path: Path, precision: str, zero: int) -> None:
    def moving() -> Toy:
        learner = Toy(precision)
        learner.players = (learner.players[0]._replace(last_weight_decay=3.0), learner.players[1])
        return learner

    whole = run(tmp_path / "whole", moving(), worker={"zero": zero})
    stopped(tmp_path / "two", learner=moving(), worker={"zero": zero})
    resumed = run(tmp_path / "two", moving(), worker={"zero": zero})
    assert losses(tmp_path / "two") == losses(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(resumed), strict=True))
    steady = run(tmp_path / "steady", Toy(precision), worker={"zero": zero})
    assert not torch.equal(parameters(steady)[0], parameters(whole)[0])


def _newest_step(out: Path) -> int:
    return max((int(path.name[5:]) for path in (out / "checkpoints").glob("step-*")), default=0)


def _start(jobs: list[dict[str, Any]], **environment: Any) -> "subprocess.Popen[bytes]":
    """Trainings in a process of their own."""
    command = [sys.executable, "-W", "error", __file__, json.dumps(jobs)]
    return subprocess.Popen(command, env={**os.environ, **{name: str(value) for name, value in environment.items()}})


def _job(
    rank: int, world_size: int, out: str, kind: str, worker: Mapping[str, Any] = {}, stop_at: int | None = None, **changes: Any
) -> None:
    learner: Any = Toy() if kind == "toy" else Regression(changes.pop("precision", "fp32"), changes.pop("average", None))
    if kind == "stuck" and rank == 1:
        turns = learner.turns
        learner.turns = lambda batch, step: _sleep(batch, step) if step == 3 else turns(batch, step)
    with suppress(Interrupted):
        run(Path(out), learner, Rows(rank, world_size), stop_at, {"rank": rank, "world_size": world_size, **worker}, **changes)
    if rank == 0 and kind != "toy":
        save_file({name: value.detach().clone() for name, value in learner.module.state_dict().items()}, Path(out) / "weights")


if __name__ == "__main__" and sys.argv[1] == "ends at once":
    _end_at_once()
elif __name__ == "__main__":
    for job in json.loads(sys.argv[1]):
        _job(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), **job)
