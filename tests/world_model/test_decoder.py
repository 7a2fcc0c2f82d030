"""Token by token against whole passes of the model, and rows of a batch against each alone."""

import pytest
import torch

from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.decoder import REACH, Cache, Decoder
from worldloom.world_model.example import Run


def rows_of(ids: int, lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(ids, (length,), generator=generator) for length in lengths]


@torch.inference_mode()
def gone_on_with(decoder: Decoder, rows: list[torch.Tensor], first: list[int], steps: int) -> list[torch.Tensor]:
    """The logits of every id behind the first tokens of each row, and behind each of `steps` more."""
    every = (range(decoder.shape.vocab_size),)
    cache, at = Cache(decoder, len(rows)), torch.tensor(first)
    found = [decoder.logits(cache.begin([row[:length].tolist() for row, length in zip(rows, first, strict=True)]), every)]
    for _ in range(steps):
        hidden = cache.step(torch.stack([row[place] for row, place in zip(rows, at.tolist(), strict=True)]), at)
        found.append(decoder.logits(hidden, every))
        at = at + 1
    return [torch.stack([logits[row] for logits in found]) for row in range(len(rows))]


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 4}, {"tied": True}])
def test_step_by_step_gives_what_a_whole_pass_gives_also_where_the_cache_grows(worlds, changes):
    model = worlds.tiny_model(**changes)
    first, steps = [3, REACH - 2, 1], 5
    rows = rows_of(worlds.IDS.size, [length + steps for length in first])
    for row, length, made in zip(rows, first, gone_on_with(Decoder(model), rows, first, steps), strict=True):
        whole = model.logits(model(row, torch.arange(len(row)), PackedAttention((Run(1, len(row)),)))).detach()
        torch.testing.assert_close(made, whole[length - 1 :], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 4}])
def test_several_tokens_at_once_are_as_one_by_one_also_over_what_stood_behind_them(worlds, changes):
    decoder = Decoder(worlds.tiny_model(**changes))
    every, first, parts = (range(decoder.shape.vocab_size),), [3, REACH - 2, 1], (2, 1, 4)
    rows = rows_of(worlds.IDS.size, [length + sum(parts) for length in first])
    with torch.inference_mode():
        cache, at = Cache(decoder, len(rows)), torch.tensor(first)
        cache.begin(torch.randint(worlds.IDS.size, (len(rows), REACH), generator=torch.Generator().manual_seed(2)).tolist())
        cache.begin([row[:length].tolist() for row, length in zip(rows, first, strict=True)])
        for many in parts:
            places = at[:, None] + torch.arange(many)
            tokens = torch.stack([row[mine] for row, mine in zip(rows, places, strict=True)])
            made = decoder.logits(cache.go_on(tokens, places, int(places.max()) + 1), every)
            at = at + many
            for row, length, found in zip(rows, at.tolist(), made, strict=True):
                whole = decoder.model(row[:length], torch.arange(length), PackedAttention((Run(1, length),)))
                torch.testing.assert_close(found, decoder.model.logits(whole[-1]), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_among_longer_ones_is_to_the_last_bit_what_it_is_alone(worlds, dtype):
    decoder = Decoder(worlds.tiny_model(), dtype)
    first, steps = [2, 70, 9, 2, 33], 6
    rows = rows_of(worlds.IDS.size, [length + steps for length in first])
    together = gone_on_with(decoder, rows, first, steps)
    for row, length, made in zip(rows, first, together, strict=True):
        (alone,) = gone_on_with(decoder, [row], [length], steps)
        assert torch.equal(made[1:], alone[1:])
        torch.testing.assert_close(made[0], alone[0])


def test_rows_that_are_kept_go_on_as_if_nothing_had_happened(worlds):
    decoder = Decoder(worlds.tiny_model())
    every = (range(decoder.shape.vocab_size),)
    with torch.inference_mode():
        cache = Cache(decoder, 3)
        cache.begin([[1, 2], [3, 4, 5], [6]])
        cache.keep(torch.tensor([2, 0]))
        kept = decoder.logits(cache.step(torch.tensor([7, 8]), torch.tensor([1, 2])), every)
        fresh = Cache(decoder, 2)
        fresh.begin([[6], [1, 2]])
        torch.testing.assert_close(kept, decoder.logits(fresh.step(torch.tensor([7, 8]), torch.tensor([1, 2])), every))


def test_logits_of_some_ids_are_those_of_all_at_their_places(worlds):
    model = worlds.tiny_model()
    decoder = Decoder(model)
    with torch.inference_mode():
        hidden = Cache(decoder, 2).begin([[1, 2], [3]])
        every = decoder.logits(hidden, (range(model.shape.vocab_size),))
        some = decoder.logits(hidden, (range(2, 5), range(9, 10), range(20, 31)))
    torch.testing.assert_close(some, every[:, [2, 3, 4, 9, *range(20, 31)]])
