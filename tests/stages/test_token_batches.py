"""What a world model is trained on: every sample once an epoch, whatever the ranks, from any place on."""

import threading
from itertools import islice

import numpy as np
import pytest

from worldloom.stages.dataset import Ragged, TokenStream
from worldloom.stages.token_batches import TokenBatches
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.vocabulary import Vocabulary

SAMPLES = 23


STREAMS = {
    "caption": TokenStream("text", 1000, None, "uint16", "c", 5),
    "frame": TokenStream("image", 50, (2, 2), "uint16", "f", 4),
}


class Memory:
    """Tokens that were never on a disk: sample i has i % 5 + 1 caption codes, four frame codes, and every sixth has no frame."""

    splits = ("train",)

    def samples(self, split):
        return SAMPLES if split == "train" else 0

    def lengths(self, split, stream):
        return np.array([len(self.codes(stream, i)) for i in range(SAMPLES)], np.int64)

    def codes(self, stream, i):
        if stream == "caption":
            return np.full(i % 5 + 1, 10 * i, np.uint16)
        return np.arange(0 if i % 6 == 5 else 4, dtype=np.uint16) + i

    def gather(self, split, stream, indices):
        rows = [self.codes(stream, int(i)) for i in indices]
        return Ragged(np.concatenate([np.empty(0, np.uint16), *rows]), np.cumsum([0, *map(len, rows)]))


GRAMMAR = Grammar(Vocabulary.of({name: stream._asdict() for name, stream in STREAMS.items()}))


def batches(rows=4, row_length=32, seed=3, rank=0, world_size=1, **more):
    return TokenBatches(Memory(), GRAMMAR, "train", rows, row_length, seed, rank, world_size, **more)


def documents(batch):
    """Each document's place and segments."""
    ends = batch.woven.lengths.cumsum()
    tokens = np.split(batch.woven.tokens, ends[:-1])
    return [(place, GRAMMAR.parse(one)) for place, one in zip(batch.places.tolist(), tokens, strict=True)]


def first(source, many, position=None):
    return [batch for batch, _ in islice(source.after(position), many)]


def test_an_epoch_holds_every_sample_once_and_the_next_in_another_order():
    source = batches()
    places = np.concatenate([batch.places for batch in first(source, 20)])
    assert np.array_equal(np.sort(places), np.arange(len(places))) and len(places) > 2 * SAMPLES
    one, two = (source.sample(np.arange(SAMPLES) + epoch * SAMPLES) for epoch in (0, 1))
    assert np.array_equal(np.sort(one), np.arange(SAMPLES)) and np.array_equal(np.sort(two), np.arange(SAMPLES))
    assert not np.array_equal(one, two)


def test_a_document_is_its_sample_legal_and_whole():
    source, memory = batches(), Memory()
    for batch in first(source, 5):
        for place, segments in documents(batch):
            i = int(source.sample(np.array([place]))[0])
            found = {segment.stream: segment.codes.tolist() for segment in segments}
            assert found == {name: memory.codes(name, i).tolist() for name in STREAMS if len(memory.codes(name, i))}


def test_both_orders_of_streams_are_drawn_anew_in_every_epoch():
    source = batches()
    drawn = {}
    for batch in first(source, 60):
        for place, segments in documents(batch):
            if len(segments) == 2:
                drawn.setdefault(int(source.sample(np.array([place]))[0]), []).append(segments[0].stream)
    flat = [stream for streams in drawn.values() for stream in streams]
    assert 0.35 < flat.count("frame") / len(flat) < 0.65
    assert any(len(set(streams)) == 2 for streams in drawn.values())


def test_going_on_from_a_position_gives_the_same_batches():
    source = batches()
    whole = list(islice(source.after(None), 12))
    for at in (0, 4, 9):
        resumed = first(batches(), 3, position=whole[at][1])
        for (expected, _), batch in zip(whole[at + 1 :], resumed, strict=False):
            assert np.array_equal(expected.places, batch.places)
            assert np.array_equal(expected.woven.tokens, batch.woven.tokens)


def test_ranks_share_the_batch_of_one():
    whole = first(batches(), 6)
    halves = [first(batches(rank=rank, world_size=2), 6) for rank in range(2)]
    for one, *parts in zip(whole, *halves, strict=True):
        assert sorted(one.places.tolist()) == sorted(np.concatenate([part.places for part in parts]).tolist())
        together = {place: repr(segments) for part in parts for place, segments in documents(part)}
        assert together == {place: repr(segments) for place, segments in documents(one)}


def test_rows_are_never_overfilled_and_well_filled():
    for batch in first(batches(rows=4, row_length=64), 8):
        assert 0.8 * 4 * 64 < batch.woven.lengths.sum() <= 4 * 64


def test_a_share_of_a_stream_is_dropped_but_never_the_last_stream():
    source = batches(drop={"caption": 0.5, "frame": 0.9})
    alone = {"caption": 0, "frame": 0, "both": 0}
    for batch in first(source, 80):
        for _, segments in documents(batch):
            assert segments
            alone[segments[0].stream if len(segments) == 1 else "both"] += 1
    total = sum(alone.values())
    assert 0.02 < alone["both"] / total < 0.1 and alone["caption"] > 2 * alone["frame"] > 0


def test_what_is_dropped_says_nothing_of_the_order_of_the_rest():
    both = [segments for batch in first(batches(drop={"caption": 0.5}), 120) for _, segments in documents(batch) if len(segments) == 2]
    assert len(both) > 200 and 0.42 < sum(segments[0].stream == "caption" for segments in both) / len(both) < 0.58


