"""`worldloom dream`: a world rolled out from the first frames of a sample it has not seen, beside how the sample really went on."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.pipeline.found import find_artifact
from worldloom.stages.evaluate_world_model import ANSWERING

if TYPE_CHECKING:
    from worldloom.stages.open_world import OpenWorld

SPLITS = ("held_out", "validation", "train")  # the first that has clips is shown
SIDE, GAP = 192, 6  # pixels of a frame at least, and between the two
AUDIO_RATE = 48_000  # Hz, of an MP4's sound: players know few others
SUFFIXES = (".gif", ".mp4")


class Dream(NamedTuple):
    """What was written."""

    file: Path
    frames: int
    sample: str  # key
    split: str
    truth: bool  # whether how it really went on stands at the left


def dream_command(
    run: Path,
    out: Path,
    steps: int | None = None,
    actions: str | None = None,
    policy: str | None = None,
    seed: int = 0,
    temperature: float | None = None,
    stage: str | None = None,
    tokens: str | None = None,
    given: int = 1,
) -> Dream:
    """Writes the dream as a GIF, or as an MP4 with its sound; ValueError or FileNotFoundError say what is wrong and what to do.

    It begins with the sample's first `given` frames and what stands between them. Then the sample's own actions are taken, and how it went
    on is shown at the left, unless `actions` (names or numbers with commas between, or a file of the stream's kind) or `policy` "random"
    say otherwise. `tokens` as in open_world.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{out} does not end in {' or '.join(SUFFIXES)}; give such a file")
    if actions is not None and policy is not None:
        raise ValueError("actions and policy both say what is done; leave out one of them")
    temperature = ANSWERING if temperature is None else temperature
    if temperature < 0 or (steps is not None and steps < 1) or given < 1:
        raise ValueError(f"temperature must be at least 0, steps and given at least 1, got {temperature}, {steps} and {given}")
    if out.suffix.lower() == ".mp4":
        _av()
    from worldloom.stages.open_world import Choosing, open_world
    from worldloom.stages.rollouts import beginning, clock_of
    from worldloom.stages.settings import VideoStream

    world = open_world(find_artifact(run, "world_model", stage), tokens)
    name = clock_of(world).streams[0]
    about = world.dataset.streams[name]
    if not isinstance(about, VideoStream):
        raise ValueError(f"there is no clip on this world's clock to show, only {', '.join(clock_of(world).streams)}")
    split, sample = held_out_sample(world, seed)
    true = world.dataset.value(split, name, sample)
    context = beginning(world, split, sample, given)
    taken = _taken(world, split, sample, steps, actions, policy, seed, given)
    many = (len(true) - given if steps is None else steps) if taken is None else len(taken)
    if many < 1:
        raise ValueError(f"behind {given} of its {len(true)} frames nothing of this sample's {name} is left; lower --given, or say --steps")
    choosing = Choosing(temperature=temperature)
    made = list(world.rollout(context, None if taken is None else taken[None], choosing=choosing, seeds=[seed], steps=many))
    dreamed = np.concatenate([true[:given], *(step.values[name] for step in made)])
    truth = actions is None and policy is None
    clip = np.stack(list(_side_by_side(true if truth else None, dreamed)))
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".gif":
        _write_gif(out, clip, about.frame_rate)
    else:
        sounds = [name for name in made[0].values if world.streams[name] == "audio"]
        told = [context[name][0] for name in sounds[:1] if name in context]  # in front of the last given frame
        heard = np.concatenate([*told, *(step.values[sounds[0]][0] for step in made)], axis=1) if sounds else None
        rate = getattr(world.dataset.streams[sounds[0]], "sample_rate", 0) if sounds else 0
        out.write_bytes(mp4(clip, about.frame_rate, heard, rate))
    return Dream(out, len(dreamed), world.dataset.keys(split)[sample], split, truth)


def held_out_sample(world: "OpenWorld", seed: int) -> tuple[str, int]:
    """A sample with all streams of the clock that come from the dataset: its split and its number, of the first split that has one."""
    from worldloom.stages.evaluation import pick_samples
    from worldloom.stages.rollouts import clock_of

    clock = clock_of(world)
    for split in SPLITS:
        if world.dataset.samples(split) and (found := pick_samples(world.dataset, split, [clock.streams[0], *clock.given], 1, seed)):
            return split, found[0]
    raise ValueError(
        f"no sample of the dataset has {', '.join([clock.streams[0], *clock.given])}, so there is nothing to begin with; "
        "where the world learnt from several sets of tokens, name one that has them by --tokens"
    )


def _taken(
    world: "OpenWorld", split: str, sample: int, steps: int | None, actions: str | None, policy: str | None, seed: int, given: int
) -> NDArray[np.float32] | None:
    """float32 [steps, dimensions], from the last given frame on; None where the world has no actions."""
    from worldloom.stages.rollouts import clock_of
    from worldloom.stages.settings import ActionStream

    names = clock_of(world).given
    if len(names) != 1:
        if actions is not None or policy is not None:
            raise ValueError(
                f"this world has no single stream of actions on its clock ({', '.join(names) or 'none'}); leave it to the world"
            )
        return None
    stream = world.dataset.streams[names[0]]
    assert isinstance(stream, ActionStream)
    whole: NDArray[np.float32] = world.dataset.value(split, names[0], sample)
    true = whole[given - 1 :]
    if policy is not None:
        if policy != "random":
            raise ValueError(f"there is no policy {policy!r}; random is one, actions are given by --actions")
        generator = np.random.default_rng(seed)
        if stream.choices is not None:
            return generator.integers(stream.choices, size=(steps or len(true), stream.dimensions)).astype(np.float32)
        return whole[generator.integers(len(whole), size=steps or len(true))]
    told = true if actions is None else _read_actions(world, actions, stream)
    if steps is not None and steps > len(told):
        raise ValueError(f"there are actions for {len(told)} steps, and {steps} are asked for; give more, or --policy random")
    return told[:steps]


def _read_actions(world: "OpenWorld", actions: str, stream: Any) -> NDArray[np.float32]:
    """From a file, or from words: the stream's names or the oracle's, or numbers; those of one step with + between them."""
    from worldloom.stages.oracles import ACTION_NAMES
    from worldloom.stages.stream_action import read_steps

    if Path(actions).is_file():
        return read_steps(Path(actions).read_bytes(), stream)
    names = stream.names or ACTION_NAMES.get(world.dataset.oracle or "", ())
    rows = [[word.strip() for word in one.split("+")] for one in actions.split(",")]
    try:
        values = np.array([[names.index(word) if word in names else float(word) for word in row] for row in rows], np.float32)
    except ValueError:
        known = f"names ({', '.join(names)}) or numbers" if names else "numbers"
        raise ValueError(f"--actions {actions}: neither a file nor {known} with commas between them") from None
    if values.ndim != 2 or values.shape[1] != stream.dimensions:
        raise ValueError(f"--actions {actions}: an action here has {stream.dimensions} numbers, with + between them")
    if stream.choices is not None and not ((values >= 0) & (values < stream.choices) & (values == np.floor(values))).all():
        raise ValueError(f"--actions {actions}: every action is one of 0 .. {stream.choices - 1}")
    return values


def _side_by_side(true: NDArray[np.uint8] | None, dreamed: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Frames, enlarged: how it went on, as long as that is known, and the dream."""
    scale = max(1, SIDE // dreamed.shape[1])
    for number, frame in enumerate(dreamed):
        parts = [frame]
        if true is not None:
            parts = [true[number] if number < len(true) else np.full_like(frame, 255), frame]
        large = [part.repeat(scale, axis=0).repeat(scale, axis=1) for part in parts]
        gap = np.full((len(large[0]), GAP, 3), 255, np.uint8)
        yield np.concatenate([large[0], gap, large[1]], axis=1) if true is not None else large[0]


def _write_gif(out: Path, clip: NDArray[np.uint8], frame_rate: float) -> None:
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in clip)
    first.save(out, format="GIF", save_all=True, append_images=others, duration=round(1000 / frame_rate), loop=0)


def mp4(clip: NDArray[np.uint8], frame_rate: float, sound: NDArray[np.float32] | None = None, sample_rate: int = 0) -> bytes:
    """Frames [T, height, width, 3], and a sound beside them, as an MP4; ValueError where PyAV is not installed."""
    import io
    from fractions import Fraction

    import soxr

    av = _av()
    if sound is not None and sample_rate != AUDIO_RATE:
        sound = soxr.resample(sound.T, sample_rate, AUDIO_RATE).T
    even = clip[:, : clip.shape[1] // 2 * 2, : clip.shape[2] // 2 * 2]
    written = io.BytesIO()
    with av.open(written, mode="w", format="mp4") as container:
        video = container.add_stream(
            "libx264" if "libx264" in av.codecs_available else "mpeg4", rate=Fraction(frame_rate).limit_denominator(1000)
        )
        video.height, video.width, video.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        audio = None if sound is None else container.add_stream("aac", rate=AUDIO_RATE, layout="mono" if len(sound) == 1 else "stereo")
        for frame in even:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(video.encode())
        if audio is not None and sound is not None:
            heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout="mono" if len(sound) == 1 else "stereo")
            heard.sample_rate = AUDIO_RATE
            container.mux(audio.encode(heard))
            container.mux(audio.encode())
    return written.getvalue()


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise ValueError("an MP4 needs PyAV: pip install 'worldloom[video]'; a .gif can be written without it") from None
    return av
