"""What is asked of the service and what it answers, route by route: the models behind docs/openapi.json.

A value in JSON is text for a stream of text, else a file (PNG, JPEG, WebP, WAV, FLAC, MP4, .npy ...) in base64; of actions it may also be
the rows of numbers themselves.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveInt

from worldloom.pipeline.service.told import Told
from worldloom.stages.settings import NAME, Stream

Name = Annotated[str, Field(pattern=NAME)]
Rows = list[list[float]] | list[float]
Input = str | Rows
Codes = list[Any]  # of one value: nested as in the tokenizer's shape, or flat
LARGEST = 2**63 - 1
Seed = Annotated[NonNegativeInt, Field(le=LARGEST)]
Steps = Annotated[PositiveInt, Field(le=LARGEST)]
PerStream = NonNegativeFloat | dict[str, NonNegativeFloat]
Count = Annotated[NonNegativeInt, Field(le=LARGEST)]
CountPerStream = Count | dict[str, Count]


class Asked(BaseModel):
    """A request: no unknown keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# Errors


class ErrorDetail(Told):
    """What went wrong, for programs and for people."""

    code: str = Field(description="stable, for programs")
    message: str = Field(description="the rule, the value and the way out")
    param: str | None = Field(default=None, description="the part of the request that it is about: input[3], tokenizer")
    request_id: str


class ErrorAnswer(Told):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


# What there is


class TokenizerInfo(Told):
    """A tokenizer that is served."""

    name: str
    kind: Literal["text", "image", "video", "audio", "action"]
    stage: str | None = Field(description="stage of the run that trained it")
    stream: Stream = Field(description="the form that values are brought to")
    codebook_size: int = Field(description="codes of one level are 0 .. codebook_size - 1")
    levels: int = Field(description="codes at one place; more than one are the last axis of `shape`")
    shape: tuple[int, ...] | None = Field(description="shape of a value's codes; null where it varies")
    dtype: Literal["uint16", "uint32"] = Field(description="of codes in npy answers and in token shards")
    fingerprint: str = Field(description="sha256 of everything that decides the codes")
    endings: tuple[str, ...] = Field(description="of the files that it reads")
    unit: Literal["pixels", "samples", "characters", "numbers"] = Field(description="what a value costs is counted in")


class TokenizersAnswer(Told):
    """GET /v1/tokenizers."""

    object: Literal["list"] = "list"
    data: tuple[TokenizerInfo, ...]


class WorldStream(Told):
    """A stream that the world writes."""

    name: str
    kind: str
    stream: Stream
    codebook_size: int
    levels: int
    shape: tuple[int, ...] | None
    max_length: int = Field(description="codes of the longest segment")
    on_clock: bool = Field(description="whether it goes on step by step in a rollout")


class ActionInfo(Told):
    """What a rollout takes at every step."""

    stream: str
    dimensions: int
    choices: int | None = Field(description="an action is one of 0 .. choices - 1; null: real numbers")
    names: tuple[str, ...] = Field(description="of the choices, where they are known")


class WorldInfo(Told):
    """The world model that is served."""

    name: str
    fingerprint: str
    parameters: int
    streams: tuple[WorldStream, ...]
    objectives: tuple[str, ...]
    fills: bool = Field(description="whether it learnt from hidden codes, so that fill_steps may be asked for")
    clock: str | None
    steps: int = Field(description="of the clock, in a sample; 0 without one")
    actions: ActionInfo | None = Field(description="null: rollouts take no actions, or there are none")


class EncoderInfo(Told):
    """An encoder of pictures that is served."""

    name: str
    fingerprint: str
    width: int = Field(description="numbers of an embedding")
    size: tuple[int, int] = Field(description="height and width that pictures are brought to")
    indexed: int = Field(description="samples that /v1/search looks through")
    reads_texts: bool = Field(description="whether its pictures are compared with texts, too")


class LimitsInfo(Told):
    """What a request may ask for."""

    body_bytes: int
    upload_bytes: int
    values: int = Field(description="of one request")
    cost: dict[str, int] = Field(description="of one request, by unit")
    seconds: float = Field(description="that a request may take")


class QuotaInfo(Told):
    """What the token may spend."""

    per_minute: float = Field(description="cost, all units together: pixels, samples, characters, numbers, codes and bytes of shards")
    left: float


class InfoAnswer(Told):
    """GET /v1/info."""

    name: Literal["worldloom"] = "worldloom"
    version: str
    tenant: str
    tokenizers: tuple[str, ...]
    world: WorldInfo | None
    encoders: tuple[EncoderInfo, ...]
    sources: tuple[str, ...] = Field(description="prefixes that a batch may read from")
    limits: LimitsInfo
    quota: QuotaInfo | None


