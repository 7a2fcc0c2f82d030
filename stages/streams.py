"""The kinds of streams there are."""

from worldloom.stages import stream_action, stream_audio, stream_image, stream_text, stream_video
from worldloom.stages.stream_kind import StreamKind

KINDS: dict[str, StreamKind] = {
    "text": stream_text.KIND,
    "image": stream_image.KIND,
    "video": stream_video.KIND,
    "audio": stream_audio.KIND,
    "action": stream_action.KIND,
}


def kind_of(stream_kind: str) -> StreamKind:
    """The record of a kind; ValueError names the known ones."""
    if stream_kind not in KINDS:
        raise ValueError(f"there is no kind of stream called {stream_kind!r}; there are {', '.join(sorted(KINDS))}")
    return KINDS[stream_kind]
