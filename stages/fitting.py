"""Which tokenizer can learn which stream. Imports no torch: pipeline files are checked by it, too."""

from typing import TYPE_CHECKING

from worldloom.stages.settings import AudioStream, ImageStream, Stream, VideoStream
from worldloom.tokenizers.audio_settings import Mel

if TYPE_CHECKING:
    from worldloom.stages.train_tokenizer import TrainTokenizer

_PICTURES, _SOUNDS = ("vqgan", "vqvae", "dvae"), ("codec", "mel")
TYPES = {"image": _PICTURES, "video": _PICTURES, "audio": _SOUNDS}  # of tokenizers, by the kind of stream that they learn


def check_fits(settings: "TrainTokenizer", stream: Stream) -> None:
    """ValueError where the tokenizer does not learn streams of this kind, or its codes do not come out even."""
    about, types = settings.tokenizer, TYPES[stream.kind]
    if about.type not in types:
        raise ValueError(
            f"tokenizer.type: {about.type!r} does not learn {settings.stream!r}, which is of kind {stream.kind}; "
            f"set it to {' or '.join(types)}"
        )
    if isinstance(stream, ImageStream) and (stride := getattr(about, "time_stride", None)) is not None:
        raise ValueError(f"tokenizer.time_stride ({stride}) is for clips, and {settings.stream!r} is of pictures; leave it out")
    if isinstance(stream, ImageStream | VideoStream) and (stream.height % about.downsample or stream.width % about.downsample):
        raise ValueError(
            f"tokenizer.downsample: {stream.height} x {stream.width} pixels of {settings.stream!r} cannot be divided into cells of "
            f"{about.downsample}; choose a downsample that divides both, or another size for the stream"
        )
    if isinstance(stream, AudioStream) and isinstance(about, Mel) and stream.channels != 1:
        raise ValueError(
            f"tokenizer.type: 'mel' reads mono sounds, {settings.stream!r} has {stream.channels} channels; set channels to 1, "
            f"or type to codec"
        )
