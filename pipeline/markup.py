"""HTML and SVG built as values: whatever is not Markup already is escaped, so no caption can become code."""

import html
from collections.abc import Iterable, Mapping

_VOID = frozenset({"br", "img", "meta", "link", "hr"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = Markup | str | None
Attribute = str | int | float | bool | None


def element(name: str, attributes: Mapping[str, Attribute] | None = None, *children: Child | Iterable[Child]) -> Markup:
    """One element. An attribute of None or False is left out, of True stands alone; a child of None is left out."""
    opening = name + "".join(_attribute(key, value) for key, value in (attributes or {}).items())
    if name in _VOID:
        assert not children, f"<{name}> holds nothing"
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{join(children)}</{name}>")


def join(children: Iterable[Child | Iterable[Child]]) -> Markup:
    """Children one behind the other, escaped where they are plain text."""
    return Markup("".join(_child(child) for child in children))


def _child(child: Child | Iterable[Child]) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return html.escape(child)
    return join(child)


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return f" {key}"
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return f' {key}="{html.escape(str(value))}"'
