"""The same toy stages on a real Ray: one head for all tests of this file."""

import importlib
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from worldloom.pipeline.config import parse_pipeline
from worldloom.pipeline.engine import run_pipeline
from worldloom.pipeline.plan import make_plan
from worldloom.pipeline.ray_executor import RayExecutor
from worldloom.stages.artifact import Artifact

# Ray Train copies Ray Data's settings, and copying reads an attribute that warns that it will go.
pytestmark = pytest.mark.filterwarnings("ignore:.[a-z0-9_]+. is deprecated:DeprecationWarning")

FOLDER = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def toys():
    """The toy stages, importable here and in every worker that Ray starts."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (FOLDER, before)))
    sys.path.insert(0, FOLDER)
    yield importlib.import_module("toy_stages")
    sys.path.remove(FOLDER)
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def ray(toys):
    owner = RayExecutor()
    owner.start([])
    import ray

    yield ray
    owner.close()


class Heard:
    """A reporter that remembers."""

    def __init__(self):
        self.lines = []

    def __getattr__(self, name):
        return lambda *said: self.lines.append((name, *said))

    def of(self, name):
        return [line[1:] for line in self.lines if line[0] == name]


@pytest.fixture
def run(tmp_path, toys, ray, monkeypatch):
    monkeypatch.setattr("worldloom.pipeline.report.write_report", lambda folder, stages, name: folder / "report.html")

    def run(stages, *overrides, **profile):
        pipeline = parse_pipeline(f"name: toy\nroot: {tmp_path}\nstages:{stages}", overrides=overrides, kinds=toys.KINDS)
        heard = Heard()
        heard.plan = make_plan(pipeline, kinds=toys.KINDS)
        heard.code = run_pipeline(heard.plan, RayExecutor(**profile), heard)
        assert ray.is_initialized(), "a Ray that was there before is not shut down"
        return heard

    return run


def made(heard, stage):
    """(rank, process, threads, shard) of each shard made, over all runs."""
    path = heard.plan.stage(stage).folder / "logs" / "made.txt"
    return [line.split() for line in path.read_text().splitlines()]


COUNT = """
  data: {run: count_up, shards: 6}
"""
GANG = """
  data: {run: count_up, shards: 3}
  sum: {run: add_up, data: data, steps: 2}
