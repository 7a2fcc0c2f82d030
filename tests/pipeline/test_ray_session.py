import os
import tempfile
from pathlib import Path

import pytest

from worldloom.pipeline.ray_session import PREFIX, SESSION_NAME, SOCKET_PATH, Session


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder of temporary files with a short name, as Session looks at it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_session_has_a_folder_short_enough_for_sockets_and_takes_it_along():
    session = Session()
    assert Path(session.folder).is_dir()
    assert len(session.folder) + SESSION_NAME <= SOCKET_PATH
    session.remove()
    assert not Path(session.folder).exists()


def orphan(folder):
    """A session's folder whose owner has died."""
    folder.mkdir()
    (folder / "owner").touch()
    return folder


def test_what_killed_runs_left_is_removed_and_living_ones_are_let_be(temporary, monkeypatch):
    monkeypatch.setattr("worldloom.pipeline.ray_session.SESSION_NAME", 0)
    left, strange = orphan(temporary / f"{PREFIX}left"), temporary / f"{PREFIX}strange"
    strange.mkdir()
    living = Session()
    assert not left.exists()
    second = Session()
    assert Path(living.folder).exists() and strange.exists()
    living.remove()
    second.remove()


def test_a_run_that_is_killed_leaves_an_orphan(temporary, monkeypatch):
    monkeypatch.setattr("worldloom.pipeline.ray_session.SESSION_NAME", 0)
    child = os.fork()
    if child == 0:
        Session()
        os._exit(9)
    os.waitpid(child, 0)
    (left,) = temporary.iterdir()
    session = Session()
    assert not left.exists()
    session.remove()
