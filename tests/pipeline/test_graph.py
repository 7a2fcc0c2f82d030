from typing import Literal

import pytest

from worldloom.pipeline.graph import graph_problems, in_order
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import StageSettings, TokensRef


class Chain(StageSettings):
    run: Literal["chain"] = "chain"
    after: tuple[TokensRef, ...] = ()


KINDS = {"chain": StageKind("chain", Chain, lambda *_: None, lambda *_: {}, "tokens", 1, "shards")}


def chains(**after):
    return {name: Chain(after=names) for name, names in after.items()}


def test_stages_come_after_those_they_need_and_else_as_in_the_file():
    assert in_order(chains(d=("b", "c"), a=(), c=("a",), b=("a",), e=())) == ["a", "c", "b", "d", "e"]


@pytest.mark.parametrize(
    ("stages", "circle"),
    [
        (chains(a=("a",)), "a -> a"),
        (chains(a=("b",), b=("a",)), "a -> b -> a"),
        (chains(x=(), a=("x", "b"), b=("c",), c=("x", "a")), "a -> b -> c -> a"),
        (chains(a=("b",), b=("c",), c=("b",)), "b -> c -> b"),
    ],
)
def test_a_circle_is_shown_whole(stages, circle):
    (problem,) = graph_problems(stages, KINDS)
    assert problem.rule == f"the stages wait for each other: {circle}"
    assert problem.path[0] == "stages"


def test_a_diamond_is_no_circle():
    assert graph_problems(chains(d=("b", "c"), b=("a",), c=("a",), a=()), KINDS) == []


def test_a_thousand_stages_in_a_row_are_no_problem():
    stages = chains(**{f"s{n}": (f"s{n + 1}",) for n in range(1000)}, s1000=())
    assert graph_problems(stages, KINDS) == []
    assert in_order(stages)[0] == "s1000"
