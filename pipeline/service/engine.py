"""What the routes ask: tokenizers, world and encoders by name, wherever they work; bounded and batched here, in front of them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldloom.pipeline.service.batcher import Batcher, Bounds
from worldloom.pipeline.service.calls import LANES, STREAMS, Calls, LocalCalls
from worldloom.pipeline.service.contract import ActRequest, EncoderInfo, GenerateRequest, RolloutRequest, TokenizerInfo, WorldInfo
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.line import Line
from worldloom.pipeline.service.measures import Measures
from worldloom.pipeline.service.served import Served, find_served
from worldloom.pipeline.service.values import Content, SeveralCodes
from worldloom.stages.present import File
from worldloom.stages.rejects import InputRejected

if TYPE_CHECKING:
    from worldloom.pipeline.service.world_worker import SessionInfo

MOST_WAITING = 64  # calls that wait for one worker, beside the values that wait to be encoded
MOST_STREAMS = 16  # samples that wait to be written


class Engine:
    """Everything that is served; `start` before the first request."""

    def __init__(self, calls: Calls, served: Served, limits: Limits) -> None:
        self.calls, self.served, self.limits = calls, served, limits
        self.measures = Measures()
        self.tokenizers: dict[str, TokenizerInfo] = {}
        self.world: WorldInfo | None = None
        self.encoders: dict[str, EncoderInfo] = {}
        self.batchers: dict[str, Batcher] = {}
        self._lines: dict[str, Line] = {}
        self._streams = Line(STREAMS, MOST_STREAMS)

    @property
    def runs(self) -> tuple[Path, ...]:
        """The runs that are served, as they were named."""
        return self.served.runs

    async def start(self) -> None:
        """Asks every worker what it is: whoever answers has loaded its weights."""
        asked = [self.calls.call(f"tokenizer:{place.name}", "about") for place in self.served.tokenizers]
        self.tokenizers = {info.name: info for info in await asyncio.gather(*asked)}
        for name, info in self.tokenizers.items():
            self.batchers[name] = Batcher(
                lambda contents, name=name: self.calls.call(f"tokenizer:{name}", "encode", _packed(contents)),  # type: ignore[misc]
                self.calls.lanes(f"tokenizer:{name}"),
                info.unit,
                Bounds(self.limits.queued, self.limits.queue_seconds),
                self.measures.batch_size.labels(tokenizer=name).observe,
                self.calls.lanes(f"tokenizer:{name}") // LANES,
            )
        for encoder in self.served.encoders:
            self.encoders[encoder.name] = await self.calls.call(f"encoder:{encoder.name}", "about")
        await self.calls.ready()
        if self.served.world is not None:
            self.world = await self.calls.call("world", "about")

    def tokenizer(self, name: str) -> TokenizerInfo:
        """ServiceError(tokenizer_unknown) lists the known ones."""
        if name not in self.tokenizers:
            raise ServiceError("tokenizer_unknown", 404, f"there is no such tokenizer; there are {', '.join(self.tokenizers)}", "tokenizer")
        return self.tokenizers[name]

    def check_room(self) -> None:
        """ServiceError(busy) where no tokenizer takes any more: which of them is asked need not be known."""
        refused: ServiceError | None = None
        for batcher in self.batchers.values():
            try:
                batcher.check_room()
                return
            except ServiceError as busy:
                refused = busy
        if refused is not None:
            raise refused

    async def encode(self, name: str, contents: Sequence[Content], costs: Sequence[int], params: Sequence[str]) -> SeveralCodes:
        """The codes of every value, arrays in their own shape and the type of token shards; ServiceError for the first that is refused."""
        found = await self.batchers[name](contents, costs)
        if found.refused:
            first = found.refused[0]
            raise ServiceError.of(InputRejected(first.code, first.detail), params[first.at])
        self.measures.count_codes(name, self.tokenizers[name], found.codes)
        return found.codes

    async def decode(self, name: str, codes: Sequence[Any], file_format: str | None) -> list[File]:
        """The files that values' codes stand for; ServiceError where they are no codes of this tokenizer."""
        try:
            files: list[File] = await self._call(f"tokenizer:{name}", "decode", codes, file_format)
        except InputRejected as refused:
            raise ServiceError.of(refused, "codes") from None
        return files

    async def prepare(self, name: str, content: bytes) -> File:
        """A value as the tokenizer sees it; ServiceError where it is refused."""
        try:
            file: File = await self._call(f"tokenizer:{name}", "prepare", content)
        except InputRejected as refused:
            raise ServiceError.of(refused, "input") from None
        return file

    async def generate(self, asked: GenerateRequest) -> AsyncGenerator[dict[str, Any], None]:
        """The lines of the answer from the first segment on; taken as they come, so that a slow reader keeps no place."""
        self.need_world()
        said: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        async def write() -> None:
            try:
                async with self._streams.place():
                    async for line in self.calls.stream("world", "generate", asked):
                        said.put_nowait(line)
            finally:
                said.put_nowait(None)

        writing = asyncio.create_task(write())
        try:
            while (line := await said.get()) is not None:
                yield line
            await writing  # whatever it failed of is raised here
        finally:
            writing.cancel()

    async def open_rollout(self, tenant: str, asked: RolloutRequest) -> dict[str, Any]:
        """A new session: id, first and open."""
        self.need_world()
        opened: dict[str, Any] = await self._call("world", "open", tenant, asked, self.limits.rollouts)
        self.measures.rollouts.set(opened["open"])
        return opened

    async def act(self, tenant: str, name: str, asked: ActRequest) -> list[Any]:
        """The next steps of a session."""
        self.need_world()
        steps: list[Any] = await self._call("world", "act", tenant, name, asked.action, asked.steps)
        return steps

    async def close_rollout(self, tenant: str, name: str) -> None:
        """Ends a session."""
        self.need_world()
        await self._call("world", "close", tenant, name)

    async def sessions(self) -> list["SessionInfo"]:
        """All open sessions."""
        self.need_world()
        open_now: list[SessionInfo] = await self._call("world", "sessions")
        self.measures.rollouts.set(len(open_now))
        return open_now

    def encoder(self, name: str) -> EncoderInfo:
        """ServiceError(encoder_unknown) lists the known ones."""
        if name not in self.encoders:
            raise ServiceError(
                "encoder_unknown", 404, f"there is no such encoder; there are {', '.join(self.encoders) or 'none'}", "encoder"
            )
        return self.encoders[name]

    async def embed(self, name: str, contents: Sequence[bytes]) -> Any:
        """float32 [B, D]."""
        return await self._call(f"encoder:{name}", "embed", contents)

    async def search(
        self, name: str, content: bytes | None, text: str | None, vector: Sequence[float] | None, top: int
    ) -> list[tuple[str, str, float]]:
        """Key, split and cosine of the samples that are most alike."""
        found: list[tuple[str, str, float]] = await self._call(f"encoder:{name}", "search", content, text, vector, top)
        return found

    async def close(self) -> None:
        """Ends the workers."""
        await self.calls.close()

    def need_world(self) -> WorldInfo:
        """ServiceError(world_unknown) where none is served."""
        if self.world is None:
            raise ServiceError("world_unknown", 404, "no world model is served; serve a run that has trained one")
        return self.world

    async def _call(self, to: str, method: str, *arguments: Any) -> Any:
        """As `calls.call`, when its turn comes; ServiceError(busy) where too much waits for this worker."""
        if to not in self._lines:
            self._lines[to] = Line(self.calls.lanes(to), MOST_WAITING)
        async with self._lines[to].place():
            return await self.calls.call(to, method, *arguments)


def _packed(contents: Sequence[Content]) -> Sequence[Content]:
    """As they go over a handle: one array costs a fraction of what many cost."""
    arrays = [content for content in contents if not isinstance(content, bytes)]
    packed: Sequence[Content] = np.stack(arrays) if len(arrays) == len(contents) else contents  # type: ignore[assignment]
    return packed


def local_engine(names: Sequence[str], limits: Limits | None = None) -> Engine:
    """An engine whose workers are in this process, of what `find_served` finds."""
    from worldloom.pipeline.service.tokenizer_worker import TokenizerWorker

    served = find_served(names)
    workers: dict[str, Any] = {f"tokenizer:{place.name}": TokenizerWorker(place) for place in served.tokenizers}
    if served.encoders:
        from worldloom.pipeline.service.encoder_worker import EncoderWorker

        workers |= {f"encoder:{encoder.name}": EncoderWorker(encoder) for encoder in served.encoders}
    limits = limits or Limits()
    if served.world is not None:
        from worldloom.pipeline.service.world_worker import WorldWorker

        workers["world"] = WorldWorker(served.world, 4 * limits.rollouts, limits.rollout_seconds)
    return Engine(LocalCalls(workers), served, limits)
