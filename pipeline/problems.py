"""What is wrong with a pipeline, said so that people can mend it: field, value, rule, and the nearest name for a misspelt one."""

import difflib
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]

LONGEST_VALUE = 60  # characters of a value in a message
NAME_RULE = "a name starts with a small letter or a digit and goes on with small letters, digits, _ and -, at most 63 characters"


class Problem(NamedTuple):
    """`path` leads to the value in the file, `rule` says what is wrong with it."""

    path: Path
    rule: str


class ConfigError(ValueError):
    """A pipeline that cannot be run; `problems` are lines for people, the most telling one first."""

    def __init__(self, problems: Sequence[str]) -> None:
        more = len(problems) - 1
        super().__init__(problems[0] + (f" (and {more} more: worldloom validate lists them)" if more else ""))
        self.problems = tuple(problems)


def dotted(path: Path) -> str:
    """A path as people write it in overrides: the stage's name first."""
    return ".".join(str(part) for part in (path[1:] if len(path) > 1 and path[0] == "stages" else path))


def nearest(word: object, known: Iterable[str]) -> str:
    """A half sentence that names the nearest known word, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(names)}" if names else "there are none"


def problems_of(error: ValidationError, model: type[BaseModel], tree: Any, above: Path = ()) -> Iterator[Problem]:
    """The problems that pydantic found in `tree`, which lies below `above` in the file."""
    for detail in _of_the_nearest_alternative(error.errors(include_url=False, include_context=True), tree):
        tag = (str(detail["ctx"]["discriminator"]).strip("'"),) if detail["type"] == "union_tag_invalid" else ()
        yield Problem((*above, *_place(detail, tree), *tag), _rule(detail, model))


def _of_the_nearest_alternative(details: Sequence[ErrorDetails], tree: Any) -> Iterator[ErrorDetails]:
    """One error for a value that may be of several types (a number or a pair): that of the type which it is nearest to."""
    places = [_place(detail, tree) for detail in details]
    for number, (detail, place) in enumerate(zip(details, places, strict=True)):
        others = [at for at, there in enumerate(places) if at != number and there[: len(place)] == place]
        nearer = [at for at in others if places[at] != place or not details[at]["type"].endswith("_type") or at < number]
        if not detail["type"].endswith("_type") or not nearer:
            yield detail


def _place(detail: ErrorDetails, tree: Any) -> Path:
    """Where the error lies in the file: pydantic's location without the tags of unions that it passes through."""
    place: list[str | int] = []
    node = tree
    for part in detail["loc"]:
        if isinstance(node, dict) and part in node:
            node = node[str(part)]
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            continue
        place.append(part)
    return tuple(place)


def _rule(detail: ErrorDetails, model: type[BaseModel]) -> str:
    kind, last = detail["type"], detail["loc"][-1] if detail["loc"] else ""
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"there is no such setting; {nearest(last, _settings_at(model, detail['loc'][:-1]))}"
    if kind == "missing":
        return f"item {last + 1} is missing" if isinstance(last, int) else f"the setting {last} is missing"
    if kind == "union_tag_not_found":
        return f"the setting {str(context['discriminator']).strip(chr(39))} is missing"
    if kind == "union_tag_invalid":
        name, known = str(context["discriminator"]).strip("'"), str(context["expected_tags"]).replace("'", "").split(", ")
        return f"{context['tag']!r} is not a known {name}; {nearest(context['tag'], known)}"
    if last == "[key]" and kind == "string_pattern_mismatch":
        return NAME_RULE
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    rule = detail["msg"].removeprefix("Input ")
    if kind == "literal_error":
        known = [word.strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(", ")]
        return f"{_shown(detail['input'])} is not known; {nearest(detail['input'], known)}"
    if kind == "string_pattern_mismatch" and context.get("pattern", "").startswith("^[a-z0-9]"):
        rule = "should be small letters, digits, _ and -, at most 63 characters"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        rule = "should be a mapping (name: value)"
    if kind == "bool_type":
        rule = "should be true or false"
    return f"{rule}, got {_shown(detail['input'])}"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _settings_at(model: Any, loc: Sequence[str | int]) -> set[str]:
    """The names of the settings where `loc`, with its tags of unions, leads."""
    places = [model]
    for part in loc:
        places = [inner for place in places for inner in _inside(place, part)] or places
    return {name for place in places for member in _members(place) if _is_model(member) for name in member.model_fields}


def _inside(annotation: Any, part: str | int) -> Iterator[Any]:
    for member in _members(annotation):
        if _is_model(member):
            if part in member.model_fields:
                yield member.model_fields[part].annotation
            elif any(
                part in get_args(field.annotation) for field in member.model_fields.values() if get_origin(field.annotation) is Literal
            ):
                yield member  # `part` is this member's tag
        elif get_args(member):
            yield get_args(member)[-1 if get_origin(member) is dict else 0]


def _members(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation, which is often just the one."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
