"""Names that stand beside those of streams, in weights, temperatures and metrics: no stream is called like one.

Imports nothing, so that a pipeline file is checked without waiting for anything.
"""

from collections.abc import Iterable

# Of what a choice between streams costs, of the softmax over all ids, and of the objectives.
RESERVED = ("full", "masked", "next_token", "order", "span")


def refuse_reserved(streams: Iterable[str]) -> None:
    """ValueError if a stream has a name that means something else."""
    if taken := [name for name in streams if name in RESERVED]:
        raise ValueError(
            f"no stream can be called {taken[0]}: {', '.join(RESERVED)} stand beside the names of streams in weights, temperatures and "
            f"metrics; call it {taken[0]}s, or something else"
        )
