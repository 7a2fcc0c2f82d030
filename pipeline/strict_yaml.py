"""YAML as people mean it: no aliases, no tags, no doubled keys, scalars by YAML 1.2, limits on size and depth.

YAML 1.1, which PyYAML reads by itself, takes `no` for false, `12:30:45` for 45045, `017` for 15 and `1e-4` for text. Here a plain scalar is
what the core schema of YAML 1.2 says (yaml.org/spec/1.2.2, section 10.3.2), a quoted one is text, and a key is always text.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32

Path = tuple[str | int, ...]

_NULL = re.compile(r"(?:null|Null|NULL|~|)\Z")
_TRUE = re.compile(r"(?:true|True|TRUE)\Z")
_FALSE = re.compile(r"(?:false|False|FALSE)\Z")
_INTEGER = re.compile(r"[-+]?[0-9]+\Z")
_OCTAL = re.compile(r"0o[0-7]+\Z")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_VARIABLE_NAME = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)\Z")

# The C parser is ten times as fast; both follow the same grammar.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """Text that is not the YAML accepted here; `line` counts from 1, `rule` says what is wrong."""

    def __init__(self, line: int, rule: str) -> None:
        super().__init__(f"line {line}: {rule}")
        self.line = line
        self.rule = rule


class Document(NamedTuple):
    """What a text says, and where: `lines` gives the line of every key and item, counted from 1."""

    value: Any
    lines: dict[Path, int]


def read_yaml(text: str, environment: Mapping[str, str] = os.environ) -> Document:
    """Reads one YAML document; `${env:NAME}` in a value stands for the variable NAME of `environment`.

    A plain value is resolved after its variables are filled in, so `steps: ${env:STEPS}` may give a number. YamlError on anything else.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise YamlError(1, f"the text has {size} bytes, at most {MAX_BYTES} are read")
    reader = _Reader(environment)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise YamlError(mark.line + 1 if mark else 1, f"not YAML: {error.problem}") from None
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise YamlError(1, f"not YAML: {' '.join(str(error).split())}") from None
    return Document(reader.value, reader.lines)


class _Reader:
    """Builds the value from parser events, which come one by one: a limit is met before anything deeper is read."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.value: Any = None
        self.lines: dict[Path, int] = {}
        self._environment = environment
        self._documents = 0
        self._open: list[_Branch] = []

    def take(self, event: yaml.Event) -> None:
        match event:
            case yaml.AliasEvent():
                raise YamlError(_line(event), f"aliases (*{event.anchor}) are not read; write the value out")
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise YamlError(_line(event), "one document is read, a second one starts here")
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._refuse_node_properties(event)
                branch: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
                self._open.append(_Branch(branch, self._add(branch, event)))
                if len(self._open) > MAX_DEPTH:
                    raise YamlError(_line(event), f"nested more than {MAX_DEPTH} deep")
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._open.pop()
            case yaml.ScalarEvent():
                self._refuse_node_properties(event)
                self._add_scalar(event)

    def _add_scalar(self, event: yaml.ScalarEvent) -> None:
        if self._open and self._open[-1].awaits_key():
            self._open[-1].key = self._new_key(event)
            return
        plain = event.implicit[0]
        text = self._fill_in(event)
        self._add(_resolve(text, _line(event)) if plain else text, event)

    def _new_key(self, event: yaml.ScalarEvent) -> str:
        key = str(event.value)
        branch = self._open[-1]
        if key in branch.value:
            first = self.lines[(*branch.path, key)]
            raise YamlError(_line(event), f"the key {key!r} stands here a second time; it is on line {first} already")
        self.lines[(*branch.path, key)] = _line(event)
        return key

    def _add(self, value: Any, event: yaml.Event) -> Path:
        """Puts a value where it belongs and gives its path."""
        if not self._open:
            self.value = value
            return ()
        branch = self._open[-1]
        if isinstance(branch.value, list):
            path = (*branch.path, len(branch.value))
            branch.value.append(value)
            self.lines[path] = _line(event)
            return path
        if branch.key is None:
            raise YamlError(_line(event), "a key must be plain text, not a list or a mapping")
        path = (*branch.path, branch.key)
        branch.value[branch.key] = value
        branch.key = None
        return path

    def _fill_in(self, event: yaml.ScalarEvent) -> str:
        def variable(found: re.Match[str]) -> str:
            name = _VARIABLE_NAME.match(found[1])
            if name is None:
                raise YamlError(_line(event), f"{found[0]} is not understood; only ${{env:NAME}} is filled in")
            if name[1] not in self._environment:
                raise YamlError(
                    _line(event), f"the environment variable {name[1]} is not set; set it, or write the value in place of {found[0]}"
                )
            return self._environment[name[1]]

        return _VARIABLE.sub(variable, event.value)

    @staticmethod
    def _refuse_node_properties(event: yaml.NodeEvent) -> None:
        if event.anchor is not None:
            raise YamlError(_line(event), f"anchors (&{event.anchor}) are not read; write the value out")
        if event.tag is not None:  # type: ignore[attr-defined]
            raise YamlError(_line(event), f"tags ({event.tag}) are not read; quote a value to make it text")  # type: ignore[attr-defined]


class _Branch:
    """A mapping or list that is still open, and the key whose value comes next."""

    def __init__(self, value: Any, path: Path) -> None:
        self.value = value
        self.path = path
        self.key: str | None = None

    def awaits_key(self) -> bool:
        return isinstance(self.value, dict) and self.key is None


def _resolve(text: str, line: int) -> Any:
    if _NULL.match(text):
        return None
    if _TRUE.match(text):
        return True
    if _FALSE.match(text):
        return False
    if _INTEGER.match(text) or _OCTAL.match(text) or _HEXADECIMAL.match(text):
        # Within 64 bits, so that the number is the same in JSON, in numpy and in every other reader of it.
        number = int(text, 10 if _INTEGER.match(text) else 0) if len(text) <= 24 else 2**64
        if not -(2**63) <= number < 2**63:
            raise YamlError(line, f"whole numbers must fit 64 bits, this one does not: {text[:40]}")
        return number
    if _NOT_FINITE.match(text):
        raise YamlError(line, f"numbers must be finite, not {text}")
    if _FLOAT.match(text):
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise YamlError(line, f"numbers must be finite, {text[:40]} is not")
        return value
    return text


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return int(event.start_mark.line) + 1
