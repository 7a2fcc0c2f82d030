import re
import subprocess
import sys
from typing import get_args

from worldloom.pipeline.catalogue import STAGES


def test_every_stage_file_is_listed(request):
    files = [
        path for path in (request.config.rootpath / "stages").glob("*.py") if re.search(r"^STAGE\b.*= ", path.read_text(), re.MULTILINE)
    ]
    assert {path.stem for path in files} == STAGES.keys()


def test_a_kind_its_settings_and_its_file_have_one_name():
    for name, kind in STAGES.items():
        assert kind.name == name
        assert get_args(kind.settings.model_fields["run"].annotation) == (name,)
        assert kind.run.__module__ == f"worldloom.stages.{name}"


def test_knowing_the_stages_imports_nothing_heavy():
    heavy = ["torch", "ray", "deepspeed", "transformers", "webdataset", "sentencepiece", "numpy", "PIL"]
    program = f"import sys, worldloom.pipeline.cli, worldloom.pipeline.catalogue; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
