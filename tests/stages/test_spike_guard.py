"""What counts as a spike of a loss, and what does not."""

import numpy as np
import pytest
import torch

from worldloom.stages.deepspeed_engine import gather_gang
from worldloom.stages.learner import Mean, Turn
from worldloom.stages.spike_guard import LEAST, WITHIN, Spike, SpikeGuard
from worldloom.stages.worker import Worker


@pytest.fixture(autouse=True)
def gang():
    gather_gang(Worker())


def see(guard, step, loss, **streams):
    metrics = {f"loss/{name}": Mean(torch.tensor(2 * value), 2) for name, value in streams.items()}
    guard.note(Turn("model", {}, metrics), torch.tensor(loss))
    guard.end_step(step, {"at": step})


def calm(steps=LEAST, guard=None):
    guard = guard or SpikeGuard()
    for step in range(steps):
        see(guard, step, 1.0 + 0.01 * (step % 7), frame=2.0)
    return guard


def test_three_leaps_in_twenty_steps_are_a_spike_and_name_their_batches():
    guard = calm()
    see(guard, LEAST, 1.6)
    see(guard, LEAST + 1, 1.02)
    see(guard, LEAST + 2, 1.7)
    with pytest.raises(Spike) as spike:
        see(guard, LEAST + WITHIN - 1, 1.8)
    assert (spike.value.name, spike.value.first, spike.value.last) == ("loss", LEAST, LEAST + WITHIN - 1)
    assert spike.value.positions == [{"at": LEAST}, {"at": LEAST + 2}, {"at": LEAST + WITHIN - 1}]


def test_a_rare_stream_is_watched_for_itself():
    guard = calm()
    see(guard, LEAST, 1.0, frame=4.0)
    see(guard, LEAST + 1, 1.0, frame=4.0)
    with pytest.raises(Spike, match="loss/frame"):
        see(guard, LEAST + 2, 1.0, frame=4.0)


@pytest.mark.parametrize("steps", [(LEAST, LEAST + 2, LEAST + WITHIN), (LEAST, LEAST + 2)], ids=["too far apart", "too few"])
def test_leaps_alone_are_no_spike(steps):
    guard = calm()
    for step in steps:
        see(guard, step, 5.0)


def test_neither_small_leaps_nor_wide_noise_nor_the_first_steps_are():
    guard = calm()
    for step in range(LEAST, LEAST + 6):
        see(guard, step, 1.45)  # far outside the deviations, below 1.5 times the median
    noisy = SpikeGuard()
    for step in range(LEAST + 40):
        see(noisy, step, 1.0 + (step % 5))
    early = calm(steps=LEAST - 1)
    see(early, LEAST - 1, 9.0)
    assert early.state()["leaps"] == []


def test_what_it_has_seen_goes_on_from_its_state():
    guard = calm()
    see(guard, LEAST, 1.6)
    again = SpikeGuard(guard.state())
    see(again, LEAST + 1, 1.6)
    with pytest.raises(Spike):
        see(again, LEAST + 2, 1.6)


@pytest.mark.parametrize("share", [0.15, 0.02, 0.002], ids=["often", "now and then", "hardly ever"])
def test_labels_that_are_rare_are_no_spike(share):
    """Of 64 labels most say nothing and cost next to nothing; one that says something costs 4 to 8 nats."""
    for seed in range(3):
        random = np.random.default_rng(seed)
        rare = random.binomial(64, share / 64, 800)
        guard = SpikeGuard()
        for step, events in enumerate(rare):
            see(guard, step, 1.0, end=0.002 + 0.0002 * random.standard_normal() + events * random.uniform(4, 8) / 64)


def test_a_stream_of_rare_labels_that_leaps_higher_than_they_do_is_a_spike():
    guard = SpikeGuard()
    for step in range(LEAST + 50):
        see(guard, step, 1.0, end=0.1 if step % 9 == 4 else 0.002)
    see(guard, LEAST + 50, 1.0, end=0.4)
    see(guard, LEAST + 51, 1.0, end=0.4)
    with pytest.raises(Spike, match="loss/end"):
        see(guard, LEAST + 52, 1.0, end=0.4)


def test_a_loss_that_climbs_step_by_step_is_a_spike():
    guard = calm()
    with pytest.raises(Spike):
        for step in range(WITHIN):
            see(guard, LEAST + step, 1.0 + 0.1 * step)


def test_what_leapt_alone_must_be_surpassed_by_half_for_long():
    guard = calm()
    for step in range(LEAST, LEAST + 500, 2):
        see(guard, step, 3.0 if step == LEAST else 1.0)
        see(guard, step + 1, 1.01)
    for step in range(LEAST + 500, LEAST + 504):
        see(guard, step, 4.4)
    with pytest.raises(Spike):
        for step in range(LEAST + 504, LEAST + 507):
            see(guard, step, 4.6)


def test_a_part_of_the_loss_that_is_not_judged_may_leap():
    guard = calm()
    for step in range(LEAST, LEAST + 5):
        guard.note(Turn("model", {}, unjudged=torch.tensor(3.0)), torch.tensor(4.0))
        guard.end_step(step, {"at": step})
    with pytest.raises(Spike):
        for step in range(LEAST + 5, LEAST + 9):
            see(guard, step, 4.0)
