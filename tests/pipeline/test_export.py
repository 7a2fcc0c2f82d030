"""The command that writes a trained world for other libraries."""

from pathlib import Path

import pytest

from worldloom.pipeline.cli import main
from worldloom.pipeline.locate import locate
from worldloom.pipeline.problems import ConfigError
from worldloom.pipeline.sample import Asked, sample_command
from worldloom.pipeline.service.served import find_served
from worldloom.pipeline.service.tokenizer_worker import TokenizerWorker
from worldloom.pipeline.service.world_worker import WorldWorker
from worldloom.stages.artifact import Artifact
from worldloom.stages.export_world import export_world


def test_the_command_line_exports_a_run(tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", str(tiny_root), "--out", str(tmp_path / "hf")])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "hf" / "model.safetensors") in said and str(tmp_path / "hf" / "tokenizers" / "view" / "config.json") in said
    with pytest.raises(SystemExit) as left:
        main(["export", str(tiny_root), "--out", str(tmp_path / "other"), "--to", "gguf"])
    assert left.value.code == 2 and not (tmp_path / "other").exists()


def test_an_exported_world_is_sampled_from_in_place_of_its_run(tiny_root: Path, tiny_world: Artifact, tmp_path: Path) -> None:
    export_world(tiny_world, tmp_path / "hf")
    made = [
        sample_command(run, Asked(caption="a red circle", out=tmp_path / f"{run.name}.png", seed=3)) for run in (tiny_root, tmp_path / "hf")
    ]
    one, other = (samples[0].files["view"].read_bytes() for samples in made)
    assert one == other
    with pytest.raises(ValueError, match="is an exported world, so there is no stage 'world' in it; leave out --stage"):
        sample_command(tmp_path / "hf", Asked(caption="a red circle", out=tmp_path / "x.png"), stage="world")
    with pytest.raises(ValueError, match="is an exported world, which holds no tokens; leave out --tokens"):
        sample_command(tmp_path / "hf", Asked(caption="a red circle", out=tmp_path / "x.png"), tokens="tokens")
    with pytest.raises(ConfigError, match="is an exported world, which sample and serve take; this command needs the run"):
        locate(tmp_path / "hf")


def test_an_exported_world_is_served_with_its_tokenizers(tiny_world: Artifact, tmp_path: Path) -> None:
    export_world(tiny_world, tmp_path / "hf")
    served = find_served([str(tmp_path / "hf")])
    assert served.world is not None and served.world == tmp_path / "hf" and not served.runs
    assert {place.name: place.folder for place in served.tokenizers} == {
        name: tmp_path / "hf" / "tokenizers" / name for name in ("view", "words")
    }
    about = WorldWorker(served.world, most_sessions=1, session_seconds=1).about()
    assert (about.name, about.fingerprint) == (tiny_world.name, tiny_world.fingerprint)
    assert TokenizerWorker(served.tokenizers[0]).about().stage is None
