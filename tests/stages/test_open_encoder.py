"""What a pre-training left, opened again: texts as a text decoder reads them."""

import pytest
import torch

from worldloom.stages.open_encoder import captions_of
from worldloom.tokenizers.text import BOS, EOS, PAD, train_text


def test_texts_stand_between_begin_and_end_with_padding_behind() -> None:
    tokenizer = train_text(["a red square", "a blue cross at the top"] * 9, 290)
    texts = ["a red square", "", "a blue cross"]
    ids, present = captions_of(tokenizer, texts, 64)
    assert torch.equal(present, ids != PAD) and ids[:, 0].tolist() == [BOS] * 3
    lengths = [len(each) for each in tokenizer.encode(texts)]
    assert present.sum(1).tolist() == [length + 2 for length in lengths] and ids[1, :2].tolist() == [BOS, EOS]
    assert [int(row[length + 1]) for row, length in zip(ids, lengths, strict=True)] == [EOS] * 3
    with pytest.raises(ValueError, match=rf"'a red square' is of {lengths[0] + 2} tokens, begin and end included, .* has 3 positions"):
        captions_of(tokenizer, texts[:1], 3)
