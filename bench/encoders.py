"""Encoders beside transformers' at its best, and beside open_clip's design of CoCa: forward passes and training steps, in bfloat16.

All contestants of a race take turns in one process, on the same pictures; the peer's value is its best setting's (eager or compiled).
`floor` in a peer's name is the bare products of exactly that work: no implementation on this machine can be faster than it.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import captions
from bench.coca_peer import CocaPeer
from bench.dinov2_peer import Dinov2Peer
from bench.figure import Figure, at_least, seconds_of
from bench.llama_peer import can_compile
from worldloom.stages.dinov2_learner import Dinov2Pair
from worldloom.stages.encoder_settings import Dinov2
from worldloom.world_model.encoders.build import build_coca, build_encoder
from worldloom.world_model.encoders.dino import dino_loss
from worldloom.world_model.encoders.ibot import hide_blocks, ibot_loss
from worldloom.world_model.encoders.koleo import koleo
from worldloom.world_model.encoders.settings import SwinSettings, TextSideSettings, VitSettings

ROUNDS = 5
SIDE, BATCH = 224, 4
Step = Callable[[], object]


def figures() -> Iterator[Figure]:
    """ViT-S/16 and Swin-T at 224 pixels, CoCa of 15 M parameters at 64, DINO with hidden patches at 96 and 48; captions."""
    yield from _vit()
    yield from _swin()
    yield from _coca()
    yield from _dinov2()
    yield from captions.figures()


def _vit() -> Iterator[Figure]:
    from transformers import ViTConfig, ViTModel

    about = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, attn_implementation="sdpa")
    peers: dict[str, nn.Module] = {"transformers": ViTModel(about, add_pooling_layer=False), **_timm("vit_small_patch16_224")}
    yield from _race("vit_s", build_encoder(VitSettings(), torch.Generator().manual_seed(0)), peers, (1.4, 1.5))
    yield _floor()


def _swin() -> Iterator[Figure]:
    from transformers import SwinConfig, SwinModel

    about = SwinConfig(drop_path_rate=0.0)
    peers: dict[str, nn.Module] = {"transformers": SwinModel(about, add_pooling_layer=False), **_timm("swin_tiny_patch4_window7_224")}
    yield from _race("swin_t", build_encoder(SwinSettings(), torch.Generator().manual_seed(0)), peers, (1.8, 1.6))


def _race(name: str, ours: nn.Module, peers: dict[str, nn.Module], goals: tuple[float, float]) -> Iterator[Figure]:
    """Forward in evaluation, then a step of training: forward, backward, AdamW on float32 masters."""
    x = torch.randn((BATCH, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).bfloat16()
    models = {"ours": ours, **peers} | {f"{peer}, compiled": _compiled(model) for peer, model in peers.items() if can_compile()}
    if not can_compile():
        sys.stderr.write(f"encoders.{name}: compiled peers are left out, there is no C++ compiler for torch.compile\n")

    def forward(model: nn.Module) -> Step:
        model.eval().bfloat16()

        def run() -> None:
            with torch.inference_mode():
                model(x)

        return run

    yield _best(f"encoders.{name}_forward", seconds_of({peer: forward(model) for peer, model in models.items()}, ROUNDS), goals[0])
    steps = {peer: training_step(model.train(), lambda model=model: _square(model(x))) for peer, model in models.items()}
    yield _best(f"encoders.{name}_step", seconds_of(steps, ROUNDS), goals[1])


def _best(figure: str, taken: dict[str, float], goal: float, batch: int = BATCH) -> Figure:
    peer = min((name for name in taken if name != "ours"), key=taken.__getitem__)
    return at_least(figure, batch / taken["ours"], "pictures/s", f"{peer}, bf16", batch / taken[peer], goal)


def _floor() -> Figure:
    """How far the peer could be beaten at all: ViT-S/16's own products, one behind the other."""
    from transformers import ViTConfig, ViTModel

    about = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, attn_implementation="sdpa")
    peer = ViTModel(about, add_pooling_layer=False).eval().bfloat16()
    pixels, rows = torch.randn(BATCH, 3, SIDE, SIDE).bfloat16(), torch.randn(BATCH * 197, 384).bfloat16()
    wide, heads = torch.randn(BATCH * 197, 1536).bfloat16(), torch.randn(BATCH, 6, 197, 64).bfloat16()
    weights = [torch.randn(n, 384).bfloat16() for n in (1152, 384, 1536)]
    down = torch.randn(384, 1536).bfloat16()

    def bare() -> None:
        for _ in range(12):
            for weight in weights:
                F.linear(rows, weight)
            F.linear(wide, down)
            (heads @ heads.mT) @ heads

    def whole() -> None:
        peer(pixels)

    with torch.inference_mode():
        taken = seconds_of({"bare": bare, "peer": whole}, ROUNDS)
    return at_least("encoders.vit_s_floor", BATCH / taken["bare"], "pictures/s", "transformers, bf16", BATCH / taken["peer"], 1.4)


