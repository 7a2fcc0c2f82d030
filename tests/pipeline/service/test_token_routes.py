"""Tokens from the service are those of the encode stage, to the byte."""

import base64
import io

import numpy as np
import pytest

from worldloom.stages.artifact import Artifact
from worldloom.stages.dataset import Dataset
from worldloom.stages.shards import IndexedShard


def stored(root, stream, split="train"):
    """The contents of a stream and the bytes of its tokens, sample by sample, of the first shard of a split."""
    data = Dataset(Artifact.open(root / "artifacts" / "data" / "0123456789abcdef"))
    tokens = root / "artifacts" / "tokens" / "0123456789abcdef" / "tokens" / split / stream
    shard = IndexedShard(tokens / "shard-000000.tar", tokens / "shard-000000.idx.npy")
    contents = data.reader(split, "shard-000000", stream)
    return [bytes(contents.content(row)) for row in range(len(shard))], [bytes(shard.content(row)) for row in range(len(shard))]


def sent(stream, contents):
    return [content.decode() if stream == "words" else base64.b64encode(content).decode() for content in contents]


def arrays(content):
    stream = io.BytesIO(content)
    while stream.tell() < len(content):
        yield np.load(stream)


def npy(array):
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()


@pytest.mark.parametrize("stream", ["words", "clip", "push", "sound"])
@pytest.mark.parametrize("together", [1, 3, 8])
def test_tokens_are_those_of_the_encode_stage_to_the_byte_whatever_they_are_sent_with(clocked, clocked_root, stream, together):
    contents, tokens = stored(clocked_root, stream)
    for first in range(0, len(contents), together):
        asked = {"tokenizer": stream, "input": sent(stream, contents[first : first + together]), "return": "npy"}
        answer = clocked("POST", "/v1/tokenize", json=asked)
        assert answer.status_code == 200, answer.text
        found = list(arrays(answer.content))
        found = found if stream == "words" else list(found[0])
        assert [npy(one) for one in found] == tokens[first : first + together]


def test_pictures_have_the_tokens_of_the_encode_stage_in_json_too(tiny, tiny_root):
    contents, tokens = stored(tiny_root, "view")
    answer = tiny("POST", "/v1/tokenize", json={"tokenizer": "view", "input": sent("view", contents)}).json()
    found = [npy(np.array(one["codes"], answer["dtype"])) for one in answer["data"]]
    assert found == tokens
    assert [tuple(one["shape"]) for one in answer["data"]] == [(2, 2)] * len(tokens)
