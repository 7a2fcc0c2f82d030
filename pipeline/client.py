"""A client of the service: `Client` waits, `AsyncClient` is awaited; both are one, whose steps are driven by either.

After a lost connection, 429 or 503 a request is sent again, up to `retries` times and not before Retry-After; a sample only before its
first line. What has an effect carries an Idempotency-Key of its own, so that it has it once.
"""

import asyncio
import base64
import io
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import numpy as np
from numpy.typing import NDArray

URL = "http://127.0.0.1:8484"
RETRIED = (429, 502, 503, 504)
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds; doubled each time, with jitter
Told = dict[str, Any]  # a JSON object of the service
Value = bytes | str | Path | Sequence[Any]  # a file's bytes or path, text, or the rows of actions
Values = Sequence[Value] | NDArray[Any]  # or pictures and clips in the form of their stream, uint8 [values, *form]


class ServiceFailure(Exception):
    """The service refused; `code` is stable."""

    def __init__(self, status: int, code: str, message: str, param: str | None, request_id: str) -> None:
        super().__init__(f"{code} ({status}): {message}" + (f" [{param}]" if param else ""))
        self.status, self.code, self.message, self.param, self.request_id = status, code, message, param, request_id


class _Request(NamedTuple):
    """What is to be sent."""

    method: str
    path: str
    options: Told


class _Pause(NamedTuple):
    """How long to wait before it is sent again."""

    seconds: float


_Steps = Generator[_Request | _Pause, Any, httpx.Response]


class _Calls:
    """What both clients can ask, as requests and what is made of their answers."""

    def __init__(self, retries: int, random_share: Callable[[], float]) -> None:
        self.retries, self._random = retries, random_share

    def sending(self, method: str, path: str, **options: Any) -> _Steps:
        """Sends until there is an answer that is no refusal, or the patience is at its end; ServiceFailure."""
        if method == "POST":
            options["headers"] = {"Idempotency-Key": uuid.uuid4().hex, **options.get("headers", {})}
        for attempt in range(self.retries + 1):
            answer: httpx.Response | httpx.TransportError = yield _Request(method, path, options)
            last = attempt == self.retries
            if isinstance(answer, httpx.TransportError):
                if last:
                    raise answer
                yield _Pause(self._pause(attempt, None))
            elif method == "DELETE" and attempt and answer.status_code == 404:
                return answer  # an earlier attempt did it, and its answer was lost
            elif answer.status_code in RETRIED and not last:
                yield _Pause(self._pause(attempt, answer.headers.get("retry-after")))
            else:
                return _checked(answer)
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, attempt: int, retry_after: str | None) -> float:
        """At least what the service asks for; spread, so that not all come back at once."""
        own: float = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * (0.5 + self._random())
        try:
            return max(own, float(retry_after or 0))
        except ValueError:  # a date, which this service never sends
            return own

    @staticmethod
    def tokenize_request(tokenizer: str, values: Values) -> Told:
        if isinstance(values, np.ndarray) and values.dtype == np.uint8:
            written = io.BytesIO()
            np.lib.format.write_array(written, values, version=(1, 0), allow_pickle=False)
            about = {"params": {"tokenizer": tokenizer, "return": "npy"}, "headers": {"Content-Type": "application/x-npy"}}
            return {**about, "content": written.getvalue()}
        return {"json": {"tokenizer": tokenizer, "input": [_sent(value) for value in values], "return": "npy"}}

    @staticmethod
    def detokenize_request(tokenizer: str, codes: Sequence[Any], file_format: str | None) -> Told:
        return {"json": {"tokenizer": tokenizer, "codes": [np.asarray(one).tolist() for one in codes], "format": file_format}}

    @staticmethod
    def batch_request(tokenizers: Mapping[str, str], source: str | None, shards: Sequence[Path], options: Mapping[str, Any]) -> Told:
        job = {"tokenizers": dict(tokenizers), **options}
        if source is not None:
            return {"json": {**job, "source": source}}
        # As bytes: an open file could not be sent a second time.
        return {"data": {"job": json.dumps(job)}, "files": [("shard", (path.name, path.read_bytes())) for path in shards]}

    @staticmethod
    def generate_request(given: Mapping[str, Value] | None, want: Sequence[str] | None, options: Mapping[str, Any]) -> Told:
        return {
            "json": {
                "given": {name: _sent(value) for name, value in (given or {}).items()},
                "want": None if want is None else list(want),
                **options,
            }
        }

    @staticmethod
    def rollout_request(context: Mapping[str, Value] | None, prompts: Mapping[str, Value] | None, options: Mapping[str, Any]) -> Told:
        given = None if context is None else {name: _sent(value) for name, value in context.items()}
        return {"json": {"context": given, "prompts": {name: _sent(value) for name, value in (prompts or {}).items()}, **options}}

    @staticmethod
    def embed_request(encoder: str, pictures: Sequence[bytes | Path]) -> Told:
        return {"json": {"encoder": encoder, "input": [_sent(picture) for picture in pictures]}}

    @staticmethod
    def search_request(
        encoder: str, picture: bytes | Path | None, text: str | None, embedding: Sequence[float] | NDArray[Any] | None, top: int
    ) -> Told:
        image = None if picture is None else _sent(picture)
        vector = None if embedding is None else np.asarray(embedding).tolist()
        return {"json": {"encoder": encoder, "input": image, "text": text, "embedding": vector, "top": top}}