# Tokens


class TokenizeRequest(Asked):
    """POST /v1/tokenize as JSON. As multipart/form-data: the fields tokenizer, return and one or more files called file. As
    application/x-npy: one array [values, *form] of pictures or clips that have their stream's form, with ?tokenizer= and &return=.
    """

    tokenizer: Name
    input: str | list[Input] = Field(description="one value, or a list of values")
    answer: Literal["json", "npy"] = Field(default="json", alias="return", description="npy: the codes alone, application/x-npy")


class Usage(Told):
    """What a request cost."""

    values: int
    cost: int
    unit: str
    codes: int


class ValueCodes(Told):
    """The codes of one value."""

    index: int
    codes: Codes
    shape: tuple[int, ...]


class TokenizeAnswer(Told):
    """The codes of every value, in order. Each is what encode_dataset writes for the same value, to the byte."""

    object: Literal["list"] = "list"
    tokenizer: str
    fingerprint: str
    dtype: Literal["uint16", "uint32"]
    data: tuple[ValueCodes, ...]
    usage: Usage


Format = Literal["png", "wav", "mp4", "npy", "txt", "json"]


class DetokenizeRequest(Asked):
    """POST /v1/detokenize as JSON. As multipart: the fields tokenizer, format, return and files called file, each one value's .npy."""

    tokenizer: Name
    codes: list[Codes] = Field(description="a list of values' codes")
    format: Format | None = Field(
        default=None, description="of the files; by default png, wav, txt or json, as the kind is; clips also mp4"
    )
    answer: Literal["json", "file"] = Field(default="json", alias="return", description="file: the file itself, of one value")


class Shown(Told):
    """A value as something to look at or listen to."""

    media_type: str
    content: str | None = Field(default=None, description="a file in base64")
    text: str | None = Field(default=None, description="of a stream of text")


class Decoded(Shown):
    """A value that codes stand for."""

    index: int


class DetokenizeAnswer(Told):
    """The values, in order."""

    object: Literal["list"] = "list"
    tokenizer: str
    data: tuple[Decoded, ...]
    usage: Usage


# Worlds


class Choosing(Asked):
    """How codes are drawn: numbers, or one for each stream named."""

    seed: Seed = Field(default=0, description="the same one gives the same answer")
    temperature: PerStream | None = Field(default=None, description="0 takes the likeliest; null: 0.25 where something is given, else 1")
    top_k: CountPerStream = Field(default=0, description="0 takes all")
    top_p: PerStream = 1.0


class GenerateRequest(Choosing):
    """POST /v1/generate; the answer is one JSON object a line, see GenerateLine."""

    given: dict[str, Input] = Field(default={}, description="values by stream")
    want: list[str] | None = Field(
        default=None, description="streams to write, in order; null: all others, or, with nothing given, as it likes"
    )
    guidance: NonNegativeFloat = Field(default=1.0, description="how strongly what is given counts; 1 as learnt")
    fill_steps: NonNegativeInt | None = Field(
        default=None,
        le=256,
        description="write segments of fixed shape in so many steps, by hidden codes; 0: code by code; null: as the world learnt",
    )
    fill_order: Literal["confidence", "random", "raster"] = "confidence"
    scale: PositiveInt = Field(default=1, le=16, description="enlarges pictures by whole pixels")


class GenerateLine(Told):
    """A line of the answer: begin, then segments with their codes as they are settled, values, and end; or an error."""

    event: Literal["begin", "segment", "codes", "value", "end", "error"]
    request_id: str | None = Field(default=None, description="with begin")
    stream: str | None = Field(default=None, description="with segment, codes and value")
    shape: tuple[int, ...] | None = Field(default=None, description="of the segment's codes, with segment; null where it varies")
    places: tuple[int, ...] | None = Field(default=None, description="with codes: which of the segment's codes, from 0 on, flat")
    codes: tuple[int, ...] | None = Field(default=None, description="with codes: local to their level; a place may change until the end")
    value: Shown | None = Field(default=None, description="with value")
    given: bool | None = Field(default=None, description="with value: whether it was given, and came back through its tokenizer")
    legal: bool | None = Field(default=None, description="with end: whether the grammar can read it")
    tokens: int | None = Field(default=None, description="with end: how long the sample is")
    error: ErrorDetail | None = Field(default=None, description="with error, the last line then")


