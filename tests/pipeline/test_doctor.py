import tomllib
from importlib.metadata import PackageNotFoundError

import pytest

from worldloom.pipeline import doctor
from worldloom.pipeline.doctor import FLOORS, examine, parts


def verdicts(monkeypatch, installed):
    def version(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor, "version", version)
    return {finding.what: finding for finding in doctor._libraries()}


@pytest.mark.parametrize(
    ("older", "newer"), [("2.9.1", "2.10"), ("2.13.0+cpu", "2.13.1"), ("5", "5.0.1"), ("0.2.1", "0.2.1.1"), ("12.3", "13.0.0"), ("x", "0")]
)
def test_releases_compare_by_their_numbers(older, newer):
    assert parts(older) < parts(newer)


def test_a_library_that_is_absent_old_or_too_new_is_named(monkeypatch):
    found = verdicts(
        monkeypatch, {**FLOORS, "ray": "2.59.1", "transformers": "6.1", "sentencepiece": "0.2.1", "torch": "2.13.0+cpu"} | {"h11": "0.15"}
    )
    assert {name: finding.verdict for name, finding in found.items() if finding.verdict != "ok"} == {
        "ray": "warning",
        "transformers": "warning",
        "sentencepiece": "warning",
        "h11": "warning",
    }
    assert found["ray"].detail == "2.59.1, below 2.60: upgrade"
    assert "starlette" not in found  # brought by an extra that is not there
    assert verdicts(monkeypatch, {})["torch"] == ("torch", "problem", "not installed; pip install 'torch>=2.10'")


def test_every_required_package_has_a_floor(request):
    project = tomllib.loads((request.config.rootpath / "pyproject.toml").read_text())["project"]
    required = {requirement.split(">")[0].split("[")[0] for requirement in project["dependencies"]}
    assert required == FLOORS.keys()


def test_everything_is_looked_at_without_a_problem_on_a_machine_where_tests_run(tmp_path):
    found = examine(tmp_path / "not" / "there" / "yet")
    assert {finding.what for finding in found} >= {"Python", "torch", "CPUs", "bf16 on the CPU", "memory", "disk", "compilers", "GPUs"}
    assert not [finding for finding in found if finding.verdict == "problem"]


@pytest.mark.parametrize(("release", "verdict"), [((3, 11, 7), "warning"), ((3, 11, 14), "ok"), ((3, 14, 0), "ok")])
def test_an_old_python_is_a_warning(monkeypatch, release, verdict):
    class Release(tuple):
        major, minor, micro = release

    monkeypatch.setattr(doctor.sys, "version_info", Release(release))
    assert doctor._python().verdict == verdict


def test_a_processor_without_a_description_is_unknown_not_an_error(monkeypatch):
    monkeypatch.setattr(doctor, "_cpu_flags", lambda: None)
    assert [finding.verdict for finding in doctor._processor()][1:] == ["warning"]
