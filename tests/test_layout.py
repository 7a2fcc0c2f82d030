"""The architecture, as rules that a machine checks."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipeline", "stages", "tokenizers", "world_model")
MAY_IMPORT = {
    "pipeline": {"pipeline", "stages", "tokenizers", "world_model"},
    "stages": {"stages", "tokenizers", "world_model"},
    "tokenizers": {"tokenizers"},
    "world_model": {"world_model"},
}
# Where a heavy package may be imported: a file, or a folder.
DOORS = {
    "ray": ("pipeline/",),
    "deepspeed": ("stages/deepspeed_engine.py",),
    "webdataset": ("stages/shards.py",),
    "sentencepiece": ("tokenizers/text.py",),
    "transformers": (),
    "tensorboardX": ("stages/metrics.py",),
    "gymnasium": ("stages/dream_env.py",),
    "ale_py": ("stages/arcade.py",),
    "faiss": ("stages/nearest.py",),
}
UNSAFE = re.compile(r"pickle\.loads?\(|yaml\.(unsafe_|full_)?load\(|shell=True|extractall|weights_only=False|allow_pickle=True")


def code(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in code(room)
        for name in imports(path)
        if name.startswith("worldloom.") and name.split(".")[1] not in MAY_IMPORT[room]
    ]
    assert code(room) and not wrong


def test_encoders_import_nothing_of_the_world_model() -> None:
    found = {name for path in code("world_model/encoders") for name in imports(path) if name.startswith("worldloom.")}
    assert found and all(name.startswith("worldloom.world_model.encoders.") for name in found)


def test_tokenizers_are_opened_through_one_door_which_has_all_networks() -> None:
    opening = {
        str(path.relative_to(ROOT))
        for room in ("pipeline", "stages")
        for path in code(room)
        if "worldloom.tokenizers.load" in imports(path)
    }
    assert opening == {"stages/open_tokenizer.py"}


def test_every_import_of_ours_names_a_module_that_is_there() -> None:
    for room in ROOMS:
        for path in code(room):
            for name in imports(path):
                assert name != "worldloom", f"{path}: import the module that defines the thing"
                if name.startswith("worldloom."):
                    place = ROOT / name.removeprefix("worldloom.").replace(".", "/")
                    assert place.with_suffix(".py").exists() or place.is_dir(), f"{path}: {name}"


@pytest.mark.parametrize("package", DOORS)
def test_a_heavy_package_has_one_door(package: str) -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in code(room)
        for name in imports(path)
        if name.split(".")[0] == package and not str(path.relative_to(ROOT)).startswith(DOORS[package] or ("nowhere",))
    ]
    assert not wrong


def test_there_is_no_init_file() -> None:
    assert not [path for room in (*ROOMS, "tests", "bench") for path in (ROOT / room).rglob("__init__.py")]


def test_no_module_is_named_like_one_of_pythons() -> None:
    assert not [path for room in ROOMS for path in code(room) if path.stem in sys.stdlib_module_names]


def test_every_folder_with_code_is_shipped() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for room in ROOMS for path in code(room)}
    assert set(listed) == {"worldloom." + ".".join(folder.parts) for folder in folders}


def test_tests_mirror_the_folders() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.relative_to(ROOT / "tests").parent
        assert folder == Path() or (ROOT / folder).is_dir(), f"{path} mirrors no folder"


def test_nothing_reads_untrusted_bytes_unsafely() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for room in ROOMS
        for path in code(room)
        if (match := UNSAFE.search(path.read_text(encoding="utf-8")))
    ]
    assert not wrong


def test_nothing_prints_but_the_command_line() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for room in ROOMS
        for path in code(room)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong


def test_no_requirement_pulls_torchvision() -> None:
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    assert "torch==2.13.0" in pinned
    assert not re.search(r"^(torchvision|nvidia|triton|lpips|timm)\b", pinned, re.MULTILINE)


def test_tokenizers_is_hugging_faces_from_the_root_of_the_repository() -> None:
    script = "import tokenizers, worldloom.tokenizers.text as ours; print(tokenizers.Tokenizer.__module__, ours.__name__)"
    printed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["tokenizers", "worldloom.tokenizers.text"]
