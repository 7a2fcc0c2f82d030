"""DINO with hidden patches around transformers' Dinov2Model, written plainly: a forward pass for each size of view, all samples through all
residual branches, heads on every patch, log-softmax of all logits."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.stages.encoder_settings import Dinov2


class Head(nn.Module):
    """An MLP to a bottleneck and a weight-normed output."""

    def __init__(self, width: int, prototypes: int, about: Dinov2) -> None:
        super().__init__()
        hidden = about.hidden
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, about.bottleneck)
        )
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(about.bottleneck, prototypes, bias=False))
        self.last.parametrizations.weight.original0.data.fill_(1)  # type: ignore[union-attr]
        self.last.parametrizations.weight.original0.requires_grad_(False)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.normalize(self.mlp(x), dim=-1))
        return out


class Dinov2Peer(nn.Module):
    """Student and teacher."""

    def __init__(self, prototypes: int, about: Dinov2) -> None:
        super().__init__()
        from transformers import Dinov2Config, Dinov2Model

        form = Dinov2Config(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=6,
            image_size=96,
            patch_size=8,
            drop_path_rate=0.3,
            layerscale_value=1e-5,
            attn_implementation="sdpa",
        )
        self.student, self.head = Dinov2Model(form).train(), Head(384, prototypes, about)
        self.teacher = Dinov2Model(form).eval().requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("patch_centre", torch.zeros(prototypes))

    def loss(self, wide: Tensor, narrow: Tensor, hidden: Tensor) -> Tensor:
        B = len(wide) // 2
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                seen = self.teacher(wide).last_hidden_state
                told, told_patches = self.teacher_head(seen[:, 0]).float(), self.teacher_head(seen[:, 1:]).float()
            large = self.student(wide, bool_masked_pos=hidden).last_hidden_state
            small = self.student(narrow).last_hidden_state
            said, patches = self.head(torch.cat([large[:, 0], small[:, 0]])).float(), self.head(large[:, 1:]).float()
        targets, views = ((told - self.centre) / 0.04).softmax(-1).chunk(2), (said / 0.1).log_softmax(-1).split(B)
        terms = [-(target * view).sum(-1).mean() for g, target in enumerate(targets) for s, view in enumerate(views) if s != g]
        of_patches = -(((told_patches - self.patch_centre) / 0.04).softmax(-1) * (patches / 0.1).log_softmax(-1)).sum(-1)
        masked = (of_patches * hidden).sum(1) / hidden.sum(1).clamp(min=1)
        loss = torch.stack(terms).mean() + masked.mean()
        for view in large[:, 0].float().chunk(2):
            unit = F.normalize(view, dim=-1)
            near = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
            loss = loss - 0.1 * torch.log(F.pairwise_distance(unit, unit[near]) + 1e-8).mean()
        with torch.no_grad():
            self.centre.mul_(0.9).add_(told.mean(0), alpha=0.1)
            self.patch_centre.mul_(0.9).add_(told_patches[hidden].mean(0), alpha=0.1)
            for teacher, student in ((self.teacher, self.student), (self.teacher_head, self.head)):
                for mine, its in zip(teacher.parameters(), student.parameters(), strict=True):
                    mine.mul_(0.996).add_(its.detach(), alpha=0.004)
        return loss
