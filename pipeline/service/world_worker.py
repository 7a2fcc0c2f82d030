"""A world at work in a replica: samples written code by code, and sessions that go on step by step with their cache.

One model, one lock: whoever writes a sample lets a session's next step in between two of its codes.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.pipeline.service.calls import Say
from worldloom.pipeline.service.contract import ActionInfo, GenerateRequest, RolloutRequest, WorldInfo, WorldStream
from worldloom.pipeline.service.errors import ServiceError, not_found, place_of
from worldloom.pipeline.service.reading import content_of
from worldloom.pipeline.service.values import as_file, shown
from worldloom.stages.evaluate_world_model import ANSWERING, DREAMING
from worldloom.stages.open_export import open_folder
from worldloom.stages.open_world import Choosing
from worldloom.stages.oracles import ACTION_NAMES
from worldloom.stages.rejects import InputRejected
from worldloom.stages.rollouts import Step, beginning, clock_of
from worldloom.stages.settings import ActionStream, ImageStream, VideoStream
from worldloom.stages.streams import kind_of
from worldloom.world_model.vocabulary import Vocabulary

log = logging.getLogger("worldloom.service")

TOGETHER_SECONDS = 0.03  # codes that are written so close to each other are told at once
PAUSE = 0.0002  # seconds: enough for another thread to take the lock


class _Turns:
    """A lock whose holder can let others in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._waiting += 1
        self._lock.acquire()
        self._waiting -= 1
        try:
            yield
        finally:
            self._lock.release()

    def yield_to_others(self) -> None:
        """Held: whoever waits goes first."""
        if self._waiting:
            self._lock.release()
            time.sleep(PAUSE)
            self._lock.acquire()


@dataclass(eq=False)
class _Session:
    """A rollout that stands still until it is asked for its next step."""

    tenant: str
    steps: Iterator[Step]
    scale: int
    used: float  # when, last
    step: int = 0
    action: NDArray[np.float32] | None = None
    going: threading.Lock = field(default_factory=threading.Lock)


class SessionInfo(NamedTuple):
    """What there is to know of a session."""

    id: str
    tenant: str
    step: int
    left: float  # seconds to its end


