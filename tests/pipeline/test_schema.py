import jsonschema
import pytest
import yaml

from worldloom.pipeline.catalogue import STAGES
from worldloom.pipeline.config import parse_pipeline
from worldloom.pipeline.problems import ConfigError
from worldloom.pipeline.schema import pipeline_schema, schema_text
from worldloom.pipeline.templates import TEMPLATES, template


def test_the_published_schema_is_the_one_of_the_models(request):
    published = request.config.rootpath / "docs" / "pipeline.schema.json"
    assert published.read_text(encoding="utf-8") == schema_text(), "make schema writes it anew"


@pytest.mark.parametrize(
    "change",
    [
        None,
        ("samples", "sampels"),
        ("size: 32", "size: 3"),
        ("run: make_shapes", "run: make_shaeps"),
        ("root:", "rot:"),
        ("kind: text", "kind: txt"),
    ],
)
def test_the_schema_and_the_loader_agree(change):
    text = template("shapes", "shapes", "shapes.yaml")
    text = text.replace(*change, 1) if change else text
    validator = jsonschema.Draft202012Validator(pipeline_schema())
    assert validator.is_valid(yaml.safe_load(text)) is (change is None)
    if change is None:
        parse_pipeline(text)
    else:
        with pytest.raises(ConfigError):
            parse_pipeline(text)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_starter_files_are_valid_and_use_only_stages_that_there_are(kind):
    pipeline = parse_pipeline(template(kind, "mine", "my file.yaml"))
    assert pipeline.name == "mine"
    assert {settings.run for settings in pipeline.stages.values()} <= STAGES.keys()
