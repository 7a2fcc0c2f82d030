"""Two ranks with half a batch each step as one rank does with the whole: losses, gradients, centres, of DINOv2 and CoCa."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloom.stages.coca_learner import CocaLearner
from worldloom.stages.dataset import Ragged
from worldloom.stages.dinov2_learner import Dinov2Learner
from worldloom.stages.encoder_learner import DinoLearner, EncoderLearner, Recipe
from worldloom.stages.encoder_settings import Coca, Dino, Dinov2
from worldloom.stages.picture_batches import Pictures
from worldloom.tokenizers.text import BOS, EOS
from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.ranks import sum_over_ranks
from worldloom.world_model.encoders.settings import TextSideSettings, VitSettings

B = 4


class Pieces:
    """A tokenizer, as far as the learner asks."""

    codebook_size = 9


def learners() -> dict[str, EncoderLearner]:
    recipe = Recipe(5, 3, 1e-3, (0.9, 0.95), 0.0, "fp32")
    about = VitSettings(patch=4, width=16, depth=1, heads=2, grid=(4, 4), mask_token=True)

    def encoder() -> Any:
        return build_encoder(about, torch.Generator().manual_seed(0))

    small: dict[str, Any] = {"prototypes": 11, "hidden": 12, "bottleneck": 6, "local_views": 1, "koleo": 0.0}
    rows = [[BOS, *range(4, 5 + n), EOS] for n in range(B)]
    captions = Ragged(np.concatenate([np.array(row, np.int32) for row in rows]), np.cumsum([0, *map(len, rows)]))
    coca = Coca(captions="words", tokenizer="codes", text=TextSideSettings(width=8, depth=2, heads=2, length=9, queries=3))
    return {
        "mean": Dinov2Learner(encoder(), Dinov2(**small, hidden_from=0.3), 16, B, recipe),
        "sinkhorn": Dinov2Learner(encoder(), Dinov2(**small, hidden_from=0.3, centring="sinkhorn"), 16, B, recipe),
        "dino": DinoLearner(encoder(), Dino(**small, centring="sinkhorn"), 16, recipe),
        "coca": CocaLearner(encoder(), coca, Pieces(), captions, 16, recipe),  # type: ignore[arg-type]
    }


def results(rank: int, ranks: int) -> dict[str, Tensor]:
    mine = np.array_split(np.arange(B), ranks)[rank]
    pictures = np.random.default_rng(0).integers(0, 256, (B, 16, 16, 3), dtype=np.uint8)[mine]
    batch = Pictures(pictures, mine * 0, mine, None, mine * 0, mine)
    found: dict[str, Tensor] = {}
    for name, learner in learners().items():
        for step in range(2):
            learner.module.zero_grad()
            for turn in learner.turns(batch, step):
                sum(turn.losses.values(), start=torch.zeros(())).backward()  # type: ignore[no-untyped-call]
                found |= {f"{name} {loss} {step}": sum_over_ranks(value) / ranks for loss, value in turn.losses.items()}
            for parameter in learner.module.parameters():
                if parameter.grad is not None:
                    parameter.grad = sum_over_ranks(parameter.grad) / ranks
            found |= {
                f"{name} {each} {step}": parameter.grad
                for each, parameter in learner.module.named_parameters()
                if parameter.grad is not None
            }
        found |= {f"{name} {each}": value.clone() for each, value in learner.module.named_buffers()}
    return found


def test_two_ranks_equal_one(of_two_ranks: Callable[..., list[dict[str, Tensor]]]) -> None:
    alone = results(0, 1)
    assert float(alone["mean patch_centre.value"].abs().sum()) > 0 and len(alone) > 100
    for together in of_two_ranks(results):
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            near = 1e-5 * max(1.0, float(value.abs().max()))  # sums of many float32 differ by a rounding of the largest
            torch.testing.assert_close(
                together[name].double(), value.double(), rtol=1e-5, atol=near, msg=lambda text, name=name: f"{name}: {text}"
            )
