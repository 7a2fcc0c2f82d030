"""Which streams may share a tokenizer. Imports no torch: pipeline files are checked by it, too."""

from collections.abc import Mapping, Sequence

from worldloom.stages.settings import Stream, VideoStream
from worldloom.stages.stream_kind import Form
from worldloom.stages.streams import kind_of


def check_together(stream: str, also: Sequence[str], streams: Mapping[str, Stream]) -> None:
    """ValueError unless the streams of `also` are of the kind and the form of `stream`, or clips with frames of its pictures' form."""
    main = streams[stream]
    for name in also:
        other = streams.get(name)
        if other is None:
            raise ValueError(f"also: the dataset has no stream {name!r}; it has {', '.join(sorted(streams))}")
        if _frame(other) != _together(main) and _together(other) != _together(main):
            raise ValueError(
                f"also: {name!r} ({_said(other)}) cannot share the tokenizer of {stream!r} ({_said(main)}): kind and form must be the "
                f"same, or those of pictures and of clips with such frames; make them equal in streams, or train a tokenizer for "
                f"{name!r} alone"
            )


def _together(stream: Stream) -> tuple[object, ...]:
    form = kind_of(stream.kind).form
    return stream.kind, form and form(stream), getattr(stream, "sample_rate", None), getattr(stream, "frame_rate", None)


def _frame(stream: Stream) -> tuple[object, ...] | None:
    """What a frame of a clip is, as `_together` of a picture; None for other kinds."""
    if not isinstance(stream, VideoStream):
        return None
    return "image", Form((stream.height, stream.width, 3), "uint8"), None, None


def _said(stream: Stream) -> str:
    form = kind_of(stream.kind).form
    rate = getattr(stream, "sample_rate", None) or getattr(stream, "frame_rate", None)
    shape = "" if form is None else f" {' x '.join(map(str, form(stream).shape))}"
    return f"{stream.kind}{shape}" + (f" at {rate:g} Hz" if rate else "")
