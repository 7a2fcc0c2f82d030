"""VQ-GANs of one network and one set of weights, by worldloom and by plain torch as users of taming-transformers run it: encoding pictures,
and a training step with its discriminator. The floor is the same convolutions and products alone."""

import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config as dynamo
import torch._functorch.config as functorch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.figure import Figure, at_least, at_most, seconds_of
from bench.taming_reference import Attention, Residual, TamingModel
from bench.taming_training import STAGES, Discriminator, Lpips, TamingTraining
from worldloom.stages.deepspeed_engine import Engine, gather_gang
from worldloom.stages.tokenizer_learner import VqGanLearner
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Worker
from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
from worldloom.tokenizers.image_settings import VqGan
from worldloom.tokenizers.perceptual import lpips_perceptual
from worldloom.tokenizers.taming import architecture, put_weights

NETWORK: dict[str, Any] = {
    "ch": 64, "ch_mult": (1, 1, 2, 4), "num_res_blocks": 2, "attn": (False, False, False, True),
    "z_channels": 256, "embed_dim": 256, "n_embed": 1024,
}  # fmt: skip
WIDTHS = (64, 128, 256, 512, 512)  # of VGG16
Goals = tuple[float, float, float]  # over the peer's best setting, over it as shipped, and over the floor

ENCODE: dict[int, tuple[int, int, Goals]] = {64: (32, 5, (1.4, 6.0, 0.43)), 128: (16, 3, (1.5, 6.0, 0.48))}  # pixels: pictures, rounds
STEP: dict[int, tuple[int, int, Goals]] = {64: (8, 3, (2.2, 4.5, 0.47)), 128: (2, 3, (3.2, 13.0, 0.45))}


def figures() -> Iterator[Figure]:
    if not compiles():
        sys.stderr.write("there is no C++ compiler (g++, or what CXX names): the peer's compiled setting is left out\n")
    for size, (batch, rounds, goals) in ENCODE.items():
        yield from _encode(size, batch, rounds, goals)
    for size, (batch, rounds, goals) in STEP.items():
        yield from _step(size, batch, rounds, goals)


@lru_cache(maxsize=1)
def compiles() -> bool:
    """Whether torch.compile finds a C++ compiler."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _encode(size: int, batch: int, rounds: int, goals: Goals) -> Iterator[Figure]:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (batch, size, size, 3), generator=generator, dtype=torch.uint8)
    x = pictures.permute(0, 3, 1, 2).contiguous() / 127.5 - 1
    plain = reference(x)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x_last = x.contiguous(memory_format=torch.channels_last)
    weights = plain.state_dict()
    settings = architecture(weights).model_copy(update={"precision": "bf16"})
    autoencoder = build_autoencoder(settings, seed=0)
    put_weights(autoencoder, settings, weights)
    tokenizer = ImageTokenizer(autoencoder.eval().requires_grad_(False), settings, size, size)
    peers = {
        "shipped": lambda: plain.encode(x),
        "bf16": _bf16(lambda: plain.encode(x)),
        "bf16, channels_last": _bf16(lambda: last.encode(x_last)),
    }
    if compiles():
        compiled = torch.compile(last.encode, dynamic=False)
        peers["bf16, channels_last, compiled"] = _bf16(lambda: compiled(x_last))
    work = {name: torch.inference_mode()(each) for name, each in peers.items()}
    with torch.no_grad():  # in inference mode torch hands on convolutions under another name
        floor = Products.of(lambda: [autoencoder.encode(part) for part in x.split(tokenizer.batch)])
    yield from _race(f"vqgan_encode_{size}", batch, rounds, goals, work, lambda: tokenizer.encode(pictures), floor)
    same = float((torch.from_numpy(tokenizer.encode(pictures)) == work["shipped"]()).double().mean())
    peer = float((work["bf16, channels_last"]() == work["shipped"]()).double().mean())
    yield at_least(f"tokenizers.vqgan_codes_{size}", same, "of the codes of float32", "bf16, channels_last", peer, 0.98)


def _step(size: int, batch: int, rounds: int, goals: Goals) -> Iterator[Figure]:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (batch, size, size, 3), generator=generator, dtype=torch.uint8)
    x = pictures.permute(0, 3, 1, 2).contiguous() / 127.5 - 1
    x_last = x.contiguous(memory_format=torch.channels_last)
    model, judge = reference(x).requires_grad_(True), Discriminator(width=64, layers=3)
    vgg = _vgg(generator)
    # Retained graphs, which the adaptive weight needs, forbid a compiled backward pass to reuse what it was given.
    functorch.donated_buffer, dynamo.recompile_limit = False, 64
    plain, last, compiled = (
        TamingTraining(*(copy.deepcopy(module).to(memory_format=form) for module in (model, Lpips(vgg), judge)))
        for form in (torch.contiguous_format, torch.channels_last, torch.channels_last)
    )
    peers: dict[str, Callable[[], object]] = {
        "shipped": lambda: plain.step(x),
        "bf16": lambda: plain.step(x, torch.bfloat16),
        "bf16, channels_last": lambda: last.step(x_last, torch.bfloat16),
    }
    if compiles():
        # By blocks: compiled whole, the decoder would go backward in full for each of the adaptive weight's two gradients.
        for module in compiled.model.modules():
            if isinstance(module, Residual | Attention):
                module.compile(dynamic=False)
        compiled.discriminator.compile(dynamic=False)
        compiled.perceptual.compile(dynamic=False)  # type: ignore[attr-defined]
        peers["bf16, channels_last, compiled"] = lambda: compiled.step(x_last, torch.bfloat16)
    learner = _learner(model, judge, vgg, size)
    gather_gang(Worker())
    training = TrainingSettings(run="bench", steps=1 << 20, schedule="constant", warmup=0)
    engines = {player.name: Engine(player, training, Worker()) for player in learner.players}

    def ours() -> None:
        for turn in learner.turns(pictures.numpy(), 1):
            engines[turn.player].backward(torch.stack(list(turn.losses.values())).sum())
            engines[turn.player].step(1.0)

    floor = Products.of(ours)
    yield from _race(f"vqgan_step_{size}", batch, rounds, goals, peers, ours, floor)
    yield at_most(f"tokenizers.vqgan_step_operations_{size}", _operations(ours), "FLOP", "least", _least(learner, x), 1.02)


def _race(
    name: str,
    batch: int,
    rounds: int,
    goals: Goals,
    peers: dict[str, Callable[[], object]],
    ours: Callable[[], object],
    floor: "Products",
) -> Iterator[Figure]:
    taken = seconds_of({**peers, "ours": ours, "floor": floor.replay}, rounds)
    rate = {contestant: batch / seconds for contestant, seconds in taken.items()}
    best = max(peers, key=lambda peer: rate[peer])
    for what, peer, goal in zip(("", "_shipped", "_floor"), (best, "shipped", "floor"), goals, strict=True):
        said = "bare convolutions and products" if peer == "floor" else f"taming's way, {peer}"
        yield at_least(f"tokenizers.{name}{what}", rate["ours"], "images/s", said, rate[peer], goal)


class Products(TorchDispatchMode):
    """Keeps the convolutions and products of a piece of work, with their inputs, to do them again and nothing else; counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []
        self.flops = 0

    @classmethod
    def of(cls, work: Callable[[], object]) -> "Products":
        mode = cls()
        with mode:
            work()
        return mode

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function.overloadpacket in flop_registry:
            self.calls.append((function, args, kwargs or {}))
            self.flops += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=made)
        return made

    def replay(self) -> None:
        with torch.inference_mode():
            for function, args, kwargs in self.calls:
                function(*args, **kwargs)