def _square(out: Any) -> Tensor:
    """A loss of whatever an encoder gives."""
    tokens = out if isinstance(out, Tensor) else out.tokens if hasattr(out, "tokens") else out.last_hidden_state
    return tokens.float().square().mean()


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """One update: bf16 weights and gradients, float32 masters, torch's fused AdamW."""
    weights = [each for each in model.parameters() if each.requires_grad]
    masters = [each.detach().float().clone() for each in weights]
    optimizer = torch.optim.AdamW(masters, lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()  # type: ignore[no-untyped-call]
        for master, weight in zip(masters, weights, strict=True):
            master.grad, weight.grad = None if weight.grad is None else weight.grad.float(), None
        optimizer.step()
        torch._foreach_copy_([weight.data for weight in weights], masters)

    return step


def _compiled(model: nn.Module) -> nn.Module:
    """A copy of its own, because compiling the shared one would compile the eager contestant."""
    import copy

    made: nn.Module = torch.compile(copy.deepcopy(model))  # type: ignore[assignment]
    return made


def _timm(name: str) -> dict[str, nn.Module]:
    """timm's model of that name, where timm is installed."""
    try:
        import timm
    except ModuleNotFoundError:
        return {}
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    return {"timm": model}


def _coca() -> Iterator[Figure]:
    """15 M parameters, pictures of 64 pixels, captions of 32 tokens: what open_clip's CoCa does at the same sizes."""
    generator = torch.Generator().manual_seed(0)
    vit = VitSettings(patch=8, width=384, depth=4, heads=6, grid=(8, 8), class_token=False, pooling="mean")
    text = TextSideSettings(width=256, depth=6, heads=4, length=32, queries=32)
    ours, peer = build_coca(build_encoder(vit, generator), text, 1_024, generator), CocaPeer()
    sizes = {name: sum(each.numel() for each in model.parameters()) for name, model in (("ours", ours), ("peer", peer))}
    sys.stderr.write(f"encoders.coca: {sizes['ours']:,} parameters, the peer's {sizes['peer']:,}\n")
    B = 32
    x, ids = torch.randn((B, 3, 64, 64), generator=generator).bfloat16(), torch.randint(4, 1_024, (B, 32), generator=generator)
    present = torch.ones_like(ids, dtype=torch.bool)
    models: dict[str, nn.Module] = {"ours": ours.bfloat16(), "open_clip's design": peer.bfloat16()}
    encode: dict[str, Step] = {"ours": lambda: ours.encode(x).pooled, "open_clip's design": lambda: peer.encode(x)}
    losses: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: (lambda made: made.contrastive + 2 * made.caption)(ours(x, ids, present)),
        "open_clip's design": lambda: peer.loss(x, ids),
    }
    if can_compile():
        compiled = CocaPeer().bfloat16()
        encoding, losing = torch.compile(compiled.encode), torch.compile(compiled.loss)
        models["open_clip's design, compiled"] = compiled
        encode["open_clip's design, compiled"] = lambda: encoding(x)
        losses["open_clip's design, compiled"] = lambda: losing(x, ids)
    with torch.inference_mode():
        yield _best("encoders.coca_encode", seconds_of(encode, ROUNDS), 1.5, B)
    steps = {name: training_step(model, losses[name]) for name, model in models.items()}
    yield _best("encoders.coca_step", seconds_of(steps, ROUNDS), 2.0, B)


def _dinov2() -> Iterator[Figure]:
    """ViT-S, patches of 8, two views of 96 and four of 48 pixels, stochastic depth of 0.3, one head of 4,096 prototypes: under autocast, as
    the product trains, and as the plain contestant does."""
    B, K = 8, 4_096
    generator = torch.Generator().manual_seed(0)
    form = VitSettings(patch=8, depth=6, grid=(12, 12), mask_token=True, layer_scale=1e-5, drop_path=0.3, subset=True)
    about = Dinov2(prototypes=K, hidden=1_024, bottleneck=256)
    pair, peer = Dinov2Pair(build_encoder(form, generator), about, generator), Dinov2Peer(K, about)
    wide = torch.randn((2 * B, 3, 96, 96), generator=generator)
    narrow = torch.randn((4 * B, 3, 48, 48), generator=generator)
    hidden = hide_blocks(2 * B, (12, 12), generator)

    def ours() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            told, said = pair.told(wide, hidden), pair(wide, narrow, hidden, False)
        targets, patches = pair.centre(told.pictures, 0.04), pair.patch_centre(told.patches, 0.04)
        loss = dino_loss(said.pictures, targets) + ibot_loss(said.patches, patches, hidden)
        for view in said.pooled:
            loss = loss + 0.1 * koleo(view)
        pair.centre.update(told.pictures)
        pair.patch_centre.update(told.patches)
        pair.follow(0.996)
        return loss

    def step(module: nn.Module, loss: Callable[[], Tensor]) -> Step:
        optimizer = torch.optim.AdamW([each for each in module.parameters() if each.requires_grad], lr=1e-4, fused=True)

        def run() -> None:
            loss().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

        return run

    pair.train()
    pair.teacher.eval()
    contestants = {"ours": step(pair, ours), "around transformers' Dinov2Model": step(peer, lambda: peer.loss(wide, narrow, hidden))}
    yield _best("encoders.dinov2_step", seconds_of(contestants, ROUNDS), 2.0, B)
