"""The smallest pipeline, every stage of it, on Ray, with DeepSpeed in gangs of two workers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny.yaml"
FIGURES = {
    "frame.psnr",
    "frame.codebook_use",
    "caption_to_frame.accuracy",
    "caption_to_frame.held_out_accuracy",
    "frame_to_caption.accuracy",
    "caption_to_clip.accuracy",
    "push_to_clip.push_1_accuracy",
    "rollout.psnr_4",
    "rollout.copy_psnr_1",
    "rollout.shuffled_code_accuracy_4",
    "rollout.held_out_action_accuracy_1",
    "clip_to_sound.shape_accuracy",
    "clip.psnr",
    "sound.log_mel_l1",
    "push.error",
    "legal_share",
}


def worldloom(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command line from `folder`, as a user would."""
    command = [sys.executable, "-m", "worldloom.pipeline", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    ran = worldloom("run", str(TINY), "--profile", "pair", f"root={root}", folder=root)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return root


def test_every_stage_ends_and_the_figures_have_their_names(root: Path) -> None:
    shown = json.loads(worldloom("show", str(root), "--output", "json", folder=root).stdout)
    assert shown["complete"] and set(shown["figures"]) >= FIGURES
    assert shown["figures"]["legal_share"] == 1.0
    assert Path(shown["report"]).is_file()


def test_two_workers_trained_each_model(root: Path) -> None:
    for stage, steps in (("frame_codes", 24), ("clip_codes", 16), ("sound_codes", 16), ("world", 24)):
        (checkpoint,) = root.glob(f"artifacts/{stage}/*/checkpoints/step-{steps:08d}")
        assert json.loads((checkpoint / "MANIFEST.json").read_bytes())["world_size"] == 2
        pieces = [piece.stat().st_size for piece in checkpoint.glob("engines/*/rank-1.safetensors")]
        assert pieces and min(pieces) > 1_000, "the second rank saved no piece of the optimizer"


def test_run_again_it_computes_nothing(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.glob("artifacts/**/*")}
    again = worldloom("run", str(TINY), "--profile", "pair", f"root={root}", folder=root)
    assert again.returncode == 0 and again.stdout.count("done before") == 9
    assert {path: path.stat().st_mtime_ns for path in root.glob("artifacts/**/*")} == before


def test_one_setting_changed_runs_that_stage_and_what_depends_on_it(root: Path) -> None:
    planned = worldloom("plan", str(TINY), f"root={root}", "world.steps=25", folder=root).stdout
    assert "world.steps 24 -> 25" in planned and "world changed" in planned
    assert planned.count("will run") == 2 and planned.count(" done ") == 7


def test_everything_that_was_made_is_whole(root: Path) -> None:
    assert worldloom("verify", str(root), folder=root).returncode == 0
