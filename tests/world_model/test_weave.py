import numpy as np
import pytest

from worldloom.world_model.weave import FORCED, Codes, document_lengths, spread, weave, weave_one


def test_every_document_parses_back_to_the_segments_it_was_woven_from(worlds):
    generator = np.random.default_rng(1)
    codes = {
        "caption": Codes(generator.integers(0, 13, 9), np.array([3, 0, 6, 0])),
        "frame": Codes(generator.integers(0, 17, 18), np.array([6, 6, 0, 6])),
    }
    order = np.array([[0, 1], [1, -1], [0, -1], [1, 0]])
    woven = weave(worlds.GRAMMAR, order, codes)
    caption, frame = codes["caption"].values, codes["frame"].values
    expected = [
        [("caption", caption[:3]), ("frame", frame[:6])],
        [("frame", frame[6:12])],
        [("caption", caption[3:9])],
        [("frame", frame[12:18]), ("caption", caption[:0])],
    ]
    for tokens, segments in zip(worlds.documents_of(woven), expected, strict=True):
        found = worlds.GRAMMAR.parse(tokens)
        assert [(name, part.tolist()) for name, part in found] == [(name, part.tolist()) for name, part in segments]


def test_the_legal_set_of_every_token_is_what_the_automaton_says(worlds):
    woven, ids = worlds.some_documents(50), worlds.IDS
    at = 0
    for tokens in worlds.documents_of(woven):
        masks, before, inside = worlds.legal_masks(tokens), FORCED, 0
        for mask, legal in zip(masks, woven.legal[at : at + len(tokens)], strict=True):
            if legal == FORCED:
                assert mask.sum() == 1
                continue
            if legal < len(ids.streams):
                said = set(ids.span(legal)) | (set() if ids.streams[legal].fixed else {ids.closing(legal)})
                if (levels := ids.streams[legal].levels) > 1:
                    inside = inside + 1 if before == legal else 0
                    said = set(ids.level(legal, inside % levels))
            else:
                said = {ids.eos} | {ids.indicator(s) for s in range(4) if (legal - 4) >> s & 1}
            before = legal
            assert said == set(mask.nonzero()[:, 0].tolist())
        at += len(tokens)


def test_codes_of_streams_that_are_not_woven_are_passed_over(worlds):
    codes = {"caption": Codes(np.array([1, 2, 3, 4]), np.array([3, 1]))}
    woven = weave(worlds.GRAMMAR, np.array([[-1], [0]]), codes)
    ids = worlds.IDS
    assert woven.tokens.tolist() == [ids.bos, ids.eos, ids.bos, ids.indicator(0), 4, ids.closing(0), ids.eos]


def test_the_length_of_a_document_is_known_before_it_is_woven(worlds):
    order = np.array([[0, 1], [1, -1], [-1, -1]])
    assert document_lengths(worlds.GRAMMAR, order, np.array([[3, 6, 0], [2, 6, 1], [1, 1, 1]])).tolist() == [2 + 5 + 8, 2 + 8, 2]


def test_spread_writes_ragged_rows():
    assert spread(np.array([7, 3, 5]), np.array([2, 0, 3])).tolist() == [7, 8, 5, 6, 7]
    assert spread(np.array([]), np.array([])).tolist() == []


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([("frame", [1, 2])], "2 codes of stream 'frame', it must have exactly 6"),
        ([("caption", range(7))], "7 codes of stream 'caption', it must have at most 6"),
        ([("caption", [1, 13])], "codes of stream 'caption' run from 1 to 13, its codebook from 0 to 12"),
        ([("caption", [-1])], "run from -1 to -1"),
        ([("caption", [1]), ("caption", [1])], "'caption' stands 2 times in a sample"),
    ],
)
def test_a_sample_that_breaks_the_grammar_is_refused(worlds, segments, message):
    with pytest.raises(ValueError, match=message):
        weave_one(worlds.GRAMMAR, segments)


@pytest.mark.parametrize(("order", "message"), [([[4]], "numbers 0..3 or -1, got 4..4"), ([[-1, 0]], "-1 may only stand behind")])
def test_an_order_that_means_nothing_is_refused(worlds, order, message):
    with pytest.raises(ValueError, match=message):
        weave(worlds.GRAMMAR, np.array(order), {"caption": Codes(np.array([1]), np.array([1]))})
