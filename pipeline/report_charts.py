"""Charts of the report: curves, bars and the graph of stages, as SVG whose labels are HTML, so that they stay readable on a phone.

The plots stretch with the page (`preserveAspectRatio="none"`, lines of constant width); everything with letters stands beside them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from worldloom.pipeline.markup import Markup, element, join

BUCKETS = 240  # points of a curve, and columns of a histogram, at most
LOG_SPREAD = 60  # a largest value this many times the smallest asks for a logarithmic axis
PLOT = 1000  # side of a plot's own coordinates

Series = Mapping[str, Sequence[tuple[float, float]]]


class Node(NamedTuple):
    """A stage in the graph."""

    name: str
    kind: str
    state: str
    note: str
    inputs: tuple[str, ...]


class _Point(NamedTuple):
    x: float
    mean: float
    low: float
    high: float


def number(value: float) -> str:
    """A number as people read it: four digits that count, thousands apart."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}".replace(",", "\u202f")
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return number(round(value))
    return f"{value:.4g}"


def curves(series: Series, x_name: str, unit: str) -> Markup:
    """Lines over a common axis; more points than BUCKETS become means with a band from least to greatest."""
    points = {name: _bucket(values) for name, values in series.items()}
    everything = [point for line in points.values() for point in line]
    least, greatest = min(point.low for point in everything), max(point.high for point in everything)
    # The means are what is read; a few wild values of the first steps may leave the plot.
    low, high = min(point.mean for point in everything), max(point.mean for point in everything)
    wide = least > 0 and high / least > LOG_SPREAD
    up = _LogScale(low, high) if wide else _Scale(low, high if greatest > 2 * high else greatest)
    along = _Scale(min(point.x for point in everything), max(point.x for point in everything), tight=True)
    lines = [_line(points[name], along, up, index) for index, name in enumerate(points)]
    legend = [
        element("li", {"class": f"s{index % 6}"}, element("i", {}), name, " ", element("b", {}, number(line[-1].mean)))
        for index, (name, line) in enumerate(points.items())
    ]
    readout = {
        "x": x_name,
        "lines": {name: [[point.x, point.mean, round(along(point.x), 1)] for point in line] for name, line in points.items()},
    }
    axis = " ".join(part for part in (unit, "(logarithmic)" if isinstance(up, _LogScale) else "") if part)
    return join(
        [
            element("ul", {"class": "legend"}, legend),
            _frame(up.ticks(), along.ticks(), up, along, join(lines), x_name, axis, json.dumps(readout)),
        ]
    )


def columns(values: Sequence[float], unit: str) -> Markup:
    """One column a value, from the left; more than BUCKETS values become means of neighbours."""
    step = math.ceil(len(values) / BUCKETS)
    means = [sum(values[at : at + step]) / len(values[at : at + step]) for at in range(0, len(values), step)]
    up, along = _Scale(0, max(means) or 1), _Scale(0, len(values), tight=True)
    width = PLOT / len(means)
    gap = width * (0.18 if len(means) < 100 else 0)
    path = "".join(
        f"M{index * width + gap / 2:.1f} {PLOT}V{up.down(mean):.1f}H{(index + 1) * width - gap / 2:.1f}V{PLOT}Z"
        for index, mean in enumerate(means)
    )
    drawn = element("path", {"class": "column", "d": path})
    return _frame(up.ticks(), along.ticks(), up, along, drawn, "", unit, None)


def rows(values: Sequence[float], labels: Sequence[str], unit: str) -> Markup:
    """One labelled bar below the other; a bar of 1 is full where all values are shares."""
    top = 1.0 if max(values) <= 1 else max(values)
    return element(
        "ul",
        {"class": "rows"},
        [
            element(
                "li",
                {},
                element("span", {"class": "label"}, label),
                element("span", {"class": "track"}, element("i", {"style": f"width:{100 * value / top:.2f}%"})),
                element("b", {}, " ".join(filter(None, (number(value), unit)))),
            )
            for value, label in zip(values, labels, strict=True)
        ],
    )


