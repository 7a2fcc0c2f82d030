"""Several sets of tokens as one: who gets which place, what a stream of one name must be, and whose samples come out."""

import numpy as np
import pytest

from worldloom.stages.dataset import Ragged, TokenStream
from worldloom.stages.mixture import Mixture, deal
from worldloom.stages.token_batches import TokenBatches
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.vocabulary import Vocabulary

CAPTION = TokenStream("text", 1000, None, "uint16", "c", 3)
FRAME = TokenStream("image", 50, (2, 2), "uint16", "f", 4)
SOUND = TokenStream("audio", 9, (3,), "uint8", "s", 3)


class Memory:
    """A set of tokens that was never on a disk: every code of sample i is `first` + i."""

    clock = None

    def __init__(self, samples, first, splits=("train",), **streams):
        self.size, self.first, self.streams, self.splits = samples, first, streams, splits

    def samples(self, split):
        return self.size if split in self.splits else 0

    def lengths(self, split, stream):
        return np.full(self.size, self.streams[stream].max_length)

    def gather(self, split, stream, indices):
        length = self.streams[stream].max_length
        return Ragged(np.repeat(np.asarray(indices) + self.first, length).astype(np.uint16), np.arange(len(indices) + 1) * length)


def mixture(**weights):
    sets = {
        "many": Memory(23, 0, caption=CAPTION, frame=FRAME),
        "few": Memory(5, 23, caption=CAPTION._replace(max_length=2)),
        "loud": Memory(7, 0, sound=SOUND),
    }
    weights = weights or {"many": 0.6, "few": 0.3, "loud": 0.1}
    return Mixture({name: sets[name] for name in weights}, weights)


def batches(rank=0, world_size=1, **weights):
    tokens = mixture(**weights)
    grammar = Grammar(Vocabulary.of({name: stream._asdict() for name, stream in tokens.streams.items()}))
    return TokenBatches(tokens, grammar, "train", 4, 32, 3, rank, world_size)


@pytest.mark.parametrize("weights", [[1.0], [0.7, 0.3], [5.0, 1.0, 2.0, 0.25]])
def test_each_set_gets_its_share_of_any_places_in_a_row_and_counts_them_through(weights):
    places = np.arange(5_000)
    part, within = deal(11, places, weights)
    for number, weight in enumerate(weights):
        mine = part == number
        assert np.array_equal(within[mine], np.arange(mine.sum()))
        for first in (0, 1234):
            here = mine[first : first + 3_000].sum()
            assert abs(here - 3_000 * weight / sum(weights)) < 1 + len(weights)
    again = deal(11, places[::-1][:77], weights)
    assert np.array_equal(again.part, part[::-1][:77]) and np.array_equal(again.place, within[::-1][:77])


def test_far_places_are_dealt_like_near_ones():
    part, within = deal(5, 10**11 + np.arange(1_000), [0.7, 0.3])
    assert (part == 0).sum() in (699, 700, 701)
    for number in (0, 1):
        assert np.array_equal(np.diff(within[part == number]), np.ones((part == number).sum() - 1))


def test_every_sample_of_every_set_comes_once_an_epoch_of_its_own():
    source = batches()
    samples = source.sample(np.arange(400))
    for first, last in ((0, 23), (23, 28), (28, 35)):
        mine = samples[(samples >= first) & (samples < last)]
        size = last - first
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(first, last))
    assert not np.array_equal(samples[:50], samples[50:100])


def test_documents_are_those_of_their_sets_for_any_number_of_ranks():
    def documents(source, many):
        found = []
        for _, (batch, _) in zip(range(many), source.after(None), strict=False):
            tokens = np.split(batch.woven.tokens, batch.woven.lengths.cumsum()[:-1])
            found.append({place: repr(source.grammar.parse(one)) for place, one in zip(batch.places.tolist(), tokens, strict=True)})
        return found

    whole, halves = documents(batches(), 6), [documents(batches(rank, 2), 6) for rank in range(2)]
    assert whole == [one | other for one, other in zip(*halves, strict=True)]
    source = batches()
    for batch in whole:
        for place, said in batch.items():
            sample = int(source.sample(np.array([place]))[0])
            assert ("frame" in said) == (sample < 23) and ("sound" in said) == (sample >= 28)
            assert str(sample if sample < 28 else sample - 28) in said


def test_one_set_alone_is_dealt_as_if_there_were_no_mixture():
    tokens = mixture(many=2.0)
    alone = TokenBatches(tokens.sets["many"], batches(many=1.0).grammar, "train", 4, 32, 3)
    places = np.arange(100)
    assert np.array_equal(batches(many=2.0).sample(places), alone.sample(places))


def test_a_set_whose_samples_are_all_longer_than_a_row_leaves_its_share_to_the_others():
    tokens = mixture()
    grammar = Grammar(Vocabulary.of({name: stream._asdict() for name, stream in tokens.streams.items()}))
    source = TokenBatches(tokens, grammar, "train", 4, 12, 3, leave_longer=True)
    assert source.left_out == 23
    samples = source.sample(np.arange(400))
    assert samples.min() == 23 and abs((samples < 28).sum() - 300) <= 1
    batch, _ = next(source.after(None))
    assert set(batch.woven.lengths.tolist()) == {6, 7}


def test_streams_of_one_name_are_of_one_making():
    one, other = Memory(3, 0, frame=FRAME), Memory(3, 0, frame=FRAME._replace(tokenizer="g"))
    with pytest.raises(ValueError, match=r"'frame' of a and that of b were made by different tokenizers .f, g.; encode both with one"):
        Mixture({"a": one, "b": other}, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="they must have one form"):
        Mixture({"a": one, "b": Memory(3, 0, frame=FRAME._replace(codebook_size=51))}, {"a": 1, "b": 1})
    ticking = Memory(3, 0, frame=FRAME)
    ticking.clock = {"name": "tick"}
    tocking = Memory(3, 0, caption=CAPTION)
    tocking.clock = {"name": "tock"}
    with pytest.raises(ValueError, match="the clocks of a and b differ"):
        Mixture({"a": ticking, "b": tocking}, {"a": 1, "b": 1})


def test_a_set_with_nothing_to_give_is_refused():
    with pytest.raises(ValueError, match="b has no samples in the split 'train'; it has validation; leave it out of tokens"):
        Mixture({"a": Memory(3, 0, frame=FRAME), "b": Memory(3, 0, ("validation",), frame=FRAME)}, {"a": 1, "b": 1}).samples("train")
