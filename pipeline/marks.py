"""Reads the marks that settings carry in their annotations: which fields name another stage, which cannot change the output."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from worldloom.stages.settings import NotInOutput, Reference, StageSettings, StreamName, dump

Path = tuple[str | int, ...]


class Link(NamedTuple):
    """A setting that names another stage."""

    path: Path
    stage: str
    produces: str

    @property
    def field(self) -> str:
        """The path as `inputs` has it: `data`, `tokenizers.frame`."""
        return ".".join(map(str, self.path))


def links(settings: StageSettings) -> tuple[Link, ...]:
    """Every setting that names another stage, in the order of the fields."""
    return tuple(
        Link(path, value, mark.produces)
        for path, value, marks in _walk_model(settings, ())
        for mark in marks
        if isinstance(mark, Reference) and isinstance(value, str)
    )


class StreamLink(NamedTuple):
    """A setting that names a stream."""

    path: Path
    stream: str
    kinds: tuple[str, ...]  # () for any


def stream_links(settings: StageSettings) -> tuple[StreamLink, ...]:
    """Every setting that names a stream of the dataset, in the order of the fields."""
    return tuple(
        StreamLink(path, value, mark.kinds)
        for path, value, marks in _walk_model(settings, ())
        for mark in marks
        if isinstance(mark, StreamName) and isinstance(value, str)
    )


def output_settings(settings: BaseModel) -> dict[str, Any]:
    """The settings that can change the output, as plain JSON values."""
    tree = dump(settings)
    for path, _, marks in _walk_model(settings, ()):
        if any(isinstance(mark, NotInOutput) for mark in marks):
            _remove(tree, path)
    return tree


def _walk_model(model: BaseModel, above: Path) -> Iterator[tuple[Path, Any, tuple[Any, ...]]]:
    """Every value below `model`, and every key of a mapping, with its marks, each after those above it."""
    for name, field in type(model).model_fields.items():
        yield from _walk(getattr(model, name), field.annotation, tuple(field.metadata), (*above, name))


def _walk(value: Any, annotation: Any, marks: tuple[Any, ...], path: Path) -> Iterator[tuple[Path, Any, tuple[Any, ...]]]:
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        marks += tuple(more)
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            if get_origin(member) is Annotated and (isinstance(value, str) or get_args(member)[0] is type(value)):
                marks += tuple(get_args(member)[1:])
    yield path, value, marks
    if isinstance(value, BaseModel):
        yield from _walk_model(value, path)
        return
    for inner in _alternatives(annotation):
        if isinstance(value, dict) and get_origin(inner) is dict:
            for key, item in value.items():
                yield from _walk(key, get_args(inner)[0], (), (*path, key))
                yield from _walk(item, get_args(inner)[1], (), (*path, key))
        elif isinstance(value, tuple | list) and get_origin(inner) in (tuple, list):
            for number, item in enumerate(value):
                kinds = get_args(inner)
                several = get_origin(inner) is tuple and kinds[-1] is not ...
                yield from _walk(item, kinds[number] if several else kinds[0], (), (*path, number))


def _alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _alternatives(member)
    else:
        yield annotation


def _remove(tree: Any, path: Path) -> None:
    *above, last = path
    for part in above:
        tree = tree[int(part)] if isinstance(tree, list) else tree.get(part)
        if tree is None:
            return  # a field above it is out already
    if isinstance(tree, dict):
        tree.pop(str(last), None)
