"""Plays a game of the Arcade Learning Environment (arcade.py) into raw shards: real play, by a policy that is told or drawn.

A sample has T steps: frame t, the action taken there, and what comes of it until frame t + 1 (reward, end, sound). The clips of an episode
follow one on the other; each episode is a function of the seed, the split and its number. Kinds say what a stream is: video the clip, image
its first frame, audio its sound, text a caption from the game's memory where that is known, action what its role says.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from worldloom.stages.artifact import Artifact
from worldloom.stages.atari_games import KNOWN
from worldloom.stages.atari_settings import ACTIONS, FRAMES_A_SECOND, SCREEN, Follow, Policy, Sticky
from worldloom.stages.estimate import Estimate, member_bytes
from worldloom.stages.kind import StageKind
from worldloom.stages.made_dataset import Shard, content_bytes, finish_shards, plan_shards, write_shards
from worldloom.stages.settings import ActionStream, AudioStream, ImageStream, StageSettings, Stream, TextStream, VideoStream
from worldloom.stages.worker import Worker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from worldloom.stages.atari_play import Clip
    from worldloom.stages.card import Block

SPLITS = ("train", "validation")
SHOWN = 6  # clips on the card
ORACLES = frozenset({"pong"})  # games with an oracle, of whose field it knows the place
SAME = 1e-3  # relative difference of rates and lengths that are the same
Pixels = Annotated[int, Field(ge=0, le=255)]


class MakeAtari(StageSettings):
    """Clips of play, with what was done and what came of it."""

    run: Literal["make_atari"]
    streams: Annotated[dict[str, Stream], Field(min_length=1)]
    game: Annotated[str, Field(pattern=r"^[a-z0-9_]+$", description="as the Arcade Learning Environment calls it: pong, space_invaders")]
    samples: PositiveInt = Field(4_000, description="clips to train on")
    validation: NonNegativeInt = Field(200, description="clips of other episodes, to measure on")
    episode: PositiveInt = Field(50, description="clips that follow one on the other before a game is begun anew; shard_size is a multiple")
    head_start: NonNegativeInt = Field(100, description="steps at most that are played before an episode's first clip, their number drawn")
    frame_skip: Annotated[int, Field(ge=1, le=60, description="frames of the game, 60 a second, that a step takes; its action is held")] = 4
    merge: Annotated[
        int, Field(ge=1, le=4, description="last frames of a step of which each pixel is the brightest; 2 for games that flicker")
    ] = 1
    crop: tuple[Pixels, Pixels, Pixels, Pixels] | None = Field(
        None, description="top, left, height, width in pixels of the screen; null: the field where it is known, else all"
    )
    shrink: Literal["area", "brightest"] = Field(
        "area", description="what a pixel shows of those that it stands for: their mean, or the brightest, so that a small ball stays"
    )
    policy: Policy = Sticky()
    seed: NonNegativeInt = 0
    shard_size: Annotated[PositiveInt, Field(le=100_000, description="samples a shard")] = 500

    @model_validator(mode="after")
    def _clips_fit(self) -> Self:
        """All clips are of one length and of the game's own rate, and no larger than the screen."""
        clips = {name: stream for name, stream in self.streams.items() if isinstance(stream, VideoStream)}
        if not clips:
            raise ValueError("streams: play is shown by clips, and no stream is of kind video; add one, as in clip: {kind: video, ...}")
        if len({clip.frames for clip in clips.values()}) > 1:
            raise ValueError(f"streams {', '.join(clips)} show the same play, so they must have the same frames")
        rate = FRAMES_A_SECOND / self.frame_skip
        for name, clip in clips.items():
            if abs(clip.frame_rate / rate - 1) > SAME:
                raise ValueError(
                    f"streams.{name}: with a frame_skip of {self.frame_skip} there are {rate:g} frames a second, not {clip.frame_rate:g}; "
                    f"set frame_rate to {rate:g}"
                )
        _, _, height, width = self.part
        if self.crop is not None and not (height and width):
            raise ValueError(f"crop {list(self.crop)} is top, left, height, width, and holds no pixel; give it some, or leave it out")
        for name, stream in self.streams.items():
            if isinstance(stream, VideoStream | ImageStream) and (stream.height > height or stream.width > width):
                raise ValueError(
                    f"streams.{name}: {stream.height} x {stream.width} pixels are more than the {height} x {width} of the screen's part; "
                    f"set size lower"
                )
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        """Actions, rewards, ends and sounds have the clips' steps."""
        frames = self.frames
        for name, stream in self.streams.items():
            if isinstance(stream, ActionStream):
                if stream.dimensions != 1 or stream.steps not in (frames - 1, frames):
                    raise ValueError(
                        f"streams.{name}: clips of {frames} frames have {frames} steps of one number, or {frames - 1} between them, "
                        f"not {stream.steps} of {stream.dimensions}"
                    )
                self._choices_fit(name, stream)
            seconds = frames * self.frame_skip / FRAMES_A_SECOND
            if isinstance(stream, AudioStream) and stream.clock is not None and abs(stream.seconds / seconds - 1) > SAME:
                raise ValueError(
                    f"streams.{name}: {frames} steps last {seconds:.6g} s, the sound {stream.seconds:g}; on a clock set seconds to that"
                )
        return self

    def _choices_fit(self, name: str, stream: ActionStream) -> None:
        if stream.role == "action":
            if stream.choices is None:
                raise ValueError(f"streams.{name}: actions are choices; set choices to their number, or also names, as in [noop, up, down]")
            if wrong := [action for action in stream.names or () if action not in ACTIONS]:
                raise ValueError(f"streams.{name}: there is no action called {wrong[0]!r}; there are {', '.join(ACTIONS)}")
        elif stream.choices is not None and stream.role == "reward":
            raise ValueError(f"streams.{name}: rewards are any numbers; leave choices out")

    @model_validator(mode="after")
    def _game_is_known_where_it_must_be(self) -> Self:
        known = f"; known are {', '.join(sorted(KNOWN))}"
        texts = [name for name, stream in self.streams.items() if isinstance(stream, TextStream)]
        if texts and self.game not in KNOWN:
            raise ValueError(
                f"streams.{texts[0]}: there are no words for what {self.game}'s memory holds{known}; leave the text stream out"
            )
        if isinstance(self.policy, Follow):
            if self.game not in KNOWN:
                raise ValueError(f"policy: where the ball of {self.game} is, is not known{known}; take sticky")
            missing = set(KNOWN[self.game].aims) - set(self.actions or ACTIONS)
            if missing:
                raise ValueError(
                    f"policy: following the ball of {self.game} takes {', '.join(sorted(missing))}; add it to the actions' names"
                )
        return self

    @model_validator(mode="after")
    def _shards_hold_whole_episodes(self) -> Self:
        if self.shard_size % self.episode:
            raise ValueError(f"shard_size ({self.shard_size}) must be a multiple of episode ({self.episode}); set it to {self.episode}")
        named = [stream.names for stream in self.streams.values() if isinstance(stream, ActionStream) and stream.role == "action"]
        if len(set(named)) > 1:
            raise ValueError("streams of actions show the same actions, so they must have the same names")
        return self

    @property
    def frames(self) -> int:
        """Steps of a sample."""
        return next(stream.frames for stream in self.streams.values() if isinstance(stream, VideoStream))

    @property
    def actions(self) -> tuple[str, ...] | None:
        """Those that may be taken, by number; None: all that the game knows."""
        return next(
            (stream.names for stream in self.streams.values() if isinstance(stream, ActionStream) and stream.role == "action"), None
        )

    @property
    def part(self) -> tuple[int, int, int, int]:
        """Top, left, height and width of what is shown of the screen."""
        whole = (0, 0, *SCREEN)
        return self.crop if self.crop is not None else KNOWN[self.game].field if self.game in KNOWN else whole

    @property
    def oracle(self) -> str | None:
        """Who can read what a sample shows."""
        return self.game if self.game in ORACLES and self.part == KNOWN[self.game].field else None


