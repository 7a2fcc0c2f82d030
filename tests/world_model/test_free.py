"""Legal tokens without the grammar: none to speak of from a model that knows nothing, all from one that does."""

import numpy as np
import pytest
import torch

from worldloom.world_model.decoder import Decoder
from worldloom.world_model.free import legal_share
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.next_token import next_token
from worldloom.world_model.qwen3 import load_qwen3, save_qwen3
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Vocabulary, code_stream
from worldloom.world_model.weave import Codes, weave

IDS = Vocabulary((code_stream("words", "text", 5, max_length=3), code_stream("view", "image", 7, shape=(2, 2))), 5)
GRAMMAR = Grammar(IDS)


def test_a_model_that_holds_all_ids_alike_is_legal_as_often_as_chance_is():
    model = WorldModel(Shape(IDS.size, width=16, depth=1, heads=2, kv_heads=2, ff=16, head_width=8), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.output.zero_()
    share = legal_share(Decoder(model), GRAMMAR, range(3_000))
    # Behind <bos> 3 of 20 ids may follow; of those that go on, some stay legal for another token or two.
    assert 3 / IDS.size < share < 0.35


def test_a_trained_model_stays_legal_also_from_its_exported_folder_because_some_labels_take_the_full_softmax(tmp_path):
    shares = {}
    for full_share in (0.0, 1 / 16):
        generator = np.random.default_rng(0)
        model = WorldModel(Shape(IDS.size, width=16, depth=2, heads=2, kv_heads=2, ff=48, head_width=16), torch.Generator().manual_seed(0))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for step in range(400):
            count = 32
            lengths = generator.integers(0, 4, count)
            codes = {
                "words": Codes(generator.integers(0, 5, lengths.sum()), lengths),
                "view": Codes(generator.integers(0, 7, 4 * count), np.full(count, 4)),
            }
            order = np.stack([generator.permutation(2) for _ in range(count)])
            example = next_token(weave(GRAMMAR, order, codes), GRAMMAR, np.arange(count) + step * count, 0, full_share)
            losses = model.losses(example)
            (losses.total / losses.counts.sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        save_qwen3(tmp_path / str(full_share), model, GRAMMAR)
        exported = Decoder(load_qwen3(tmp_path / str(full_share)).model)
        shares[full_share] = legal_share(exported, GRAMMAR, range(500))
        assert shares[full_share] == legal_share(Decoder(model), GRAMMAR, range(500))
    assert shares[1 / 16] >= 0.995 > shares[0.0] + 0.2


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_every_sample_ends(worlds, temperature):
    assert 0 <= legal_share(Decoder(worlds.tiny_model()), worlds.GRAMMAR, range(20), temperature) <= 1