"""


def test_two_workers_make_every_shard_once_and_steal_from_each_other(run):
    heard = run(COUNT, "data.seconds=0.05", workers=2)
    assert heard.code == 0
    work = made(heard, "data")
    assert sorted(shard[-1] for *_, shard in work) == ["0", "1", "2", "3", "4", "5"]
    assert {threads for _, _, threads, _ in work} == {"1"}
    assert len({process for _, process, _, _ in work} - {str(os.getpid())}) >= 1
    assert Artifact.open(heard.plan.stage("data").folder).counts == {"samples": 6}


def test_one_worker_and_two_leave_the_same_bytes(run, tmp_path):
    manifests = set()
    for workers in (1, 2):
        heard = run(COUNT, f"root={tmp_path / str(workers)}", workers=workers)
        manifests.add((heard.plan.stage("data").folder / "DONE.json").read_bytes())
    assert len(manifests) == 1


def test_a_worker_that_dies_is_started_again_and_what_it_had_in_hand_is_done(run):
    heard = run(COUNT, "data.fail=die once", workers=2)
    assert heard.code == 0
    assert Artifact.open(heard.plan.stage("data").folder).counts == {"samples": 6}


def test_a_worker_that_raises_is_one_line_and_the_traceback_lies_in_the_logs(run):
    heard = run(COUNT, "data.fail=raise", workers=2)
    assert heard.code == 1
    ((stage, message),) = heard.of("failed")
    assert stage == "data"
    assert message.startswith("there is no train/shard-00000") and message.endswith(" look elsewhere")
    assert "Traceback" in (heard.plan.stage("data").folder / "logs" / "errors.txt").read_text()


def test_a_gang_of_two_adds_up_over_gloo(run):
    heard = run(GANG, train_workers=2)
    assert heard.of("failed") == []
    assert heard.code == 0
    assert (heard.plan.stage("sum").folder / "total.txt").read_text() == "6 3"
    assert not (heard.plan.stage("sum").folder / "staging").exists()


def test_a_rank_that_raises_says_why_in_one_line(run):
    heard = run(GANG, "sum.fail=rank 1", train_workers=2)
    assert heard.of("failed") == [("sum", "rank one says no")], heard.lines
    assert heard.code == 1


def test_a_gang_that_hangs_is_interrupted_goes_on_and_has_said_where(run):
    heard = run(GANG, "sum.fail=hang", train_workers=2)
    assert heard.code == 3 and heard.of("failed") == []
    (said,) = [line for (line,) in heard.of("message") if line.startswith("sum")]
    assert said.startswith("sum stopped (rank 1 took longer than hang_seconds; logs/hung-rank-1.txt says where)")
    again = run(GANG, train_workers=2)
    assert again.code == 0 and not list((again.plan.stage("sum").folder / "logs").glob("hung-*"))


def signal_when(path, over):
    """Sends this process a signal as soon as the file is there, unless the run is over before."""
    while not path.exists():
        if over.wait(0.05):
            return
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_gang_that_is_stopped_is_interrupted_and_not_failed(run, toys, tmp_path):
    long = ("sum.steps=400", "sum.seconds=0.1")
    pipeline = parse_pipeline(f"name: toy\nroot: {tmp_path}\nstages:{GANG}", overrides=long, kinds=toys.KINDS)
    folder = make_plan(pipeline, kinds=toys.KINDS).stage("sum").folder
    over = threading.Event()
    signals = threading.Thread(target=signal_when, args=(folder / "staging" / "progress" / "0.json", over))
    signals.start()
    heard = run(GANG, *long, train_workers=2)
    over.set()
    signals.join()
    assert heard.code == 3
    assert heard.of("failed") == []
    assert ("sum stopped; run the same command again and it goes on from there",) in heard.of("message")


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"workers": 4096}, r"workers is 4096, this machine has \d+ CPUs; ask for at most \d+"),
        ({"train_workers": 4096}, r"train.workers is 4096, this machine has \d+ CPUs; ask for at most \d+"),
        (
            {"cpus_per_worker": 4096},
            r"train asks for 1 workers with 4096 CPUs and 0 GPUs each, this machine has \d+ CPUs; lower train.workers",
        ),
    ],
)
def test_more_than_there_is_is_refused_before_anything_starts(run, tmp_path, profile, message):
    with pytest.raises(ValueError, match=message):
        run(GANG, **profile)
    assert not (tmp_path / "artifacts").exists()
    assert not (tmp_path / "runs").exists()


def test_gpus_that_are_not_there_are_refused_before_anything_starts(run, tmp_path, ray):
    with pytest.raises(ValueError, match=r"train asks for 1 workers with .* and 64 GPUs each, this machine has"):
        run(GANG, gpus_per_worker=64)
    assert not (tmp_path / "runs").exists()


def test_ray_listens_on_loopback_only(ray):
    assert all(node["NodeManagerAddress"] == "127.0.0.1" for node in ray.nodes())


def test_tokenizers_is_hugging_faces_in_a_worker(ray):
    @ray.remote(num_cpus=0)
    def where():
        import tokenizers

        return tokenizers.__file__

    assert "site-packages" in ray.get(where.remote())


def test_a_cluster_that_is_not_there_is_said(monkeypatch):
    from worldloom.pipeline.ray_executor import _join

    def refuse(**_):
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify one.")

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(
        ValueError, match=r"address is auto, and no Ray answers there: Could not find any running Ray instance.; start one with"
    ):
        _join("auto")
