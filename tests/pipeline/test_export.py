"""The command that writes a trained world for other libraries."""

from pathlib import Path

import pytest

from worldloom.pipeline.cli import main


def test_the_command_line_exports_a_run(tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", str(tiny_root), "--out", str(tmp_path / "hf")])
    assert left.value.code == 0
    assert str(tmp_path / "hf" / "model.safetensors") in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["export", str(tiny_root), "--out", str(tmp_path / "other"), "--to", "gguf"])
    assert left.value.code == 2 and not (tmp_path / "other").exists()
