import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldloom.world_model.next_token import FULL, ORDER
from worldloom.world_model.vocabulary import Vocabulary, code_stream

STREAMS = {
    "caption": {"kind": "text", "codebook_size": 7, "shape": None, "max_length": 5},
    "frame": {"kind": "image", "codebook_size": 11, "shape": [2, 3], "max_length": 6},
    "title": {"kind": "text", "codebook_size": 5, "shape": None, "max_length": 3},
    "sound": {"kind": "audio", "codebook_size": 3, "shape": None, "max_length": 4},
    "push": {"kind": "action", "codebook_size": 4, "shape": [5, 2], "max_length": 10, "levels": 2},
}


def test_text_comes_first_then_controls_then_one_span_a_stream():
    ids = Vocabulary.of(STREAMS)
    controls = ("<bos>", "<eos>", "<pad>", "<mask>", "<caption>", "</caption>", "<frame>", "</frame>")
    assert ids.controls == (*controls, "<title>", "</title>", "<sound>", "</sound>", "<push>", "</push>")
    assert (ids.bos, ids.eos, ids.pad, ids.mask) == (7, 8, 9, 10)
    assert [ids.span(s) for s in range(5)] == [range(7), range(21, 32), range(5), range(32, 35), range(35, 43)]
    assert [ids.level(4, level) for level in range(2)] == [range(35, 39), range(39, 43)]
    assert ids.size == 43


@pytest.mark.parametrize(("shape", "levels"), [((5, 2), 3), (None, 2), ((), 2), ((4,), 0)])
def test_levels_are_the_last_axis_of_a_fixed_shape(shape, levels):
    with pytest.raises(ValueError, match=rf"stream 'push' has {levels} levels, so its shape must end with {levels}"):
        code_stream("push", "action", 4, shape=shape, max_length=4, levels=levels)


def test_indicators_and_closings_are_the_controls_of_their_stream():
    ids = Vocabulary.of(STREAMS)
    for number, stream in enumerate(ids.streams):
        assert ids.controls[ids.indicator(number) - ids.text_size] == f"<{stream.name}>"
        assert ids.controls[ids.closing(number) - ids.text_size] == f"</{stream.name}>"
        assert ids.index(stream.name) == number


@given(st.lists(st.tuples(st.sampled_from(["text", "image", "audio"]), st.integers(1, 90), st.integers(1, 30), st.booleans()), max_size=6))
def test_a_vocabulary_comes_back_from_json_and_every_id_means_one_thing(drawn):
    streams = {
        f"s{n}": {"kind": kind, "codebook_size": size, "shape": [length] if fixed else None, "max_length": length}
        for n, (kind, size, length, fixed) in enumerate(drawn)
    }
    ids = Vocabulary.of(streams)
    assert Vocabulary.from_json(json.loads(json.dumps(ids.to_json()))) == ids
    controls = range(ids.text_size, ids.text_size + len(ids.controls))
    spans = [ids.span(n) for n, stream in enumerate(ids.streams) if stream.kind != "text"]
    assert sorted([*range(ids.text_size), *controls, *(token for span in spans for token in span)]) == list(range(ids.size))


def test_a_stream_without_an_end_is_refused():
    with pytest.raises(ValueError, match="'x' has neither a shape nor a max_length"):
        code_stream("x", "audio", 5)


def test_an_empty_codebook_is_refused():
    with pytest.raises(ValueError, match="'x' has 0 codes and segments of 3"):
        code_stream("x", "audio", 0, max_length=3)


def test_two_streams_of_one_name_are_refused():
    with pytest.raises(ValueError, match="different names"):
        Vocabulary((code_stream("x", "image", 5, [2]), code_stream("x", "image", 5, [2])), 0)


@pytest.mark.parametrize("name", [ORDER, FULL, "next_token", "masked", "span"])
def test_a_stream_with_a_name_that_means_something_else_is_refused(name):
    with pytest.raises(ValueError, match=f"no stream can be called {name}: .* in weights, temperatures and metrics; call it {name}s, or"):
        Vocabulary((code_stream(name, "image", 5, [2]),), 0)


def test_a_text_stream_larger_than_the_text_span_is_refused():
    with pytest.raises(ValueError, match="'x' has 5 pieces, the text span only 4"):
        Vocabulary((code_stream("x", "text", 5, max_length=2),), 4)


def test_an_unknown_stream_is_named_with_the_known_ones():
    with pytest.raises(KeyError, match="no stream 'smell' in this vocabulary; it has caption, frame, title, sound"):
        Vocabulary.of(STREAMS).index("smell")
