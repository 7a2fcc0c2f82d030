"""What the documents tell people to type, read and click exists, and says what the code does. Nothing is trained here."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from worldloom.pipeline import cli
from worldloom.pipeline.config import read_pipeline

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = sorted([README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
COMMANDS: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]
OUTSIDE = re.compile(r"/(home|root|tmp|work|mnt|media|Users)/")  # a folder of somebody's machine


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def typed(path: Path) -> list[str]:
    """What stands in indented blocks, in code between backticks, and behind `Run:` in an example's head, without remarks."""
    text = text_of(path)
    lines = re.findall(r"^# +Run: +(.+)$", text, re.MULTILINE)
    if path.suffix == ".md":
        lines += re.findall(r"^    (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
        lines += re.findall(r"`([^`\n]+)`", text)
    return [re.split(r"\s{2,}[#(]", line)[0].strip() for line in lines]


def commands(path: Path) -> list[list[str]]:
    """The words behind `worldloom`, without the sayings that name no command (`worldloom COMMAND --help`)."""
    words = [shlex.split(line) for line in typed(path) if line.removeprefix(".venv/bin/").startswith("worldloom ")]
    return [rest for _, *rest in words if rest[0].islower() and rest[0].isalpha()]


@pytest.mark.parametrize("path", [*DOCUMENTS, *EXAMPLES], ids=lambda path: path.name)
def test_every_command_shown_is_understood(path: Path) -> None:
    for name, *rest in commands(path):
        assert name in COMMANDS, f"{path.name}: worldloom {name}"
        COMMANDS[name].make_context(name, list(rest))  # a wrong or missing option or argument raises


def test_commands_are_found_at_all() -> None:
    names = {name for name, *_ in commands(README)}
    assert {"init", "plan", "run", "status", "show", "sample", "verify", "doctor"} <= names
    assert all(commands(path) for path in EXAMPLES)


def test_options_in_the_table_of_commands_belong_to_a_command_of_their_row() -> None:
    rows = [line for line in text_of(README).splitlines() if line.startswith("| `worldloom ")]
    assert len(rows) > 5
    for row in rows:
        known = {option for name in re.findall(r"`worldloom (\w+)", row) for p in COMMANDS[name].params for option in p.opts}
        assert set(re.findall(r"--[\w-]+", row)) <= known, row


def test_pipelines_shown_are_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", text_of(README), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        (tmp_path / "shown.yaml").write_text(block, encoding="utf-8")
        assert read_pipeline(tmp_path / "shown.yaml", ["root=" + str(tmp_path)]).stages


@pytest.mark.parametrize("path", [*DOCUMENTS, *EXAMPLES], ids=lambda path: path.name)
def test_overrides_shown_fit_the_pipeline_shown(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for _, file, *overrides in (words for words in commands(path) if words[0] in ("plan", "run", "validate") and len(words) > 1):
        if file.endswith(".yaml"):
            assert read_pipeline(Path(file), overrides).stages
    for override in (line for line in typed(path) if re.fullmatch(r"data\.\w+=\w+", line)):
        assert read_pipeline(Path("examples/folder.yaml"), [override]).stages


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_shown_is_there(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    shown = {line.split()[1] for line in typed(path) if line.startswith("make ")}
    assert shown <= targets, shown - targets
    assert shown or path.parent != ROOT


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(path: Path) -> None:
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text_of(path)) if "://" not in target]
    assert not [target for target in linked if not (path.parent / target).exists()]
    folders = "|".join(entry.name for entry in ROOT.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    named = [word for line in typed(path) for word in line.split() if re.fullmatch(rf"(?!runs|build)({folders})/[\w./-]*", word)]
    assert not [name for name in named if not (ROOT / name).exists()]


def test_exit_codes_are_the_ones_in_the_readme() -> None:
    codes = {"complete": cli.COMPLETE, "a stage failed": cli.FAILED, "bad configuration": cli.USAGE, "interrupted": cli.INTERRUPTED}
    for meaning, code in codes.items():
        assert f"{code} {meaning}" in text_of(README)


@pytest.mark.parametrize("path", [*DOCUMENTS, *EXAMPLES], ids=lambda path: path.name)
def test_documents_name_no_folder_of_somebodys_machine(path: Path) -> None:
    assert not OUTSIDE.search(text_of(path))