def reference(x: Tensor) -> TamingModel:
    """The peer with random weights, its codes being features of pictures, so that all are near to some code."""
    torch.manual_seed(0)
    model = TamingModel(**NETWORK).eval().requires_grad_(False)
    found = model.features(torch.rand((16, *x.shape[1:])) * 2 - 1).movedim(1, -1).flatten(0, -2)
    model.quantize.embedding.weight.copy_(found[torch.randperm(len(found))[: NETWORK["n_embed"]]])
    return model


def _bf16(work: Callable[[], object]) -> Callable[[], object]:
    def cast() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return work()

    return cast


def _vgg(generator: torch.Generator) -> dict[str, Tensor]:
    """Random weights where those of LPIPS would be."""
    weights: dict[str, Tensor] = {}
    before = 3
    for index, (width, places) in enumerate(zip(WIDTHS, STAGES, strict=True)):
        for place in places:
            weights[f"features.{place}.weight"] = torch.randn((width, before, 3, 3), generator=generator) * (2 / (9 * before)) ** 0.5
            weights[f"features.{place}.bias"] = torch.zeros(width)
            before = width
        weights[f"lin{index}.model.1.weight"] = torch.full((1, width, 1, 1), 1 / width)
    return weights


def _learner(model: nn.Module, judge: nn.Module, vgg: dict[str, Tensor], size: int) -> VqGanLearner:
    about = architecture(model.state_dict())
    tokenizer = ImageTokenizer.build(about, {"height": size, "width": size}, seed=0)
    put_weights(tokenizer.autoencoder, about, model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        save_file(vgg, Path(folder) / "vgg.safetensors")
        lpips = lpips_perceptual(Path(folder) / "vgg.safetensors")
        settings = VqGan(
            adversarial_weight=0.8, adversarial_from=0.0, adversarial_ramp=0.0,
            discriminator_width=64, discriminator_layers=3, discriminator_learning_rate=1e-5,
        )  # fmt: skip
        learner = VqGanLearner(tokenizer, settings, 1 << 20, 1e-5, (0.5, 0.9), 0.0, 0, "bf16", lpips)
    assert learner.discriminator is not None
    for parameter, other in zip(learner.discriminator.parameters(), judge.parameters(), strict=True):
        parameter.data.copy_(other.data)
    return learner


def _operations(work: Callable[[], object]) -> float:
    return float(Products.of(work).flops)


def _least(learner: VqGanLearner, x: Tensor) -> float:
    """What one step cannot do without, a backward pass being twice the forward pass, or once that where weights are frozen.

    The autoencoder forward and backward; the perceptual network over both pictures, and back to the made one; the discriminator over both
    pictures, back from both, and back to the made picture for the autoencoder.
    """
    assert learner.perceptual is not None and learner.discriminator is not None
    with torch.no_grad():
        autoencoder = _operations(lambda: learner.autoencoder.decoder(learner.autoencoder.encoder(x)))
        lookup = _operations(lambda: learner.autoencoder.quantizer.encode(learner.autoencoder.encoder(x)))
        lookup -= _operations(lambda: learner.autoencoder.encoder(x))
        perceptual = _operations(lambda: learner.perceptual.features(x))
        discriminator = _operations(lambda: learner.discriminator(x))
    return 3 * autoencoder + lookup + 3 * perceptual + 7 * discriminator
