"""The frame of the report: style and script go into the page, so that nothing is fetched from anywhere."""

from pathlib import Path

from worldloom.pipeline.markup import Markup, element

# Threads over and under each other, in the colours of the page.
LOGO = Markup(
    '<svg class="logo" viewBox="0 0 28 28" width="28" height="28" aria-hidden="true" fill="none" stroke-width="3.4" stroke-linecap="round">'
    '<path class="weft" d="M2 7h24M2 14h24M2 21h24"/><path class="gap" d="M7 3v8M7 18v7M14 10v8M21 3v8M21 18v7"/>'
    '<path class="warp" d="M7 2v9M7 18v8M14 2v1.5M14 10.5v7M14 24.5v1.5M21 2v9M21 18v8"/></svg>'
)


def page(title: str, body: Markup) -> str:
    """A whole HTML document."""
    head = element(
        "head",
        {},
        element("meta", {"charset": "utf-8"}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", {}, title),
        element("style", {}, Markup(_beside("report.css"))),
    )
    rest = element("body", {}, body, element("script", {}, Markup(_beside("report.js"))))
    return f"<!doctype html>\n{element('html', {'lang': 'en'}, head, rest)}\n"


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
