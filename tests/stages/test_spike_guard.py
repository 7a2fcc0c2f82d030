"""What counts as a spike of a loss, and what does not."""

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
    see(guard, 50, 1.6)
    see(guard, 51, 1.02)
    see(guard, 52, 1.7)
    with pytest.raises(Spike) as spike:
        see(guard, 50 + WITHIN - 1, 1.8)
    assert (spike.value.name, spike.value.first, spike.value.last) == ("loss", 50, 69)
    assert spike.value.positions == [{"at": 50}, {"at": 52}, {"at": 69}]


def test_a_rare_stream_is_watched_for_itself():
    guard = calm()
    see(guard, 50, 1.0, frame=4.0)
    see(guard, 51, 1.0, frame=4.0)
    with pytest.raises(Spike, match="loss/frame"):
        see(guard, 52, 1.0, frame=4.0)


@pytest.mark.parametrize("steps", [(50, 52, 50 + WITHIN), (50, 52)], ids=["too far apart", "too few"])
def test_leaps_alone_are_no_spike(steps):
    guard = calm()
    for step in steps:
        see(guard, step, 5.0)


def test_neither_small_leaps_nor_wide_noise_nor_the_first_steps_are():
    guard = calm()
    for step in range(50, 56):
        see(guard, step, 1.45)  # far outside the deviations, below 1.5 times the median
    noisy = SpikeGuard()
    for step in range(90):
        see(noisy, step, 1.0 + (step % 5))
    calm(steps=LEAST - 1).note(Turn("model", {}), torch.tensor(9.0))
    early = calm(steps=LEAST - 1)
    for step in range(49, 50):
        see(early, step, 9.0)
    assert early.state()["leaps"] == []


def test_what_it_has_seen_goes_on_from_its_state():
    guard = calm()
    see(guard, 50, 1.6)
    again = SpikeGuard(guard.state())
    see(again, 51, 1.6)
    with pytest.raises(Spike):
        see(again, 52, 1.6)