def graph(nodes: Sequence[Node]) -> Markup:
    """The stages and what they read, twice: from left to right for wide pages, from top to bottom for narrow ones."""
    layers = _layers(nodes)
    return join([_drawn(nodes, layers, upright=False), _drawn(nodes, layers, upright=True)])


def _layers(nodes: Sequence[Node]) -> list[list[Node]]:
    """Nodes by the longest way from a stage without inputs; inputs that are not shown count as none."""
    depth: dict[str, int] = {}
    waiting = list(nodes)
    while waiting:
        known = {node.name for node in waiting}
        ready = [node for node in waiting if not known & set(node.inputs)] or waiting  # a cycle is not ours to report
        for node in ready:
            depth[node.name] = 1 + max((depth[name] for name in node.inputs if name in depth), default=-1)
        waiting = [node for node in waiting if node.name not in depth]
    return [[node for node in nodes if depth[node.name] == layer] for layer in range(max(depth.values(), default=-1) + 1)]


class _Box(NamedTuple):
    x: float
    y: float


def _drawn(nodes: Sequence[Node], layers: Sequence[Sequence[Node]], upright: bool) -> Markup:
    width, height = (150, 66) if upright else (168, 66)
    across, along = (12, 30) if upright else (18, 40)  # between neighbours of a layer, and between layers
    most = max((len(layer) for layer in layers), default=0)
    side, pitch = (width + across, height + along) if upright else (height + across, width + along)
    boxes = {}
    for depth, layer in enumerate(layers):
        start = (most - len(layer)) * side / 2
        for index, node in enumerate(layer):
            sideways, forward = start + index * side, depth * pitch
            boxes[node.name] = _Box(sideways, forward) if upright else _Box(forward, sideways)
    breadth, length = most * side - across, len(layers) * pitch - along
    total = (breadth, length) if upright else (length, breadth)
    edges = [
        element("path", {"class": "edge", "d": _edge(boxes[name], boxes[node.name], width, height, upright)})
        for node in nodes
        for name in dict.fromkeys(node.inputs)
        if name in boxes
    ]
    drawn = [_box(node, boxes[node.name], width, height) for node in nodes]
    return element(
        "svg",
        {
            "class": "graph upright" if upright else "graph lying",
            "viewBox": f"-2 -2 {total[0] + 4:g} {total[1] + 4:g}",
            "width": total[0] + 4,
            "height": total[1] + 4,
            "role": "img",
            "aria-label": "The stages of the run and what each one reads: " + "; ".join(_spoken(node) for node in nodes),
        },
        edges,
        drawn,
    )


def _edge(source: _Box, target: _Box, width: float, height: float, upright: bool) -> str:
    if upright:
        x0, y0, x1, y1 = source.x + width / 2, source.y + height, target.x + width / 2, target.y
        middle = y1 - min(24, (y1 - y0) / 2)
        return f"M{x0:g} {y0:g}C{x0:g} {middle:g} {x1:g} {middle - 8:g} {x1:g} {y1:g}"
    x0, y0, x1, y1 = source.x + width, source.y + height / 2, target.x, target.y + height / 2
    middle = (x0 + x1) / 2
    return f"M{x0:g} {y0:g}C{middle:g} {y0:g} {middle:g} {y1:g} {x1:g} {y1:g}"


def _box(node: Node, at: _Box, width: float, height: float) -> Markup:
    letters = int(width / 8.2)
    return element(
        "a",
        {"href": f"#stage-{node.name}", "class": f"node {state_class(node.state)}"},
        element("title", {}, _spoken(node)),
        element("rect", {"x": at.x, "y": at.y, "width": width, "height": height, "rx": 9}),
        element("text", {"class": "name", "x": at.x + 13, "y": at.y + 22}, _short(node.name, letters)),
        element("text", {"x": at.x + 13, "y": at.y + 38}, _short(node.kind, letters + 2)),
        element("circle", {"cx": at.x + 17, "cy": at.y + 51, "r": 3.6}),
        element("text", {"x": at.x + 26, "y": at.y + 55}, _short(" · ".join(filter(None, (node.state, node.note))), letters)),
    )


