"""DINOv2 (arXiv:2304.07193): DINO on whole pictures, iBOT on hidden patches, which the student alone does not see, and KoLeo.

Student, teacher, heads and centres are one module, so that all of them are in a checkpoint. The paper's layer decay and the
smaller learning rate of its patch embedding are settings of the stage: `layer_decay` 0.9 or 1, `patch_rate` 0.2.

G = 2 global views, L local ones, B pictures, N patches, M hidden patches of the batch, K prototypes.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from worldloom.stages.augment import multi_crop
from worldloom.stages.encoder_learner import MASK_VIEW, EncoderLearner, Recipe, spread_apart, targets_of, view_like
from worldloom.stages.encoder_settings import Dinov2
from worldloom.stages.learner import Turn
from worldloom.stages.order import draws, order, uniform
from worldloom.stages.picture_batches import Pictures
from worldloom.world_model.encoders.dino import Centre, DinoHead, cosine_schedule, dino_loss, entropy, follow, linear_schedule
from worldloom.world_model.encoders.ibot import blocks, ibot_loss
from worldloom.world_model.encoders.vit import ViT

MASKED_ORDER = 1 << 41  # stands where an order has its epoch


class Said(NamedTuple):
    """Logits of a network."""

    pictures: Tensor  # [views, B, K]
    patches: Tensor  # [M, K]
    pooled: Tensor  # [G, B, D], of the global views, before the head


class Dinov2Pair(nn.Module):
    """Student and teacher, each an encoder with one head for both losses or two."""

    def __init__(self, encoder: ViT, about: Dinov2, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = DinoHead(encoder.width, about.prototypes, about.hidden, about.bottleneck, generator)
        own = about.patch_prototypes
        self.patch_head = None if own is None else DinoHead(encoder.width, own, about.hidden, about.bottleneck, generator)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.teacher_patch_head = None if self.patch_head is None else copy.deepcopy(self.patch_head).requires_grad_(False)
        self.centre = Centre(about.prototypes, about.centre_momentum)
        self.patch_centre = Centre(own or about.prototypes, about.centre_momentum)

    def forward(self, wide: Tensor, narrow: Tensor | None, hidden: Tensor, freeze_last: bool) -> Said:
        """The student's of views [G B, ...] with `hidden` patches, bool [G B, N], and of local views [L B, ...]."""
        seen = self.encoder.several([wide], [hidden]) if narrow is None else self.encoder.several([wide, narrow], [hidden, None])
        return _said(self.head, self.patch_head, [each.pooled for each in seen], seen[0].tokens[hidden], len(wide) // 2, freeze_last)

    @torch.no_grad()
    def told(self, wide: Tensor, hidden: Tensor) -> Said:
        """The teacher's, which sees all."""
        seen = self.teacher(wide)
        return _said(self.teacher_head, self.teacher_patch_head, [seen.pooled], seen.tokens[hidden], len(wide) // 2)

    def follow(self, momentum: float) -> None:
        """Moves the teacher towards the student."""
        follow(self.teacher, self.encoder, momentum)
        follow(self.teacher_head, self.head, momentum)
        if self.teacher_patch_head is not None and self.patch_head is not None:
            follow(self.teacher_patch_head, self.patch_head, momentum)


def _said(head: DinoHead, patch_head: DinoHead | None, pooled: list[Tensor], patches: Tensor, B: int, freeze_last: bool = False) -> Said:
    rows = torch.cat(pooled)
    if patch_head is None:  # one head for both: one product
        both = head(torch.cat([rows, patches]), freeze_last)
        pictures, of_patches = both[: len(rows)], both[len(rows) :]
    else:
        pictures, of_patches = head(rows, freeze_last), patch_head(patches, freeze_last)
    return Said(pictures.view(-1, B, pictures.shape[-1]), of_patches, pooled[0].view(-1, B, pooled[0].shape[-1]))


class Dinov2Learner(EncoderLearner):
    """Agreement between views, hidden patches, and features apart; the teacher follows behind the optimizer's step."""

    def __init__(self, encoder: ViT, about: Dinov2, side: int, batch_size: int, recipe: Recipe) -> None:
        """`batch_size` is that of all ranks: of so many pictures a fixed number have hidden patches."""
        self.encoder, self.about, self.recipe, self.batch_size = encoder, about, recipe, batch_size
        self.module = self.pair = Dinov2Pair(encoder, about, torch.Generator().manual_seed(recipe.seed + 1))
        local = about.local_size or max(side // 2, 8)
        self.views = multi_crop(side, local, about.local_views, about.global_from, about.local_from, view_like(about.looks))
        self.grid = encoder.patches.grid(side, side)
        self.players = (recipe.player(self.module),)

    @property
    def judged(self) -> ViT:
        return self.pair.teacher

    def turns(self, batch: Pictures, step: int) -> Iterator[Turn]:
        about, steps, pair = self.about, self.recipe.steps, self.pair
        pair.train()
        self.judged.eval()
        views = self.recipe.views(batch, self.views, self.device)
        wide, narrow = torch.cat(views[:2]), torch.cat(views[2:]) if len(views) > 2 else None
        hidden = self.hidden(batch, step).to(self.device)
        with self.recipe.autocast(wide):
            told = pair.told(wide, hidden)
            said = pair(wide, narrow, hidden, step < about.frozen * steps)
        temperature = linear_schedule(about.temperature, about.last_temperature, step, round(about.warm_up * steps))
        pictures = targets_of(told.pictures, pair.centre, temperature, about.centring)
        patches = targets_of(told.patches, pair.patch_centre, temperature, about.centring)
        momentum = cosine_schedule(about.momentum, 1.0, step, steps)
        losses = {
            "agreement": dino_loss(said.pictures, pictures),
            "hidden_patches": about.patches * ibot_loss(said.patches, patches, hidden),
        }
        if about.koleo:
            losses["koleo"] = about.koleo * spread_apart(said.pooled)
        yield Turn("encoder", losses, {"teacher_entropy": entropy(pictures), "momentum": momentum}, {"pictures": len(batch.sample)})
        if about.centring == "mean":
            pair.centre.update(told.pictures)
            pair.patch_centre.update(told.patches)
        pair.follow(momentum)

    def hidden(self, batch: Pictures, step: int) -> Tensor:
        """bool [G B, N]: of the global batch's views a share have hidden patches, and of those each a part of its own size.

        Which they are is a function of the step and the place in the global batch, so that it is the same for any number of ranks.
        """
        about, views = self.about, 2 * self.batch_size
        masked = round(views * about.masked)
        masks = torch.zeros(2, len(batch.place), *self.grid, dtype=torch.bool)
        for view in range(2):
            rank = order(self.recipe.seed, MASKED_ORDER + step, batch.place + view * self.batch_size, views)
            key = (self.recipe.seed, batch.epoch, batch.sample, MASK_VIEW + view, batch.again)
            parts = about.hidden_from + (about.hidden_to - about.hidden_from) * (rank + uniform(*key, 0)) / max(masked, 1)
            seeds = draws(*key, 1)
            for row in np.flatnonzero(rank < masked).tolist():
                count = int(parts[row] * self.grid[0] * self.grid[1])
                masks[view, row] = blocks(self.grid, count, torch.Generator().manual_seed(int(seeds[row] >> np.uint64(1))))
        return masks.flatten(2).flatten(0, 1)
