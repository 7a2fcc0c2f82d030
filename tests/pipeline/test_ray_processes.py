import os
import signal
import subprocess
import sys

import pytest

from worldloom.pipeline import ray_processes
from worldloom.pipeline.ray_processes import deaf_children, ended_when_asked, essential_children, is_alive


@pytest.fixture
def start():
    """Starts a process as Ray does, with something to be done between fork and exec: only then Python runs its hooks there."""
    started = []

    def start(*command):
        started.append(subprocess.Popen(command, preexec_fn=lambda: None, stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


SAY_HEARD = "import signal, sys; print([s.name for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])]); sys.stdout.flush(); input()"


def blocked(process):
    return process.stdout.readline().decode()


def test_children_started_meanwhile_and_theirs_do_not_hear_what_is_meant_for_the_run(start):
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SAY_HEARD!r}])"
    with deaf_children():
        deaf = start(sys.executable, "-c", SAY_HEARD)
        grandchild = start(sys.executable, "-c", child)
    hearing = start(sys.executable, "-c", SAY_HEARD)
    for process in (deaf, grandchild):
        said = blocked(process)
        assert all(name in said for name in ("SIGINT", "SIGTERM", "SIGHUP"))
    assert "SIGTERM" not in blocked(hearing)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_deaf_child_that_is_asked_to_end_ends_at_once_and_others_live(start):
    with deaf_children():
        asked, other = start("sleep", "60"), start("sleep", "60")
    asked.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        asked.wait(0.2)
    with ended_when_asked():
        assert asked.wait(20) == -signal.SIGKILL
        assert other.poll() is None


def test_a_process_that_ended_and_is_not_buried_is_not_alive(start):
    process = start("true")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process.pid)
    process.wait()
    assert not is_alive(process.pid)
    assert is_alive(os.getpid())


def test_only_what_ray_cannot_do_without_is_watched(start, monkeypatch):
    monkeypatch.setattr(ray_processes, "ESSENTIAL", ("sleep",))
    wanted, other = start("sleep", "60"), start("cat")
    assert wanted.pid in essential_children()
    assert other.pid not in essential_children()
