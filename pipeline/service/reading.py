"""Bodies of strangers: strict JSON, base64, multipart and arrays, to the values of a request."""

import asyncio
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from worldloom.pipeline.service.contract import Input
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.limits import Limits
from worldloom.stages.npy import read_npy
from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import Stream
from worldloom.stages.streams import kind_of

Model = TypeVar("Model", bound=BaseModel)
JSON, MULTIPART, NPY = "application/json", "multipart/form-data", "application/x-npy"
MOST_DIGITS = 400  # of a number; Python itself refuses to read some thousands
AT_ONCE = 256 << 10  # bytes of JSON that are parsed without going to a thread
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_ONE_KIND, _ELSE = bytes.maketrans(b"{}", b"[]"), bytes(set(range(256)) - set(b"[]{}"))
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|[A-Za-z/])")


def media_type(request: Request) -> str:
    """Of the body, in lower case, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, model: type[Model], limits: Limits) -> Model:
    """The body as a request; ServiceError: media_type_not_allowed, json_invalid, json_too_large, request_invalid."""
    if media_type(request) != JSON:
        raise ServiceError("media_type_not_allowed", 415, f"the body must be {JSON}, it is {media_type(request)[:80] or 'of no type'}")
    content = await request.body()
    parts = sum(map(content.count, (b"[", b"{", b",")))
    if parts > limits.json_parts:
        raise ServiceError(
            "json_too_large", 413, f"the body has {parts} brackets and commas, at most {limits.json_parts}; send it in several, or as files"
        )
    if len(content) <= AT_ONCE:
        return checked(model, parse_json(content, limits.json_depth))
    return await asyncio.to_thread(lambda: checked(model, parse_json(content, limits.json_depth)))


def parse_json(content: bytes, depth: int) -> Any:
    """The value of a JSON text in UTF-8, without doubled keys, NaN, or more than `depth` lists and objects within each other."""
    _check_depth(content, depth)
    try:
        return json.loads(
            content.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant, parse_int=_integer, parse_float=_real
        )
    except (ValueError, RecursionError) as error:
        raise ServiceError("json_invalid", 400, f"the body is no JSON that can be read: {_short(error)}") from None


def checked(model: type[Model], value: Any) -> Model:
    """A request of parsed JSON; ServiceError(request_invalid) names what is wrong first."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ServiceError("request_invalid", 400, f"{where or 'the body'}: {first['msg']}", where[:200] or None) from None


@asynccontextmanager
async def read_form(request: Request, limits: Limits) -> AsyncIterator[FormData]:
    """A multipart body, whose files lie in memory or beside it; ServiceError(multipart_invalid)."""
    try:
        form = await request.form(max_files=limits.values + 1, max_fields=32, max_part_size=1 << 20)
    except HTTPException as error:  # starlette's own way to say it within an application
        raise ServiceError("multipart_invalid", 400, f"the body is no multipart/form-data that can be read: {_short(error)}") from None
    try:
        yield form
    finally:
        await form.close()


async def read_files(request: Request, limits: Limits, name: str) -> tuple[dict[str, str], list[bytes]]:
    """The fields and the files called `name` of a multipart body; ServiceError: multipart_invalid, too_many_values."""
    async with read_form(request, limits) as form:
        fields = {key: value for key, value in form.multi_items() if isinstance(value, str)}
        files = [(key, value) for key, value in form.multi_items() if isinstance(value, UploadFile)]
        if strange := [key for key, _ in files if key != name]:
            raise ServiceError("request_invalid", 400, f"files are called {name}, one is called {strange[0][:80]}", strange[0][:80])
        check_count(len(files), limits)
        return fields, [await value.read() for _, value in files]


def values_of(content: bytes, stream: Stream, limits: Limits) -> list[NDArray[Any]]:
    """The values of an .npy body, one array [values, *form]; ServiceError: type_mismatch, array_form, too_many_values."""
    form = None if (about := kind_of(stream.kind).form) is None else about(stream)
    if form is None or form.dtype != "uint8":
        raise ServiceError(
            "array_form", 422, f"arrays are read of pictures and clips, this stream is {stream.kind}: send its files", "body"
        )
    try:
        array = read_npy(content, limits.body_bytes, "array_form")
    except InputRejected as error:
        raise ServiceError.of(error, "body") from None
    if array.dtype != form.dtype or array.shape[1:] != form.shape:
        wanted = f"{form.dtype} [values, {', '.join(map(str, form.shape))}]"
        raise ServiceError("array_form", 422, f"this stream's values are {wanted}, got {array.dtype} {list(array.shape)}", "body")
    check_count(len(array), limits)
    return list(array)


def contents_of(values: str | Sequence[Input], kind: str, param: str, limits: Limits) -> list[bytes]:
    """The bytes of one value, or of each of a list of values."""
    several = [values] if isinstance(values, str) else list(values)
    check_count(len(several), limits)
    return [content_of(value, kind, param if isinstance(values, str) else f"{param}[{number}]") for number, value in enumerate(several)]


def content_of(value: Input, kind: str, param: str) -> bytes:
    """The bytes of a value as a file would hold them; ServiceError: url_forbidden, base64_invalid, text_not_utf8, request_invalid."""
    if not isinstance(value, str):
        if kind != "action":
            raise ServiceError(
                "request_invalid", 400, f"only actions are given as numbers, this stream is {kind}: give its file in base64", param
            )
        return json.dumps(value).encode()
    if kind == "text":
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ServiceError("text_not_utf8", 400, f"character {error.start} is a lone surrogate, which is no text", param) from None
    if _URL.match(value):
        raise ServiceError("url_forbidden", 403, "the service fetches nothing: give the file itself in base64", param)
    try:
        return binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        raise ServiceError("base64_invalid", 400, "this is no base64 (RFC 4648, without line breaks)", param) from None


def check_count(count: int, limits: Limits) -> None:
    """ServiceError for no values, or for too many of them."""
    if not count:
        raise ServiceError("request_invalid", 400, "there is no value in it; give one at least", "input")
    if count > limits.values:
        raise ServiceError("too_many_values", 413, f"{count} values in one request, at most {limits.values}; send them in several", "input")


def _check_depth(content: bytes, most: int) -> None:
    """json's own parser goes as deep as the stack; this looks at brackets outside of strings only, and takes them away from within."""
    if content.count(b"[") + content.count(b"{") <= most:
        return
    brackets = _STRING.sub(b"", content).translate(_ONE_KIND, _ELSE)
    for _ in range(most):
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise ServiceError("json_invalid", 400, f"lists and objects lie more than {most} deep within each other, or have no end")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text) if len(text) <= MOST_DIGITS else math.inf
    if not math.isfinite(value):
        raise ValueError("a number that is too large")
    return value


def _short(error: BaseException) -> str:
    """The first line, without what it may quote of the body."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at byte {error.pos}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