def state_class(state: str) -> str:
    """The class that colours a state."""
    return {"done": "good", "failed": "bad", "running": "busy"}.get(state, "idle")


def _spoken(node: Node) -> str:
    return f"{node.name} ({node.kind}) {node.state} {node.note}".rstrip() + (f", from {', '.join(node.inputs)}" if node.inputs else "")


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


class _Scale:
    """Values to the plot's coordinates, with room above and below unless tight."""

    def __init__(self, low: float, high: float, tight: bool = False) -> None:
        if low == high:
            low, high = low - (abs(low) or 1) * (0 if tight else 0.1), high + (abs(high) or 1) * 0.1
        step = _nice((high - low) / 5)
        self.step = step
        self.low, self.high = (low, high) if tight else (math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)

    def __call__(self, value: float) -> float:
        """From the left."""
        return PLOT * (value - self.low) / (self.high - self.low)

    def down(self, value: float) -> float:
        """From the top."""
        return PLOT - min(max(self(value), 0), PLOT)

    def ticks(self) -> list[tuple[float, str]]:
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [(index * self.step, number(round(index * self.step, 10))) for index in range(first, last + 1)]


class _LogScale(_Scale):
    """Powers of ten."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = math.log10(low) - 0.05, math.log10(high) + 0.05

    def __call__(self, value: float) -> float:
        return PLOT * (math.log10(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        powers = range(math.ceil(self.low), math.floor(self.high) + 1)
        wanted = [1.0] if len(powers) > 2 else [1.0, 2.0, 5.0]
        values = [factor * 10.0**power for power in range(math.floor(self.low), math.floor(self.high) + 1) for factor in wanted]
        return [(value, number(value)) for value in values if self.low <= math.log10(value) <= self.high]


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999) * power


def _bucket(values: Sequence[tuple[float, float]]) -> list[_Point]:
    step = math.ceil(len(values) / BUCKETS)
    points = []
    for at in range(0, len(values), step):
        part = values[at : at + step]
        heights = [y for _, y in part]
        points.append(_Point(part[-1][0], sum(heights) / len(heights), min(heights), max(heights)))
    return points


def _line(points: Sequence[_Point], along: _Scale, up: _Scale, index: int) -> Markup:
    def path(pairs: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{along(x):.1f},{up.down(y):.1f}" for x, y in pairs)

    band = element(
        "polygon",
        {"points": path([(p.x, p.high) for p in points]) + " " + path([(p.x, p.low) for p in reversed(points)])},
    )
    line = element("polyline", {"points": path([(p.x, p.mean) for p in points])})
    dots = [element("polyline", {"class": "dot", "points": path([(points[0].x, points[0].mean)] * 2)})] if len(points) == 1 else []
    return element("g", {"class": f"s{index % 6}"}, band if any(p.low != p.high for p in points) else None, line, dots)


def _frame(
    y_ticks: Sequence[tuple[float, str]],
    x_ticks: Sequence[tuple[float, str]],
    up: _Scale,
    along: _Scale,
    drawn: Markup,
    x_name: str,
    y_name: str,
    readout: str | None,
) -> Markup:
    grid = element("path", {"class": "grid", "d": "".join(f"M0 {up.down(value):.1f}H{PLOT}" for value, _ in y_ticks)})
    plot = element("svg", {"viewBox": f"0 0 {PLOT} {PLOT}", "preserveAspectRatio": "none", "aria-hidden": "true"}, grid, drawn)
    side = [element("span", {"style": f"top:{up.down(value) / PLOT:.2%}"}, label) for value, label in y_ticks]
    foot = [element("span", {"style": f"left:{along(value) / PLOT:.2%}"}, label) for value, label in x_ticks]
    return element(
        "div",
        {"class": "plot", "data-readout": readout},
        element("div", {"class": "unit"}, y_name) if y_name else None,
        element("div", {"class": "side", "aria-hidden": "true"}, side),
        element("div", {"class": "area"}, plot),
        element("div", {"class": "foot", "aria-hidden": "true"}, foot),
        element("div", {"class": "unit end"}, x_name) if x_name else None,
    )
