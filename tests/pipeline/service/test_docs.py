"""What docs/service.md and docs/openapi.json say is so."""

import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldloom.pipeline.service.jobs import Jobs
from worldloom.pipeline.service.openapi import openapi_text
from worldloom.pipeline.service.sources import Sources

DOCS = Path(__file__).parents[3] / "docs"
EXAMPLES = re.findall(r"```sh curl\n(.*?)\n```", (DOCS / "service.md").read_text(encoding="utf-8"), re.DOTALL)


def test_openapi_json_is_what_the_application_says():
    assert (DOCS / "openapi.json").read_text(encoding="utf-8") == openapi_text(), "make openapi writes it anew"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the examples find their files."""
    here = tmp_path_factory.mktemp("examples")
    Image.new("RGB", (16, 16), "red").save(here / "picture.png")
    np.save(here / "pictures.npy", np.zeros((1, 16, 16, 3), np.uint8))
    with tarfile.open(here / "shard.tar", "w") as file:
        about = tarfile.TarInfo("a.txt")
        about.size = 1
        file.addfile(about, io.BytesIO(b"a"))
    return here


@pytest.fixture(scope="module")
def url(listening, serve, tiny_root, tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("jobs"), Sources({}), 3)
    jobs.start = lambda: None  # they are made, and not worked on
    with serve([str(tiny_root)], jobs=jobs) as service, listening(service) as address:
        yield address


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed: apt-get install curl")
@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs_as_it_stands(url, folder, example):
    ran = subprocess.run(["sh", "-c", example], cwd=folder, env={"URL": url, "PATH": "/usr/bin:/bin"}, capture_output=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    if not ran.stdout:
        name = example.rsplit(" ", 1)[1]
        if name.endswith(".npy"):
            assert np.load(folder / name).shape == (1, 2, 2)
        else:
            with Image.open(folder / name) as picture:
                assert picture.size == (16, 16)
    for line in ran.stdout.splitlines():
        assert json.loads(line).get("error") is None, line
    assert len(EXAMPLES) == 9
