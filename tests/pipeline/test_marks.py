from typing import Annotated, Literal

from pydantic import Field

from worldloom.pipeline.marks import links, output_settings, stream_links
from worldloom.stages.settings import NOT_IN_OUTPUT, DatasetRef, Settings, StageSettings, StreamName, TokenizerRef, TokensRef


class Inner(Settings):
    judge: TokensRef | None = None
    seed: int = 3
    workers: Annotated[int, NOT_IN_OUTPUT] = 5


class Other(Settings):
    kind: Literal["other"] = "other"


class Everything(StageSettings):
    run: Literal["everything"] = "everything"
    data: DatasetRef = "d"
    tokenizers: dict[str, TokenizerRef] = Field(default={})
    more: tuple[TokensRef, ...] = ()
    pair: tuple[int, TokensRef] | None = None
    inner: Inner | Other | None = None
    several: dict[str, Inner] = Field(default={})
    parts: tuple[Inner, ...] = ()
    maybe: Annotated[DatasetRef | None, NOT_IN_OUTPUT] = None
    hidden: Annotated[Inner, NOT_IN_OUTPUT] = Inner()
    plain: str = "d"


def test_references_are_found_wherever_the_settings_hold_them():
    settings = Everything(
        tokenizers={"caption": "a", "frame": "b"},
        more=("t0", "t1"),
        pair=(7, "t2"),
        inner=Inner(judge="t3"),
        several={"x": Inner(judge="t4"), "y": Inner()},
        parts=(Inner(), Inner(judge="t5")),
        maybe="e",
    )
    assert {link.field: (link.stage, link.produces) for link in links(settings)} == {
        "data": ("d", "dataset"),
        "tokenizers.caption": ("a", "tokenizer"),
        "tokenizers.frame": ("b", "tokenizer"),
        "more.0": ("t0", "tokens"),
        "more.1": ("t1", "tokens"),
        "pair.1": ("t2", "tokens"),
        "inner.judge": ("t3", "tokens"),
        "several.x.judge": ("t4", "tokens"),
        "parts.1.judge": ("t5", "tokens"),
        "maybe": ("e", "dataset"),
    }


def test_settings_that_cannot_change_the_output_are_left_out_at_every_depth():
    settings = Everything(
        inner=Inner(workers=6), several={"x": Inner(workers=7)}, parts=(Inner(workers=8),), hidden=Inner(seed=9), maybe="e"
    )
    kept = output_settings(settings)
    assert kept == output_settings(Everything(inner=Inner(), several={"x": Inner()}, parts=(Inner(),)))
    assert "hidden" not in kept and "maybe" not in kept
    assert kept["inner"] == {"judge": None, "seed": 3}
    assert kept["parts"] == [{"judge": None, "seed": 3}]
    assert kept["plain"] == "d"


class Streams(StageSettings):
    run: Literal["streams"] = "streams"
    stream: Annotated[str, StreamName(("text", "image"))] = "caption"
    weights: dict[Annotated[str, StreamName()], float] = Field(default={})


def test_names_of_streams_are_found_in_values_and_in_keys():
    found = [(link.path, link.stream, link.kinds) for link in stream_links(Streams(weights={"frame": 0.5}))]
    assert found == [(("stream",), "caption", ("text", "image")), (("weights", "frame"), "frame", ())]


def test_other_settings_stay_in():
    assert output_settings(Everything(inner=Inner(seed=4))) != output_settings(Everything(inner=Inner()))