def test_any_place_can_be_asked_for_alone():
    source = batches()
    batch = first(source, 3)[2]
    again = source.at(batch.places[::-1].copy())
    assert {p: repr(s) for p, s in documents(again)} == {p: repr(s) for p, s in documents(batch)}


def test_taking_documents_keeps_them_whole():
    batch = first(batches(), 1)[0]
    assert [repr(d) for d in documents(batch.take(np.array([2, 0])))] == [repr(documents(batch)[i]) for i in (2, 0)]


def test_rows_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match=r"rows \(4\) cannot be shared by 3 training workers; make it a multiple of 3"):
        batches(world_size=3)


def test_a_row_shorter_than_a_sample_is_refused():
    with pytest.raises(ValueError, match="the longest sample of 'train' makes 15 tokens, a row has 14; set row_length to at least 15"):
        batches(row_length=14)
    batches(row_length=15)


def test_samples_longer_than_a_row_can_be_left_out_and_all_others_come_once_an_epoch():
    def all_of(i):
        return sum(len(Memory().codes(name, i)) + 2 for name in STREAMS if len(Memory().codes(name, i))) + 2

    fitting = [i for i in range(SAMPLES) if all_of(i) <= 13]
    source = batches(row_length=13, leave_longer=True)
    assert source.left_out == SAMPLES - len(fitting) > 0
    places = np.concatenate([batch.places for batch in first(source, 30)])
    assert np.array_equal(places, np.arange(len(places))) and len(places) > 2 * len(fitting)
    for epoch in (0, 1):
        assert sorted(source.sample(np.arange(len(fitting)) + epoch * len(fitting)).tolist()) == fitting
    every, none = (first(batches(leave_longer=leave), 4) for leave in (True, False))
    assert [batch.woven.tokens.tolist() for batch in every] == [batch.woven.tokens.tolist() for batch in none]
    with pytest.raises(ValueError, match="the shortest sample of 'train' makes 5 tokens, a row has 4; set row_length to at least 5"):
        batches(row_length=4, leave_longer=True)


def test_an_unknown_stream_to_drop_is_refused():
    with pytest.raises(ValueError, match="drop names sound, but the streams are caption, frame"):
        batches(drop={"sound": 0.1})


def test_a_split_without_samples_is_refused():
    with pytest.raises(ValueError, match="no samples in the split 'held_out'; they have train"):
        TokenBatches(Memory(), GRAMMAR, "held_out", 4, 32, 0)


def test_the_next_batch_is_made_by_a_thread_while_one_is_learnt_from_and_the_thread_goes_with_it():
    here, made = threading.current_thread(), []

    class Watched(Memory):
        def gather(self, split, stream, indices):
            made.append((threading.current_thread() is here, len(indices)))
            return super().gather(split, stream, indices)

    source = TokenBatches(Watched(), GRAMMAR, "train", 4, 32, 3).after(None)
    batch, position = next(source)
    assert position == {"places": len(batch.places)}, "the position is that behind the batch, not behind the one being made"
    again, _ = next(batches().after(position))
    ahead, _ = next(source)
    assert np.array_equal(again.places, ahead.places) and np.array_equal(again.woven.tokens, ahead.woven.tokens)
    source.close()
    assert len(made) >= 4 and not any(by_us for by_us, _ in made)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


class Clocked(Memory):
    """Beside captions a clip of three steps and a push between them; every fifth sample has no push, every seventh no clip."""

    def codes(self, stream, i):
        if stream == "caption":
            return super().codes(stream, i)
        return (np.arange(6 * (i % 7 != 6)) if stream == "clip" else np.arange(2 * (i % 5 != 4))).astype(np.uint16)


def test_streams_of_the_clock_are_one_among_the_streams_at_a_drawn_place_and_each_can_be_dropped():
    streams = {
        "caption": STREAMS["caption"],
        "push": TokenStream("action", 9, (2,), "uint16", "p", 2, steps=2),
        "clip": TokenStream("video", 9, (3, 2), "uint16", "v", 6, steps=3),
    }
    clock = {"name": "step", "streams": ["clip", "push"], "given": ["push"]}
    grammar = Grammar(Vocabulary.of({name: stream._asdict() for name, stream in streams.items()}, clock))
    seen = {}
    source = TokenBatches(Clocked(), grammar, "train", 4, 64, 3, drop={"push": 0.3})
    for batch in first(source, 60):
        for tokens in np.split(batch.woven.tokens, batch.woven.lengths.cumsum()[:-1]):
            names = tuple(segment.stream for segment in grammar.parse(tokens))
            seen[names] = seen.get(names, 0) + 1
    assert set(seen) == {
        *(("caption", *group) for group in (("clip",), ("push",), ("clip", "push"))),
        *((*group, "caption") for group in (("clip",), ("push",), ("clip", "push"))),
        ("caption",),
    }
    before = sum(many for names, many in seen.items() if names[0] == "caption" and len(names) > 1)
    assert 0.4 < before / sum(many for names, many in seen.items() if len(names) > 1) < 0.6
    longest = 2 + (4 + 2) + (6 + 2 * 3) + (2 + 2 * 2)
    with pytest.raises(ValueError, match=f"makes {longest} tokens, a row has {longest - 1}"):
        TokenBatches(Clocked(), grammar, "train", 4, longest - 1, 3)
