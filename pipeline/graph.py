"""The graph of a pipeline, read off the settings that name other stages."""

from collections.abc import Iterator, Mapping

from worldloom.pipeline.marks import Link, links, stream_links
from worldloom.pipeline.problems import Problem, dotted, nearest
from worldloom.stages.estimate import Estimate
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import StageSettings


def graph_problems(stages: Mapping[str, StageSettings], kinds: Mapping[str, StageKind]) -> list[Problem]:
    """Names that lead nowhere or to the wrong kind of stage; where there are none, a cycle; where there is none, wrong streams.

    Last of all what a stage says of its inputs, as far as these can be known before anything runs.
    """
    problems = [problem for name, settings in stages.items() for link in links(settings) for problem in _wrong(name, link, stages, kinds)]
    problems = problems or list(_cycle(stages)) or [problem for name in stages for problem in _wrong_streams(name, stages)]
    return problems or list(_refused(stages, kinds))


def in_order(stages: Mapping[str, StageSettings]) -> list[str]:
    """The names so that every stage comes after those it names, otherwise as in the file. The graph must have no problem."""
    waiting = {name: {link.stage for link in links(settings)} for name, settings in stages.items()}
    order: list[str] = []
    while waiting:
        ready = next(name for name, needs in waiting.items() if needs.isdisjoint(waiting))
        order.append(ready)
        del waiting[ready]
    return order


def _wrong(name: str, link: Link, stages: Mapping[str, StageSettings], kinds: Mapping[str, StageKind]) -> Iterator[Problem]:
    path = ("stages", name, *link.path)
    if link.stage not in stages:
        yield Problem(path, f"there is no stage called {link.stage!r}; {nearest(link.stage, stages)}")
        return
    kind = kinds[stages[link.stage].run]
    if kind.produces != link.produces:
        fitting = [other for other, settings in stages.items() if kinds[settings.run].produces == link.produces]
        way_out = f"these do: {', '.join(fitting)}" if fitting else f"no stage here makes a {_words(link.produces)}"
        yield Problem(
            path, f"a {_words(link.produces)} is needed, and {link.stage} ({kind.name}) makes a {_words(kind.produces)}; {way_out}"
        )


def _wrong_streams(name: str, stages: Mapping[str, StageSettings]) -> Iterator[Problem]:
    dataset = next((stages[link.stage] for link in links(stages[name]) if link.produces == "dataset"), None)
    streams = getattr(dataset, "streams", None)
    if not isinstance(streams, dict):
        return
    for link in stream_links(stages[name]):
        path = ("stages", name, *link.path)
        if link.stream not in streams:
            yield Problem(path, f"the dataset has no stream called {link.stream!r}; {nearest(link.stream, streams)}")
        elif link.kinds and streams[link.stream].kind not in link.kinds:
            yield Problem(
                path, f"a stream of kind {' or '.join(link.kinds)} is needed, and {link.stream} is of kind {streams[link.stream].kind}"
            )


def _refused(stages: Mapping[str, StageSettings], kinds: Mapping[str, StageKind]) -> Iterator[Problem]:
    estimates: dict[str, Estimate] = {}
    for name in in_order(stages):
        inputs = {dotted(link.path): estimates[link.stage] for link in links(stages[name])}
        estimate = kinds[stages[name].run].estimate
        try:
            estimates[name] = estimate(stages[name], inputs) if estimate is not None else Estimate()
        except ValueError as error:
            estimates[name] = Estimate()
            yield Problem(("stages", name), str(error))


def _cycle(stages: Mapping[str, StageSettings]) -> Iterator[Problem]:
    done: set[str] = set()
    for start in stages:
        trail: list[tuple[str, Iterator[Link]]] = [(start, iter(links(stages[start])))]
        while trail and start not in done:
            name, rest = trail[-1]
            link = next((link for link in rest if link.stage not in done), None)
            if link is None:
                done.add(name)
                trail.pop()
                continue
            names = [name for name, _ in trail]
            if link.stage in names:
                circle = [*names[names.index(link.stage) :], link.stage]
                yield Problem(("stages", name, *link.path), f"the stages wait for each other: {' -> '.join(circle)}")
                return
            trail.append((link.stage, iter(links(stages[link.stage]))))


def _words(produces: str) -> str:
    return {"tokens": "set of tokens", "features": "set of features", "scores": "set of scores"}.get(produces, produces.replace("_", " "))