def plan(settings: MakeAtari) -> tuple[Shard, ...]:
    """All shards, in order; the plan follows from the settings alone."""
    return plan_shards(dict(zip(SPLITS, (settings.samples, settings.validation), strict=True)), settings.shard_size)


def run(settings: MakeAtari, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Plays this worker's shards that are not there yet."""
    write_shards(plan(settings), settings.streams, partial(_samples, settings), out, worker)


def finish(settings: MakeAtari, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Names the shards, describes the dataset and shows some of it."""
    from worldloom.stages.card import Card, write_card

    totals = finish_shards(plan(settings), settings.streams, out, settings.oracle)
    write_card(out, Card(title=f"{totals.n_out:,} clips of {settings.game} played", blocks=tuple(_shown(settings, out))))
    return {"samples": totals.n_out}


def _samples(settings: MakeAtari, shard: Shard) -> Iterator[dict[str, Any]]:
    """The values of the shard's samples, episode by episode."""
    for start in range(shard.start, shard.stop, settings.episode):
        clips = _clips(settings, shard.split, start // settings.episode)
        for clip in islice(clips, min(settings.episode, shard.stop - start)):
            yield {name: _value(settings, stream, clip) for name, stream in settings.streams.items()}


def _clips(settings: MakeAtari, split: str, episode: int) -> Iterator["Clip"]:
    """An episode's clips, for ever; ValueError where the streams do not fit the game."""
    import numpy as np

    from worldloom.stages.arcade import Arcade
    from worldloom.stages.atari_play import Player, play

    arcade = Arcade(settings.game)
    actions = settings.actions or arcade.actions
    for name, stream in settings.streams.items():
        if isinstance(stream, ActionStream) and stream.role == "action" and stream.choices != len(actions):
            raise ValueError(
                f"streams.{name}: choices is {stream.choices}, and {settings.game} has {len(actions)} actions, {', '.join(actions)}; "
                f"set choices to that, or give names to those that may be taken"
            )
    generator = np.random.default_rng((settings.seed, SPLITS.index(split), episode))
    player = Player(settings.game, settings.policy, actions, generator)
    return play(arcade, player, settings.frames, settings.frame_skip, settings.merge, settings.head_start)


def _value(settings: MakeAtari, stream: Stream, clip: "Clip") -> Any:
    """What a stream shows of a clip."""
    from worldloom.stages import atari_play

    if isinstance(stream, TextStream):
        return KNOWN[settings.game].describe(*clip.memories)
    if isinstance(stream, AudioStream):
        seconds = settings.frames * settings.frame_skip / FRAMES_A_SECOND
        sound = atari_play.resampled(clip.sound, seconds, stream.sample_rate, stream.samples)
        return sound[None].repeat(stream.channels, axis=0)
    if isinstance(stream, ActionStream):
        told: dict[str, NDArray[Any]] = {"action": clip.actions, "reward": clip.rewards, "end": clip.ends}
        return told[stream.role][: stream.steps, None].astype("float32")
    top, left, height, width = settings.part
    screens = clip.screens[: 1 if isinstance(stream, ImageStream) else None, top : top + height, left : left + width]
    if screens.shape[1:3] != (height, width):
        raise ValueError(
            f"crop: the screen of {settings.game} has {clip.screens.shape[1]} x {clip.screens.shape[2]} pixels, and {height} x {width} "
            f"at {top}, {left} do not lie in it; crop less"
        )
    shown = atari_play.SHRINKERS[settings.shrink](screens, stream.height, stream.width)
    return shown[0] if isinstance(stream, ImageStream) else shown


def _shown(settings: MakeAtari, out: Path) -> Iterator["Block"]:
    """Clips of the first episode, with their sounds and captions."""
    from worldloom.stages.card import Gallery, Item, write_clip, write_sound

    name, about = next((name, stream) for name, stream in settings.streams.items() if isinstance(stream, VideoStream))
    heard = next((stream for stream in settings.streams.values() if isinstance(stream, AudioStream)), None)
    items = []
    for number, clip in enumerate(islice(_clips(settings, "train", 0), min(SHOWN, settings.samples))):
        caption = KNOWN[settings.game].describe(*clip.memories) if settings.game in KNOWN else f"clip {number + 1}"
        sound = None
        if heard is not None:
            sound = write_sound(out, f"play-{number:02d}-sound", _value(settings, heard, clip), heard.sample_rate, caption).file
        file = write_clip(out, f"play-{number:02d}", _value(settings, about, clip), about.frame_rate)
        detail = f"rewards {clip.rewards.sum():g}" + (", then the game is over" if clip.ends.any() else "")
        items.append(Item(file=file, caption=caption, detail=detail, sound=sound))
    yield Gallery(items=tuple(items), title=f"The first of {settings.samples:,} clips to train on ({name})")


def estimate(settings: MakeAtari, inputs: Mapping[str, Estimate]) -> Estimate:
    """Clips and sounds lie as they are, screens compress to about a quarter of a byte a pixel."""
    samples = settings.samples + settings.validation
    return Estimate(
        samples,
        bytes=samples * sum(member_bytes(content_bytes(stream, words=90)) for stream in settings.streams.values()),
        streams=settings.streams,
    )


STAGE = StageKind(
    name="make_atari",
    settings=MakeAtari,
    run=run,
    finish=finish,
    produces="dataset",
    version=1,
    placement="shards",
    parallelism=lambda settings, inputs: len(plan(settings)),
    estimate=estimate,
)
