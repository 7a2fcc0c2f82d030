import os
import signal
import threading

from worldloom.pipeline import stop
from worldloom.pipeline.interrupts import interruptible
from worldloom.pipeline.stop import Stop, StopFiles


def test_workers_elsewhere_see_a_stop_through_its_file(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])
    asked, stopping = Stop(tmp_path / "stop"), StopFiles(tmp_path / "other", tmp_path / "stop")
    assert not stopping() and not asked.is_set()
    asked.set()
    assert asked.is_set()
    assert not stopping()  # it has looked just now
    now[0] += 2 * stop.LOOK_EVERY
    assert stopping()
    (tmp_path / "stop").unlink()
    now[0] += 10 * stop.LOOK_EVERY
    assert stopping()  # once and for all


def test_a_signal_asks_to_stop_and_afterwards_signals_are_as_before(tmp_path):
    asked, said = Stop(tmp_path / "stop"), []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with interruptible(asked, said.append):
        assert not asked.is_set()
        os.kill(os.getpid(), signal.SIGHUP)
        assert asked.is_set()
    assert said == ["SIGHUP: stopping at the next safe point; once more to stop at once"]
    assert {number: signal.getsignal(number) for number in before} == before


def test_under_nohup_the_end_of_the_terminal_stops_nothing(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asked = Stop(tmp_path / "stop")
        with interruptible(asked, print):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.is_set()
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone(tmp_path):
    before, during = signal.getsignal(signal.SIGINT), []

    def work():
        with interruptible(Stop(tmp_path / "stop"), print):
            during.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == [before]
