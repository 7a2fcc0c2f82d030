"""A pipeline is a file: a name, a root folder, streams, stages, and profiles that say where it runs.

The same models make a pipeline in Python: `Pipeline(name="shapes", root="runs/shapes", stages={"data": MakeShapes(...)})`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, SerializeAsAny, ValidationError, field_validator

from worldloom.pipeline.catalogue import STAGES
from worldloom.pipeline.graph import graph_problems
from worldloom.pipeline.problems import NAME_RULE, ConfigError, Problem, dotted, nearest, problems_of
from worldloom.pipeline.profiles import Profile
from worldloom.pipeline.strict_yaml import MAX_BYTES, MAX_DEPTH, YamlError, read_yaml
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NAME, Settings, StageSettings, Stream
from worldloom.world_model.reserved import refuse_reserved

Name = Annotated[str, Field(pattern=NAME)]


class Heading(Settings):
    """A pipeline without its stages."""

    name: Name = Field(description="of the pipeline")
    root: str = Field(min_length=1, description="folder that everything is written to, relative to where the command is run")
    streams: dict[Name, Stream] = Field(default_factory=dict, description="the named channels of the data")
    profiles: dict[Name, Profile] = Field(default_factory=dict, description="where and how wide to run; the first is taken by default")

    @field_validator("root")
    @classmethod
    def _root_is_a_local_folder(cls, root: str) -> str:
        if "://" in root:
            raise ValueError(f"should be a folder of this machine, {root} is not")
        return root

    @field_validator("streams")
    @classmethod
    def _streams_have_names_of_their_own(cls, streams: dict[str, Stream]) -> dict[str, Stream]:
        refuse_reserved(streams)
        return streams

    @property
    def folder(self) -> Path:
        """The root folder."""
        return Path(self.root).expanduser().absolute()

    def profile(self, name: str | None) -> Profile:
        """The profile of that name; without a name the first one, and the defaults where the file has none."""
        if name is None:
            return next(iter(self.profiles.values()), Profile())
        if name not in self.profiles:
            raise ConfigError([f"there is no profile called {name!r}; {nearest(name, self.profiles)}"])
        return self.profiles[name]


class Pipeline(Heading):
    """Stages and what they share."""

    stages: dict[Name, SerializeAsAny[StageSettings]] = Field(min_length=1, description="stage name -> its settings")

    def checked(self, kinds: Mapping[str, StageKind] = STAGES) -> Self:
        """This pipeline, if its graph holds; ConfigError otherwise."""
        if problems := graph_problems(self.stages, kinds):
            raise ConfigError([f"{dotted(problem.path)}: {problem.rule}" for problem in problems])
        return self


RESERVED = tuple(Pipeline.model_fields)  # no stage is called like these, so that an override cannot mean two things


def read_pipeline(path: Path, overrides: Sequence[str] = (), kinds: Mapping[str, StageKind] = STAGES) -> Pipeline:
    """Reads a pipeline file, applies `stage.field=value` overrides in order, checks the whole; ConfigError says what is wrong."""
    return parse_pipeline(_text(path), str(path), overrides, kinds)


def parse_pipeline(text: str, source: str = "pipeline", overrides: Sequence[str] = (), kinds: Mapping[str, StageKind] = STAGES) -> Pipeline:
    """As `read_pipeline`, of a text; `source` is what messages call it."""
    try:
        tree, lines = read_yaml(text)
    except YamlError as error:
        raise ConfigError([f"{source}:{error.line}: {error.rule}"]) from None
    if tree is None:
        raise ConfigError([f"{source} is empty; worldloom init writes a file to start from"])
    if not isinstance(tree, dict):
        raise ConfigError([f"{source}: a pipeline is a mapping with {', '.join(RESERVED)}, this is a {type(tree).__name__}"])
    changed = [_apply(tree, override) for override in overrides]
    problems, pipeline = _build(tree, kinds)
    if pipeline is None:
        # A misspelt setting is often missing under its right name, too: what can be mended with one letter is said first.
        problems.sort(key=lambda problem: "did you mean" not in problem.rule)
        raise ConfigError([_located(problem, source, lines, changed) for problem in problems])
    return pipeline


def dump_pipeline(pipeline: Pipeline) -> str:
    """The pipeline as a file that reads back to the same, every default written out."""
    import yaml

    return yaml.safe_dump(pipeline.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _build(tree: dict[str, Any], kinds: Mapping[str, StageKind]) -> tuple[list[Problem], Pipeline | None]:
    problems: list[Problem] = []
    heading, found = _validate(Heading, {key: value for key, value in tree.items() if key != "stages"}, ())
    problems += [_known_at_the_top(problem) for problem in found]
    stages: dict[str, StageSettings] = {}
    if not isinstance(tree.get("stages"), dict) or not tree["stages"]:
        problems.append(Problem(("stages",) if "stages" in tree else (), "stages are missing: a mapping of stage name to its settings"))
        return problems, None
    for name, raw in tree["stages"].items():
        settings, found = _stage(name, raw, tree.get("streams"), kinds)
        problems += found
        if settings is not None:
            stages[name] = settings
    if problems or heading is None:
        return problems, None
    problems += graph_problems(stages, kinds)
    if problems:
        return problems, None
    pipeline = Pipeline(stages=stages, **{name: getattr(heading, name) for name in Heading.model_fields})
    return [], pipeline


def _stage(name: str, raw: Any, streams: Any, kinds: Mapping[str, StageKind]) -> tuple[StageSettings | None, list[Problem]]:
    path = ("stages", name)
    if name in RESERVED:
        return None, [Problem(path, f"no stage can be called {name}: overrides could not tell it from the pipeline's own {name}")]
    if not re.fullmatch(NAME, name):
        return None, [Problem(path, NAME_RULE)]
    if not isinstance(raw, dict):
        return None, [Problem(path, "should be a mapping (name: value) with run: and the settings of that kind of stage")]
    if "run" not in raw:
        return None, [Problem(path, f"the setting run is missing; it names the kind of stage: {', '.join(sorted(kinds))}")]
    run = raw["run"]
    if not isinstance(run, str) or run not in kinds:
        known = nearest(run, kinds)
        everything = "" if known.startswith("known") else f" (known: {', '.join(sorted(kinds))})"
        return None, [Problem((*path, "run"), f"there is no kind of stage called {run!r}; {known}{everything}")]
    model = kinds[run].settings
    takes_streams = "streams" in model.model_fields and "streams" not in raw
    given = {**raw, "streams": streams or {}} if takes_streams else raw
    settings, found = _validate(model, given, path)
    if takes_streams:  # what is wrong with the streams is said once, of the streams themselves
        found = [problem for problem in found if problem.path[2:3] != ("streams",)]
    return settings, found


class _Validated(NamedTuple):
    settings: Any
    problems: list[Problem]


def _validate(model: type[Settings], tree: dict[str, Any], above: tuple[str, ...]) -> _Validated:
    # JSON mode: strict, and yet a list may fill a tuple.
    try:
        return _Validated(model.model_validate_json(json.dumps(tree)), [])
    except ValidationError as error:
        return _Validated(None, list(problems_of(error, model, tree, above)))


def _known_at_the_top(problem: Problem) -> Problem:
    if len(problem.path) == 1 and problem.rule.startswith("there is no such setting"):
        return Problem(problem.path, f"there is no such setting; {nearest(problem.path[0], RESERVED)}")
    return problem


def _apply(tree: dict[str, Any], override: str) -> tuple[str, tuple[str, ...]]:
    """Puts an override into the tree; gives it back with the path that it leads to."""
    name, equals, text = override.partition("=")
    parts = tuple(name.split("."))
    if not equals or not all(parts):
        raise ConfigError([f"{override!r} is no override; write stage.setting=value, as in world.steps=3000"])
    if len(parts) > MAX_DEPTH:
        raise ConfigError([f"override {parts[0]}...: {len(parts)} names deep; settings lie at most {MAX_DEPTH} deep"])
    stages = tree.get("stages")
    known = [*RESERVED, *(stages if isinstance(stages, dict) else ())]
    if parts[0] not in known:
        raise ConfigError([f"override {override}: there is no stage called {parts[0]!r}; {nearest(parts[0], known)}"])
    path = parts if parts[0] in RESERVED else ("stages", *parts)
    try:
        value = read_yaml(text).value
    except YamlError as error:
        raise ConfigError([f"override {override}: {error.rule}"]) from None
    branch: Any = tree
    for depth, part in enumerate(path[:-1]):
        if branch.get(part) is None:
            branch[part] = {}
        branch = branch[part]
        if not isinstance(branch, dict):
            raise ConfigError([f"override {override}: {dotted(path[: depth + 1])} is {branch!r} and holds no settings"])
    branch[path[-1]] = value
    return override, path


def _located(problem: Problem, source: str, lines: Mapping[Any, int], changed: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    """A problem as a line that says where the value came from: an override, or a line of the file."""
    where = dotted(problem.path)
    what = f"{where}: {problem.rule}" if where else problem.rule
    for override, path in reversed(changed):
        if problem.path[: len(path)] == path:
            return f"override {override}: {what}"
    concerned = [override for override, path in changed if path[: len(problem.path)] == problem.path and problem.path]
    if concerned:  # a rule between several settings, some of them overridden
        what += f" (with {' '.join(concerned)})"
    line = next((lines[problem.path[:depth]] for depth in _from(len(problem.path)) if problem.path[:depth] in lines), None)
    return f"{source}:{line}: {what}" if line else f"{source}: {what}"


def _from(depth: int) -> Iterator[int]:
    yield from range(depth, 0, -1)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError([f"{path} has {path.stat().st_size} bytes; a pipeline file has at most {MAX_BYTES}"])
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([f"{path} is not there; worldloom init writes a file to start from"]) from None
    except IsADirectoryError:
        raise ConfigError([f"{path} is a folder; give a pipeline file"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path} is not text in UTF-8; is it a pipeline file?"]) from None