class Client(_Calls):
    """Waits for every answer."""

    def __init__(self, url: str = URL, token: str | None = None, timeout: float = 60.0, retries: int = 4, **httpx_options: Any) -> None:
        super().__init__(retries, random.random)
        self._http = httpx.Client(base_url=url, headers=_headers(token), timeout=timeout, **httpx_options)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Any route: the answer, or ServiceFailure."""
        return self._driven(self.sending(method, path, **options), lambda step: self._http.request(step.method, step.path, **step.options))

    def _driven(self, steps: _Steps, send: Callable[[_Request], httpx.Response]) -> httpx.Response:
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                response: httpx.Response = end.value
                return response
            answer = None
            if isinstance(step, _Pause):
                time.sleep(step.seconds)
            else:
                try:
                    answer = send(step)
                except httpx.TransportError as error:
                    answer = error

    def tokenizers(self) -> list[Told]:
        """What there is: name, kind, shape, codebook_size, fingerprint ..."""
        return list(self.request("GET", "/v1/tokenizers").json()["data"])

    def info(self) -> Told:
        """What is served, within which limits."""
        return dict(self.request("GET", "/v1/info").json())

    def tokenize(self, tokenizer: str, values: Values) -> list[NDArray[Any]]:
        """The codes of every value, in their own shape and the type of token shards."""
        return _arrays(self.request("POST", "/v1/tokenize", **self.tokenize_request(tokenizer, values)).content, len(values))

    def detokenize(self, tokenizer: str, codes: Sequence[Any], file_format: str | None = None) -> list[bytes | str]:
        """A file, or a text, for the codes of every value."""
        return _values(self.request("POST", "/v1/detokenize", **self.detokenize_request(tokenizer, codes, file_format)).json()["data"])

    def batch(self, tokenizers: Mapping[str, str], source: str | None = None, shards: Sequence[Path] = (), **options: Any) -> Told:
        """Starts a job over a source, or over tars that are sent along; stream -> tokenizer."""
        return dict(self.request("POST", "/v1/batches", **self.batch_request(tokenizers, source, shards, options)).json())

    def wait_for(self, batch: str, every: float = 1.0) -> Told:
        """The job once it has ended, however it did."""
        while (job := dict(self.request("GET", f"/v1/batches/{batch}").json()))["state"] in ("queued", "running", "cancelling"):
            time.sleep(every)
        return job

    def cancel(self, batch: str) -> Told:
        """The job, which stops where it loses nothing."""
        return dict(self.request("POST", f"/v1/batches/{batch}/cancel").json())

    def download(self, batch: str, folder: Path) -> list[Path]:
        """Writes the files of a job's result below the folder."""
        names = [file["name"] for file in self.request("GET", f"/v1/batches/{batch}/files").json()["data"]]
        return [_written(folder, name, self.request("GET", f"/v1/batches/{batch}/files/{name}").content) for name in names]

    def generate(self, given: Mapping[str, Value] | None = None, want: Sequence[str] | None = None, **options: Any) -> Iterator[Told]:
        """The lines of the answer as they come; ServiceFailure. Behind the first line, a lost connection is raised."""
        first: str | None = None
        lines: Iterator[str] = iter(())

        def begin(step: _Request) -> httpx.Response:
            nonlocal first, lines
            answer = self._http.send(self._http.build_request(step.method, step.path, **step.options), stream=True)
            try:
                if answer.status_code >= 400:
                    answer.read()
                else:
                    lines = answer.iter_lines()
                    first = next(lines, None)
            except BaseException:
                answer.close()
                raise
            return answer

        with closing(self._driven(self.sending("POST", "/v1/generate", **self.generate_request(given, want, options)), begin)):
            if first is not None:
                yield _told(first)
            for line in lines:
                yield _told(line)

    def open_rollout(self, context: Mapping[str, Value] | None = None, prompts: Mapping[str, Value] | None = None, **options: Any) -> Told:
        """A session: its `id`, its `actions` and its `first` step."""
        return dict(self.request("POST", "/v1/rollouts", **self.rollout_request(context, prompts, options)).json())

    def act(self, rollout: str, action: Any = None, steps: int = 1) -> list[Told]:
        """The next steps of a session; without an action the world takes its own."""
        return list(self.request("POST", f"/v1/rollouts/{rollout}/act", json={"action": action, "steps": steps}).json()["data"])

    def close_rollout(self, rollout: str) -> None:
        """Ends a session."""
        self.request("DELETE", f"/v1/rollouts/{rollout}")

    def embed(self, encoder: str, pictures: Sequence[bytes | Path]) -> NDArray[np.float32]:
        """float32 [pictures, width]."""
        return _rows(self.request("POST", "/v1/embed", **self.embed_request(encoder, pictures)))

    def search(
        self,
        encoder: str,
        picture: bytes | Path | None = None,
        text: str | None = None,
        embedding: Sequence[float] | NDArray[Any] | None = None,
        top: int = 10,
    ) -> list[Told]:
        """The samples that are most like one of the three, with their `key`, `split` and `score`."""
        return list(self.request("POST", "/v1/search", **self.search_request(encoder, picture, text, embedding, top)).json()["data"])

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Calls):
    """The same, awaited."""

    def __init__(self, url: str = URL, token: str | None = None, timeout: float = 60.0, retries: int = 4, **httpx_options: Any) -> None:
        super().__init__(retries, random.random)
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(token), timeout=timeout, **httpx_options)

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Any route: the answer, or ServiceFailure."""
        steps = self.sending(method, path, **options)
        return await self._driven(steps, lambda step: self._http.request(step.method, step.path, **step.options))

    async def _driven(self, steps: _Steps, send: Callable[[_Request], Awaitable[httpx.Response]]) -> httpx.Response:
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                response: httpx.Response = end.value
                return response
            answer = None
            if isinstance(step, _Pause):
                await asyncio.sleep(step.seconds)
            else:
                try:
                    answer = await send(step)
                except httpx.TransportError as error:
                    answer = error

    async def tokenizers(self) -> list[Told]:
        return list((await self.request("GET", "/v1/tokenizers")).json()["data"])

    async def info(self) -> Told:
        return dict((await self.request("GET", "/v1/info")).json())

    async def tokenize(self, tokenizer: str, values: Values) -> list[NDArray[Any]]:
        """As Client.tokenize."""
        return _arrays((await self.request("POST", "/v1/tokenize", **self.tokenize_request(tokenizer, values))).content, len(values))

    async def detokenize(self, tokenizer: str, codes: Sequence[Any], file_format: str | None = None) -> list[bytes | str]:
        """As Client.detokenize."""
        answer = await self.request("POST", "/v1/detokenize", **self.detokenize_request(tokenizer, codes, file_format))
        return _values(answer.json()["data"])

    async def batch(self, tokenizers: Mapping[str, str], source: str | None = None, shards: Sequence[Path] = (), **options: Any) -> Told:
        """As Client.batch."""
        return dict((await self.request("POST", "/v1/batches", **self.batch_request(tokenizers, source, shards, options))).json())

    async def wait_for(self, batch: str, every: float = 1.0) -> Told:
        """As Client.wait_for."""
        while (job := dict((await self.request("GET", f"/v1/batches/{batch}")).json()))["state"] in ("queued", "running", "cancelling"):
            await asyncio.sleep(every)
        return job

    async def cancel(self, batch: str) -> Told:
        """As Client.cancel."""
        return dict((await self.request("POST", f"/v1/batches/{batch}/cancel")).json())

    async def download(self, batch: str, folder: Path) -> list[Path]:
        """As Client.download."""
        names = [file["name"] for file in (await self.request("GET", f"/v1/batches/{batch}/files")).json()["data"]]
        return [_written(folder, name, (await self.request("GET", f"/v1/batches/{batch}/files/{name}")).content) for name in names]

    async def generate(
        self, given: Mapping[str, Value] | None = None, want: Sequence[str] | None = None, **options: Any
    ) -> AsyncIterator[Told]:
        """As Client.generate."""
        first: str | None = None
        lines: AsyncIterator[str]

        async def begin(step: _Request) -> httpx.Response:
            nonlocal first, lines
            answer = await self._http.send(self._http.build_request(step.method, step.path, **step.options), stream=True)
            try:
                lines = answer.aiter_lines()
                if answer.status_code >= 400:
                    await answer.aread()
                else:
                    first = await anext(lines, None)
            except BaseException:
                await answer.aclose()
                raise
            return answer

        async with aclosing(await self._driven(self.sending("POST", "/v1/generate", **self.generate_request(given, want, options)), begin)):
            if first is not None:
                yield _told(first)
            async for line in lines:
                yield _told(line)

    async def open_rollout(
        self, context: Mapping[str, Value] | None = None, prompts: Mapping[str, Value] | None = None, **options: Any
    ) -> Told:
        """As Client.open_rollout."""
        return dict((await self.request("POST", "/v1/rollouts", **self.rollout_request(context, prompts, options))).json())

    async def act(self, rollout: str, action: Any = None, steps: int = 1) -> list[Told]:
        """As Client.act."""
        answer = await self.request("POST", f"/v1/rollouts/{rollout}/act", json={"action": action, "steps": steps})
        return list(answer.json()["data"])

    async def close_rollout(self, rollout: str) -> None:
        """As Client.close_rollout."""
        await self.request("DELETE", f"/v1/rollouts/{rollout}")

    async def embed(self, encoder: str, pictures: Sequence[bytes | Path]) -> NDArray[np.float32]:
        """As Client.embed."""
        return _rows(await self.request("POST", "/v1/embed", **self.embed_request(encoder, pictures)))

    async def search(
        self,
        encoder: str,
        picture: bytes | Path | None = None,
        text: str | None = None,
        embedding: Sequence[float] | NDArray[Any] | None = None,
        top: int = 10,
    ) -> list[Told]:
        """As Client.search."""
        answer = await self.request("POST", "/v1/search", **self.search_request(encoder, picture, text, embedding, top))
        return list(answer.json()["data"])

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.status_code < 400:
        return answer
    try:
        error = answer.json()["error"]
        raise ServiceFailure(answer.status_code, error["code"], error["message"], error["param"], error["request_id"])
    except (ValueError, KeyError, TypeError):  # somebody between it and us, who has another way to say it
        raise ServiceFailure(answer.status_code, "unknown", answer.text[:200], None, "") from None


def _sent(value: Value) -> Any:
    """Text as it is, files in base64, rows of numbers as lists."""
    if isinstance(value, str):
        return value
    if isinstance(value, Path):
        value = value.read_bytes()
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else np.asarray(value).tolist()


def _arrays(content: bytes, values: int) -> list[NDArray[Any]]:
    """One array of all values, or one a value, one behind the other."""
    stream, found = io.BytesIO(content), list[NDArray[Any]]()
    while stream.tell() < len(content):
        found.append(np.lib.format.read_array(stream, allow_pickle=False))
    return list(found[0]) if len(found) == 1 and found[0].ndim > 1 and len(found[0]) == values else found


def _rows(answer: httpx.Response) -> NDArray[np.float32]:
    return np.array([one["embedding"] for one in answer.json()["data"]], np.float32)


def _values(data: Sequence[Mapping[str, Any]]) -> list[bytes | str]:
    return [one["text"] if one["content"] is None else base64.b64decode(one["content"]) for one in data]


def _written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the service names a file {name!r}, which does not lie in {folder}; it is not written")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _told(line: str) -> Told:
    said: Told = json.loads(line)
    if said["event"] == "error":
        error = said["error"]
        raise ServiceFailure(200, error["code"], error["message"], error.get("param"), error["request_id"])
    return said
