"""Checkpoints: the newest whole one is gone on from, damage is put aside, and training never begins again in silence."""

import hashlib
import json
import random
import re
import shutil

import numpy as np
import pytest
import torch

from worldloom.stages import checkpoint, disk
from worldloom.stages.checkpoint import CheckpointError, Checkpoints, damage
from worldloom.stages.deepspeed_engine import Engine, gather_gang
from worldloom.stages.learner import Player
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Worker


def engine():
    gather_gang(Worker())
    module = torch.nn.Linear(3, 2)
    with torch.no_grad():
        module.weight.copy_(torch.arange(6.0).view(2, 3))
        module.bias.zero_()
    return Engine(Player("model", module, 1e-2), TrainingSettings(run="toy"), Worker())


def step(one):
    one.backward((one.module(torch.ones(5, 3)) ** 2).sum())
    one.step(1.0)


def checkpoints(out, **changes):
    return Checkpoints(out / "checkpoints", **{"worker": Worker(), "fingerprint": "abc", "numerics": {"threads": 1}, "keep": 3, **changes})


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1, 2 and 3; the position is the step."""
    one = engine()
    store = checkpoints(tmp_path)
    with store.alone():
        for number in (1, 2, 3):
            step(one)
            store.save({"model": one}, number, {"at": number}, {}, {"seconds": 0.1 * number})
    return tmp_path


def restored(out, **changes):
    one = engine()
    store = checkpoints(out, **changes)
    with store.alone():
        return store.restore({"model": one}), one


def names(out):
    return sorted(path.name.split(".")[0] + path.suffix for path in (out / "checkpoints").iterdir() if path.name != ".lock")


def test_the_newest_is_restored_whole(saved):
    found, one = restored(saved)
    assert (found.step, found.position, found.tallies) == (3, {"at": 3}, {"seconds": pytest.approx(0.3)})
    other = engine()
    for _ in range(3):
        step(other)
    assert one.digest() == other.digest()
    assert torch.equal(one.module.weight, other.module.weight)


def test_none_is_there_before_the_first(tmp_path):
    assert restored(tmp_path)[0] is None


def test_only_the_newest_stay(saved):
    one = engine()
    store = checkpoints(saved, keep=2)
    with store.alone():
        store.save({"model": one}, 4, {}, {}, {})
    assert names(saved) == ["step-00000003", "step-00000004"]


def _cut(folder):
    file = next((folder / "engines" / "model").glob("rank-*"))
    file.write_bytes(file.read_bytes()[:-1])


def _flip(folder):
    file = next((folder / "engines" / "model").glob("others*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _drop(folder):
    (folder / "rank-0.safetensors").unlink()


def _edit(folder):
    manifest = json.loads((folder / "MANIFEST.json").read_bytes())
    (folder / "MANIFEST.json").write_text(json.dumps({**manifest, "step": 7}))


def _tear(folder):
    (folder / "MANIFEST.json").write_bytes((folder / "MANIFEST.json").read_bytes()[:40])


def _list(folder):
    (folder / "MANIFEST.json").write_text("[]")


def _unname(folder):
    (folder / "MANIFEST.json").unlink()


DAMAGE = {
    _cut: "bytes instead of",
    _flip: "the content of engines/model/.* has changed",
    _drop: "rank-0.safetensors is missing",
    _edit: "does not match its own digest",
    _tear: "MANIFEST.json cannot be read",
    _list: "MANIFEST.json cannot be read",
    _unname: "MANIFEST.json is missing",
}


@pytest.mark.parametrize("harm", DAMAGE)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(saved, harm, caplog):
    folder = saved / "checkpoints" / "step-00000003"
    assert damage(folder) is None
    harm(folder)
    assert restored(saved)[0].step == 2
    assert names(saved) == ["step-00000001", "step-00000002", "step-00000003.corrupt"]
    assert len(caplog.messages) == 1
    assert re.search(f"step-00000003 is damaged .*{DAMAGE[harm]}", caplog.messages[0])


def test_where_all_are_damaged_training_does_not_begin_again(saved):
    for number in (1, 2, 3):
        _flip(saved / "checkpoints" / f"step-{number:08d}")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"every checkpoint is damaged .* remove that folder to start at step 0"):
            restored(saved)


def test_anothers_checkpoint_is_refused_and_left_alone(saved):
    with pytest.raises(CheckpointError, match="belongs to abc, not to xyz"):
        restored(saved, fingerprint="xyz")
    assert len(names(saved)) == 3


def test_other_numerics_are_said(saved, caplog):
    assert restored(saved, numerics={"threads": 2})[0].step == 3
    assert caplog.messages == ["training goes on with threads = 2, it was 1: losses will differ in their last bits"]


def test_what_was_being_written_or_removed_is_cleared_away(saved):
    shutil.copytree(saved / "checkpoints" / "step-00000003", saved / "checkpoints" / ".partial-00000004-x")
    shutil.copytree(saved / "checkpoints" / "step-00000003", saved / "checkpoints" / ".trash-x")
    restored(saved)
    assert names(saved) == ["step-00000001", "step-00000002", "step-00000003"]


def test_two_trainings_in_one_folder_are_refused(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "LOCK_SECONDS", 0.1)
    with checkpoints(saved).alone(), pytest.raises(CheckpointError, match="another process trains here"):
        restored(saved)


def test_numbers_that_are_not_finite_cannot_be_saved(saved):
    one = engine()
    one.masters.flats[0].detach()[1] = float("inf")
    store = checkpoints(saved)
    with store.alone(), pytest.raises(FloatingPointError, match="step 4: parameters of model are not finite"):
        store.save({"model": one}, 4, {}, {}, {})
    assert names(saved) == ["step-00000001", "step-00000002", "step-00000003"]


def test_a_step_saved_again_replaces_itself(saved):
    _, one = restored(saved)
    store = checkpoints(saved)
    with store.alone():
        store.save({"model": one}, 3, {"at": 33}, {}, {})
    assert restored(saved)[0].position == {"at": 33}
    assert len(names(saved)) == 3


def test_what_is_not_restored_is_noticed(saved, monkeypatch):
    load = Engine.load

    def drops(self, folder):
        load(self, folder)
        for state in self.masters.torch_optimizer.state.values():
            state["exp_avg"].zero_()

    monkeypatch.setattr(Engine, "load", drops)
    with pytest.raises(CheckpointError, match="what was restored of model is not what was saved"):
        restored(saved)


def test_a_folder_without_a_checkpoint_is_no_fresh_start(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        engine().load(tmp_path)


def test_generators_and_learners_state_come_back(tmp_path):
    one = engine()
    store = checkpoints(tmp_path)
    own = torch.Generator().manual_seed(5)
    with store.alone():
        store.save({"model": one}, 1, {}, {"own": own.get_state(), "list": [1, None, {"x": torch.tensor([2.5])}], "word": "ab"}, {})
        expected = (random.random(), np.random.rand(), torch.rand(1).item(), np.random.randn())
        random.seed(9)
        np.random.seed(9)
        torch.manual_seed(9)
        state = store.restore({"model": engine()}).learner
    assert (random.random(), np.random.rand(), torch.rand(1).item(), np.random.randn()) == expected
    assert torch.equal(state["own"], own.get_state())
    assert state["word"] == "ab" and state["list"][:2] == [1, None] and state["list"][2]["x"].item() == 2.5


def test_a_checkpoint_of_another_format_is_refused_by_name(saved):
    path = saved / "checkpoints" / "step-00000003" / "MANIFEST.json"
    body = {name: value for name, value in json.loads(path.read_bytes()).items() if name != "sha256"} | {"format": 1}
    path.write_bytes(disk.canonical_json({**body, "sha256": hashlib.sha256(disk.canonical_json(body)).hexdigest()}))
    with pytest.raises(CheckpointError, match=r"has format 1, this version writes 2; remove .* to start at step 0"):
        restored(saved)


def test_a_share_that_no_file_holds_is_an_error(tmp_path):
    one = engine()
    step(one)
    one.save(tmp_path)
    (tmp_path / "rank-0.safetensors").rename(tmp_path / "rank-1.safetensors")
    one.masters.pieces[0] = one.masters.pieces[0]._replace(name="other")
    with pytest.raises(ValueError, match=r"0 of 6 numbers of master/other are in .*rank-1.safetensors"):
        one.load(tmp_path)
