"""Which streams may share a tokenizer. Imports no torch: pipeline files are checked by it, too."""

from collections.abc import Mapping, Sequence

from worldloom.stages.settings import Stream
from worldloom.stages.streams import kind_of


def check_together(stream: str, also: Sequence[str], streams: Mapping[str, Stream]) -> None:
    """ValueError unless the streams of `also` are of the kind and the form of `stream`."""
    main = streams[stream]
    for name in also:
        other = streams.get(name)
        if other is None:
            raise ValueError(f"also: the dataset has no stream {name!r}; it has {', '.join(sorted(streams))}")
        if _together(other) != _together(main):
            raise ValueError(
                f"also: {name!r} ({_said(other)}) cannot share the tokenizer of {stream!r} ({_said(main)}): kind and form must be "
                f"the same; make them equal in streams, or train a tokenizer for {name!r} alone"
            )


def _together(stream: Stream) -> tuple[object, ...]:
    form = kind_of(stream.kind).form
    return stream.kind, form and form(stream), getattr(stream, "sample_rate", None), getattr(stream, "frame_rate", None)


def _said(stream: Stream) -> str:
    form = kind_of(stream.kind).form
    rate = getattr(stream, "sample_rate", None) or getattr(stream, "frame_rate", None)
    shape = "" if form is None else f" {' x '.join(map(str, form(stream).shape))}"
    return f"{stream.kind}{shape}" + (f" at {rate:g} Hz" if rate else "")