class RolloutRequest(Choosing):
    """POST /v1/rollouts."""

    context: dict[str, Input] | None = Field(
        default=None, description="the first frame: a picture or a clip for the stream of frames; null: of a sample the world has not seen"
    )
    sample: Seed | None = Field(default=None, description="seed of that sample, where context is null; null: `seed`")
    given: Steps = Field(default=1, description="frames of it that stand in front, with what lies between them; step 0 is the last")
    prompts: dict[str, Input] = Field(default={}, description="values of streams that are not on the clock: a caption")
    window: Steps | None = Field(default=None, description="steps in sight, at most as many as a sample has; null: as many")
    scale: PositiveInt = Field(default=1, le=16, description="enlarges frames by whole pixels")


class RolloutStep(Told):
    """What a step brought, by stream: the next frame, its sound, its reward."""

    id: str
    step: int = Field(description="0: the frame that it began with")
    values: dict[str, Shown] = Field(description="frames as png, sounds of a step as wav, numbers as json")
    numbers: dict[str, list[float]] = Field(description="actions, rewards and ends of episodes as numbers")


class RolloutInfo(Told):
    """A session."""

    id: str
    step: int
    frames: str = Field(description="the stream of frames")
    actions: ActionInfo | None
    expires_in: float = Field(description="seconds from the last use")


class RolloutOpened(RolloutInfo):
    """The answer to POST /v1/rollouts."""

    first: RolloutStep


class RolloutsAnswer(Told):
    """GET /v1/rollouts."""

    object: Literal["list"] = "list"
    data: tuple[RolloutInfo, ...]


class ActRequest(Asked):
    """POST /v1/rollouts/{id}/act."""

    action: int | float | str | list[float] | None = Field(
        default=None, description="a choice by number or name, or the numbers of one step; null: the world takes its own"
    )
    steps: PositiveInt = Field(default=1, le=64, description="how often it is taken")


class StepsAnswer(Told):
    """The steps, in order."""

    object: Literal["list"] = "list"
    data: tuple[RolloutStep, ...]


# Datasets


class BatchRequest(Asked):
    """POST /v1/batches as JSON. As multipart: a field job, this as JSON without source, and files called shard: tars of raw samples."""

    tokenizers: dict[Name, Name] = Field(min_length=1, description="stream of the dataset -> tokenizer")
    source: str | None = Field(default=None, description="PREFIX/path of a folder of files, or of an artifact with a dataset")
    caption: Literal["auto", "csv", "text_file", "parent_folder", "file_name", "none"] = Field(
        default="auto", description="where a folder's captions are, as in import_folder"
    )
    validation_share: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="share of a folder's samples that is held out")
    max_reject_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="samples that may be refused before the job fails"
    )
    shard_size: PositiveInt = Field(default=512, description="samples in a shard of what is imported")


class BatchProgress(Told):
    """How far a job is."""

    stage: str
    done: int
    total: int
    unit: str


class BatchInfo(Told):
    """A job."""

    object: Literal["batch"] = "batch"
    id: str
    state: Literal["queued", "running", "completed", "failed", "cancelling", "cancelled"]
    created: float = Field(description="seconds since 1970")
    request: BatchRequest
    progress: BatchProgress | None
    counts: dict[str, JsonValue] = Field(description="samples, rejected and codes by stream, once it is completed")
    error: str | None


class BatchesAnswer(Told):
    """GET /v1/batches, newest first."""

    object: Literal["list"] = "list"
    data: tuple[BatchInfo, ...]


class BatchFile(Told):
    """A file of the result."""

    name: str
    bytes: int
    sha256: str


class BatchFilesAnswer(Told):
    """GET /v1/batches/{id}/files: the token shards, their indexes, tokens/dataset.json, the refusals, and DONE.json, the manifest."""

    object: Literal["list"] = "list"
    data: tuple[BatchFile, ...]


# Encoders


class EmbedRequest(Asked):
    """POST /v1/embed."""

    encoder: Name
    input: str | list[str] = Field(description="one picture in base64, or a list")


class Embedding(Told):
    """One picture's embedding."""

    index: int
    embedding: tuple[float, ...]


class EmbedAnswer(Told):
    """The embeddings, in order."""

    object: Literal["list"] = "list"
    encoder: str
    data: tuple[Embedding, ...]


class SearchRequest(Asked):
    """POST /v1/search: samples like a picture, a text or an embedding, one of the three."""

    encoder: Name
    input: str | None = Field(default=None, description="a picture in base64")
    text: str | None = Field(default=None, description="for encoders that read texts")
    embedding: list[float] | None = None
    top: PositiveInt = Field(default=10, le=100)


class Found(Told):
    """A sample that is alike."""

    key: str
    split: str
    score: float = Field(description="cosine of the embeddings")


class SearchAnswer(Told):
    """The most alike first."""

    object: Literal["list"] = "list"
    encoder: str
    data: tuple[Found, ...]