class WorldWorker:
    """Safe for several threads."""

    def __init__(self, folder: Path, most_sessions: int, session_seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        """`folder`: an artifact, or an exported world."""
        self.world, self.name, self.fingerprint = open_folder(Path(folder))
        self.most_sessions, self.session_seconds, self._now = most_sessions, session_seconds, now
        self._turns = _Turns()
        self._sessions: dict[str, _Session] = {}
        self._opening: dict[str, str] = {}  # sessions that are not open yet, by name: their tenants
        self._door = threading.Lock()  # held while sessions are counted, and one is let in

    def about(self) -> WorldInfo:
        """What there is to know of it."""
        world, ids = self.world, self.world.vocabulary
        streams = tuple(
            WorldStream(
                name=name,
                kind=kind,
                stream=world.dataset.streams[name],
                codebook_size=world.tokenizers[name].codebook_size,
                levels=world.tokenizers[name].levels,
                shape=world.tokenizers[name].shape,
                max_length=ids.streams[ids.index(name)].max_length,
                on_clock=ids.clock is not None and name in ids.clock.streams,
            )
            for name, kind in world.streams.items()
        )
        return WorldInfo(
            name=self.name,
            fingerprint=self.fingerprint,
            parameters=sum(weight.numel() for weight in world.model.parameters()),
            streams=streams,
            objectives=world.objectives,
            fills="masked" in world.objectives,
            clock=None if ids.clock is None else ids.clock.name,
            steps=ids.steps,
            actions=self._actions(),
        )

    def generate(self, asked: GenerateRequest, say: Say) -> None:
        """Says the lines of the answer, as plain values, from the first segment to the end; ServiceError before the first of them."""
        given = {name: self._value(name, value, f"given.{name}") for name, value in asked.given.items()}
        temperature = asked.temperature if asked.temperature is not None else ANSWERING if given else DREAMING
        choosing = Choosing(
            temperature=temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            guidance=asked.guidance,
            fill_steps=asked.fill_steps,
            fill_order=asked.fill_order,
        )
        want = self._wanted(asked)
        telling = _Telling(self.world.vocabulary, {name: self.world.tokenizers[name].shape for name in self.world.streams}, say)

        def hear(row: int, tokens: Sequence[int]) -> None:
            telling.hear(tokens)
            self._turns.yield_to_others()

        with self._turns(), _as_service_errors():
            made = self.world.sample([given], want, [asked.seed], choosing, hear)[0]
        telling.hear(made.tokens.tolist())
        telling.flush()
        for name, value in made.values.items():
            file = as_file(value, self.world.dataset.streams[name], None, asked.scale)
            say({"event": "value", "stream": name, "value": shown(file), "given": name in given})
        say({"event": "end", "legal": made.legal, "tokens": len(made.tokens)})

    def open(self, tenant: str, asked: RolloutRequest, most: int) -> dict[str, Any]:
        """A new session: its id, its step 0, and how many are open now. ServiceError(busy) where the tenant has `most` of them."""
        name = uuid.uuid4().hex
        with self._place(name, tenant, most):
            return self._open(name, tenant, asked)

    @contextmanager
    def _place(self, name: str, tenant: str, most: int) -> Iterator[None]:
        """Keeps a session's place while it is opened; it is free again where that fails."""
        with self._door:
            self._expire()
            tenants = [*({one: session.tenant for one, session in list(self._sessions.items())} | self._opening).values()]
            if tenants.count(tenant) >= most:
                raise ServiceError("busy", 429, f"this token has {most} sessions open; close one", None, 10.0)
            if len(tenants) >= self.most_sessions:
                raise ServiceError("busy", 429, f"{self.most_sessions} sessions are open; close one, or wait for one to end", None, 10.0)
            self._opening[name] = tenant
        try:
            yield
        finally:
            with self._door:
                del self._opening[name]

    def _open(self, name: str, tenant: str, asked: RolloutRequest) -> dict[str, Any]:
        with _as_service_errors():
            frames = clock_of(self.world).streams[0]
            _check_window(asked.window, self.world.vocabulary.steps)
            context = self._context(frames, asked)
        prompts = {name: self._value(name, value, f"prompts.{name}") for name, value in asked.prompts.items()}
        session = _Session(tenant, iter(()), asked.scale, self._now())
        with self._turns(), _as_service_errors():
            session.steps = self.world.rollout(
                context,
                (lambda last: session.action) if clock_of(self.world).given else None,
                choosing=Choosing(
                    temperature=ANSWERING if asked.temperature is None else asked.temperature, top_k=asked.top_k, top_p=asked.top_p
                ),
                seeds=[asked.seed],
                prompts=[prompts],
                window=asked.window,
            )
        self._sessions[name] = session
        first = self._shown(name, session, {frames: context[frames][:, -1]})
        return {"id": name, "first": first, "open": len(self._sessions)}

    def act(self, tenant: str, name: str, action: int | float | str | list[float] | None, steps: int) -> list[dict[str, Any]]:
        """The next steps of a session, as plain values; one that fails is closed, since nobody knows where it stands."""
        session = self._session(tenant, name)
        taken = self._taken(action)
        with session.going:
            session.action = taken
            try:
                made = [self._go_on(name, session) for _ in range(steps)]
            except Exception as error:
                self._sessions.pop(name, None)
                log.error(json.dumps({"event": "session_failed", "error": place_of(error)}))
                raise ServiceError("session_failed", 500, "the session failed at this step and is closed; open a new one") from error
            session.used = self._now()
        return made

    def _go_on(self, name: str, session: _Session) -> dict[str, Any]:
        with self._turns():
            step = next(session.steps, None)
        if step is None:  # a StopIteration would never leave the thread: no future takes one
            raise RuntimeError("the rollout has ended")
        session.step += 1
        return self._shown(name, session, step.values)

    def close(self, tenant: str, name: str) -> None:
        """Ends a session."""
        self._session(tenant, name)
        self._sessions.pop(name, None)  # another may have ended it meanwhile

    def sessions(self) -> list[SessionInfo]:
        """All that are open."""
        self._expire()
        now = self._now()
        return [
            SessionInfo(name, session.tenant, session.step, self.session_seconds - (now - session.used))
            for name, session in self._sessions.items()
        ]

    def _session(self, tenant: str, name: str) -> _Session:
        self._expire()
        session = self._sessions.get(name)
        if session is None or session.tenant != tenant:
            raise not_found("session")
        session.used = self._now()
        return session

    def _expire(self) -> None:
        now = self._now()
        for name, session in list(self._sessions.items()):
            if now - session.used > self.session_seconds and not session.going.locked():
                self._sessions.pop(name, None)

    def _wanted(self, asked: GenerateRequest) -> list[str] | None:
        """The streams to write, in order; None leaves it to the model."""
        if asked.want is None:
            return [name for name in self.world.streams if name not in asked.given] if asked.given else None
        for name in asked.want:
            if name not in self.world.streams:
                raise ServiceError("stream_unknown", 400, f"the world has no such stream; it has {', '.join(self.world.streams)}", "want")
            if name in asked.given or asked.want.count(name) > 1:
                raise ServiceError("request_invalid", 422, "a stream is wanted once, and not where it is given; leave it out", "want")
        return asked.want

    def _value(self, name: str, value: Any, param: str) -> Any:
        """What is given for a stream, decoded; ServiceError."""
        if name not in self.world.streams:
            raise ServiceError("stream_unknown", 400, f"the world has no such stream; it has {', '.join(self.world.streams)}", param[:200])
        stream = self.world.dataset.streams[name]
        try:
            return kind_of(stream.kind).decode(content_of(value, stream.kind, param), stream)
        except InputRejected as refused:
            raise ServiceError.of(refused, param) from None

    def _context(self, frames: str, asked: RolloutRequest) -> dict[str, NDArray[Any]]:
        """What a rollout begins with, by stream: frames [1, n, height, width, 3], and what stands between those of a sample."""
        from worldloom.pipeline.dream import held_out_sample

        about = self.world.dataset.streams[frames]
        if asked.context is None:
            split, sample = held_out_sample(self.world, asked.seed if asked.sample is None else asked.sample)
            return beginning(self.world, split, sample, asked.given)
        if asked.given != 1:
            raise ServiceError(
                "request_invalid", 422, "given counts frames of a sample, and the context has its own; leave it out", "given"
            )
        if set(asked.context) != {frames} or not isinstance(about, VideoStream):
            raise ServiceError("request_invalid", 400, f"a rollout begins with a picture or a clip for {frames}", "context")
        content = content_of(asked.context[frames], "video", f"context.{frames}")
        try:
            return {frames: _frames(content, about)[None]}
        except InputRejected as refused:
            raise ServiceError.of(refused, f"context.{frames}") from None

    def _actions(self) -> ActionInfo | None:
        """What a rollout takes."""
        try:
            given = clock_of(self.world).given
        except ValueError:
            return None
        if len(given) != 1:
            return None
        stream = self.world.dataset.streams[given[0]]
        assert isinstance(stream, ActionStream)
        names = ACTION_NAMES.get(self.world.dataset.oracle or "", ()) if stream.choices is not None else ()
        return ActionInfo(stream=given[0], dimensions=stream.dimensions, choices=stream.choices, names=tuple(names))

    def _taken(self, action: int | float | str | list[float] | None) -> NDArray[np.float32] | None:
        """[1, dimensions]; None: the world takes its own."""
        if action is None:
            return None
        about = self._actions()
        if about is None:
            raise ServiceError("action_invalid", 422, "this world takes no actions; leave it out", "action")
        if isinstance(action, str):
            if action not in about.names:
                known = ", ".join(about.names) or "none by name"
                raise ServiceError("action_invalid", 422, f"there is no such action; there are {known}", "action")
            action = about.names.index(action)
        try:
            values = np.asarray(action, np.float64).reshape(1, -1)
        except OverflowError:  # an integer beyond all floats
            values = np.full((1, about.dimensions), np.inf)
        if values.shape[1] != about.dimensions or not np.isfinite(values).all() or np.abs(values).max(initial=0) > 1e30:
            raise ServiceError("action_invalid", 422, f"an action is {about.dimensions} finite numbers", "action")
        if about.choices is not None and not ((values == np.floor(values)) & (values >= 0) & (values < about.choices)).all():
            raise ServiceError("action_invalid", 422, f"an action is one of 0 .. {about.choices - 1}", "action")
        return values.astype(np.float32)

    def _shown(self, name: str, session: _Session, values: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """A `RolloutStep` as plain values."""
        seen: dict[str, Any] = {}
        numbers: dict[str, list[float]] = {}
        for stream_name, value in values.items():
            stream = self.world.dataset.streams[stream_name]
            if isinstance(stream, ActionStream):
                numbers[stream_name] = [float(number) for number in value[0].reshape(-1)]
            elif isinstance(stream, VideoStream):
                picture = ImageStream(kind="image", size=stream.size)
                seen[stream_name] = shown(as_file(value[0], picture, None, session.scale))
            else:
                seen[stream_name] = shown(as_file(value[0], stream))
        return {"id": name, "step": session.step, "values": seen, "numbers": numbers}


class _Telling:
    """Tells the codes of a sample as they are settled: of each stream, by their place among its codes."""

    def __init__(self, ids: Vocabulary, shapes: Mapping[str, tuple[int, ...] | None], say: Say) -> None:
        self.ids, self.say, self._shapes = ids, say, shapes
        self._opening = {ids.indicator(number): number for number in range(len(ids.streams))}
        self._closing = {ids.closing(number) for number in range(len(ids.streams))}
        self._tokens: Sequence[int] = ()
        self._told: dict[int, list[int | None]] = {}
        self._fresh: dict[int, dict[int, int]] = {}  # by stream: codes by place, that are still to be said
        self._last = 0.0
        self._at, self._open = 0, -1
        self._begin()

    def hear(self, tokens: Sequence[int]) -> None:
        """Looks at a sample again; one that is filled in changes in the middle, any other grows at its end."""
        if tokens is not self._tokens:
            self._tokens = tokens
            self._begin()
        for token in tokens[self._at :]:
            self._look(token)
        self._at = len(tokens)
        if time.monotonic() - self._last > TOGETHER_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Says what is still to be said."""
        for number, codes in self._fresh.items():
            if codes:
                self.say({"event": "codes", "stream": self.ids.streams[number].name, "places": list(codes), "codes": list(codes.values())})
        self._fresh, self._last = {}, time.monotonic()

    def _begin(self) -> None:
        self._at, self._open = 0, -1
        self._place: dict[int, int] = {}

    def _look(self, token: int) -> None:
        if token in self._opening:
            self._open = self._opening[token]
            if self._open not in self._told:
                self.flush()
                self._told[self._open] = []
                name = self.ids.streams[self._open].name
                self.say({"event": "segment", "stream": name, "shape": self._shapes[name]})
        elif token in self._closing:
            self._open = -1
        elif self._open >= 0:
            self._code(self._open, token)

    def _code(self, number: int, token: int) -> None:
        place = self._place.get(number, 0)
        self._place[number] = place + 1
        told = self._told[number]
        if place == len(told):
            told.append(None)
        if token == self.ids.mask:
            return
        about = self.ids.streams[number]
        code = token - self.ids.level(number, place % about.levels).start
        if told[place] != code:
            told[place] = code
            self._fresh.setdefault(number, {})[place] = code


@contextmanager
def _as_service_errors() -> Iterator[None]:
    """What the world says of a request that it cannot follow."""
    try:
        yield
    except InputRejected as refused:
        raise ServiceError.of(refused, None) from None
    except (ValueError, ArithmeticError) as error:
        raise ServiceError("request_invalid", 422, " ".join(str(error).split())) from None


def _check_window(window: int | None, steps: int) -> None:
    if window is not None and window > steps:
        raise ServiceError(
            "request_invalid",
            422,
            f"a window has at most the {steps} steps of a sample, got {window}; ask for fewer, or leave it out",
            "window",
        )


def _frames(content: bytes, about: VideoStream) -> NDArray[Any]:
    """A picture is a clip of one frame; of a clip, as many frames as it has."""
    if content.startswith((b"\x89PNG", b"\xff\xd8\xff")) or content[8:12] == b"WEBP":
        picture = ImageStream(kind="image", size=about.size)
        found: NDArray[Any] = kind_of("image").decode(content, picture)[None]
        return found
    clip: NDArray[Any] = kind_of("video").decode(content, about)
    return clip
