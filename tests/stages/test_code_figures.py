"""Use of codes against the definitions, and rates out of the way of what must be the same in every run."""

import json
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from worldloom.stages.artifact import WORKING
from worldloom.stages.code_figures import RATES, bits, markdown_table, rate, use_of, write_rates


def test_even_use_has_a_perplexity_of_all_codes_and_one_code_of_one() -> None:
    even = use_of([np.arange(16).reshape(2, 2, 4), np.arange(16)[::-1].reshape(2, 2, 4)], 16)
    assert even.perplexity == pytest.approx(16) and even.share == 1 and even.count_LK.tolist() == [[2] * 16]
    alone = use_of([np.full((3, 4), 5)], 16)
    assert alone.perplexity == pytest.approx(1) and alone.share == 1 / 16


def test_levels_are_counted_apart_and_averaged() -> None:
    codes = np.stack([np.arange(8).reshape(2, 4), np.zeros((2, 4), np.int64)], axis=-1)  # level 0 even, level 1 one code
    found = use_of([codes], 8, levels=2)
    assert found.count_LK.tolist() == [[1] * 8, [8] + [0] * 7]
    assert found.perplexity == pytest.approx((8 + 1) / 2) and found.share == (8 + 1) / 16


def test_perplexity_is_two_to_the_entropy_in_bits() -> None:
    found = use_of([np.repeat(np.arange(4), [1, 2, 4, 9])[None]], 4)
    entropy = -sum(share / 16 * math.log2(share / 16) for share in (1, 2, 4, 9))
    assert found.perplexity == pytest.approx(2**entropy)


def test_bars_fall_and_keep_the_mean() -> None:
    found = use_of([np.random.default_rng(0).integers(0, 300, (50, 40)) ** 2 // 300], 300)
    bars = found.bars()
    assert len(bars) == 128 and all(left >= right for left, right in pairwise(bars))
    assert use_of([np.array([[0, 2, 2]])], 3).bars() == (2.0, 1.0, 0.0)


def test_bits_are_those_of_codes_of_equal_length() -> None:
    tokenizer: Any = SimpleNamespace(shape=(4, 4, 2), codebook_size=1024)
    assert bits(tokenizer) == 4 * 4 * 2 * 10


def test_the_rate_is_of_the_fastest_round_and_the_first_is_not_counted() -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)

    assert rate(work, 1_000, rounds=2) > 1_000
    assert len(calls) == 3


def test_rates_lie_where_an_artifact_may_differ(tmp_path: Path) -> None:
    write_rates(tmp_path, {"encode_pictures_per_second": 812.5432})
    assert RATES.split("/")[0] in WORKING
    assert json.loads((tmp_path / RATES).read_bytes()) == {"encode_pictures_per_second": 812.5}


def test_a_table_in_markdown_has_one_line_a_row_below_its_head() -> None:
    assert markdown_table(("split", "PSNR (dB)"), [("held_out", 31.2)]) == "| split | PSNR (dB) |\n| --- | --- |\n| held_out | 31.2 |\n"
