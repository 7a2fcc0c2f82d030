"""Quality of pictures: worldloom's training of a VQ-GAN beside a plain one of the same network, for as many seconds on the same cores.

The contestants take turns of a few seconds, each counting only its own, so that what else the machine does hits them alike. Two plain ones
run, with the learning rate of taming-transformers' rule and with ours; the better one counts. Two kinds of pictures: the shapes world, and
hand-drawn characters, which are all PNG files below the folder that PICTURES names, or, without it, strokes that are made up here.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from bench.figure import Figure, at_least
from bench.taming_reference import VectorQuantizer
from worldloom.stages import shapes
from worldloom.stages.code_figures import CodeUse, use_of
from worldloom.stages.deepspeed_engine import Engine, gather_gang
from worldloom.stages.make_shapes import MakeShapes, Shard, _imagined
from worldloom.stages.tokenizer_learner import VqGanLearner
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.training import learning_rate_share
from worldloom.stages.worker import Worker
from worldloom.tokenizers.discriminator import PatchDiscriminator
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.image_settings import VqGan
from worldloom.tokenizers.measures import psnr
from worldloom.tokenizers.perceptual import random_perceptual
from worldloom.tokenizers.pixels import from_signed, to_signed
from worldloom.tokenizers.vqgan import adaptive_weight, generator_loss, hinge

SECONDS, SLICE = 110.0, 5.0  # of training each, and of a turn
SIDE, CODES, BATCH = 64, 1024, 32
TRAINED, HELD_OUT = 16_000, 512  # pictures; of a folder every fifth is held out
COMPARED = (25, 50, 100, 150, 200, 300, 400, 600, 800)  # steps after which both are measured
PLAIN_RATE = 4.5e-6 * BATCH  # taming-transformers' rule
DISCRIMINATOR_FROM = 0.8  # share of the time, for both
# Ours: the defaults, with codes that are to be used evenly. The steps only stretch the schedules, which follow the time here.
EVEN = {
    "restart_at": "crowds",
    "dead_below": 0.6,
    "decay": 0.95,
    "restart_every": 2,
    "place_after": 10,
    "entropy_weight": 0.02,
    "entropy_temperature": 0.3,
}
SETTINGS = TrainTokenizer.model_validate(
    {
        "run": "train_tokenizer",
        "data": "pictures",
        "stream": "frame",
        "tokenizer": {
            "type": "vqgan",
            "codebook_size": CODES,
            "downsample": 8,
            "patch": 4,
            "mixing": 1,
            "adversarial_from": DISCRIMINATOR_FROM,
            "quantizer": {"type": "ema", **EVEN},
        },
        "steps": 1000,
        "batch_size": BATCH,
    }
)


class Measured(NamedTuple):
    """Of the held-out pictures."""

    psnr: float  # dB, mean over pictures
    use: CodeUse


class Contestant(Protocol):
    """A training that goes one step at a time."""

    def step(self, pictures: NDArray[np.uint8], progress: float) -> None:
        """One batch, uint8 [B, S, S, 3]; `progress` is the share of the time that is over."""
        ...

    def measure(self, pictures: NDArray[np.uint8]) -> Measured: ...


class Ours:
    """The product's learner and engine under its own settings; the schedules follow the time."""

    def __init__(self, settings: TrainTokenizer, threads: int) -> None:
        assert isinstance(settings.tokenizer, VqGan)
        worker = Worker(threads=threads)
        gather_gang(worker)
        about = settings.tokenizer.resolved(settings.steps)
        self.settings = settings
        self.tokenizer = ImageTokenizer.build(about, {"height": SIDE, "width": SIDE}, settings.seed)
        self.learner = VqGanLearner(
            self.tokenizer, about, settings.steps, settings.learning_rate, settings.betas, settings.weight_decay, settings.seed, "bf16"
        )
        self.engines = {player.name: Engine(player, settings, worker) for player in self.learner.players}

    def step(self, pictures: NDArray[np.uint8], progress: float) -> None:
        at = int(progress * self.settings.steps)
        for turn in self.learner.turns(pictures, at):
            engine = self.engines[turn.player]
            engine.backward(torch.stack(list(turn.losses.values())).sum())
            engine.step(learning_rate_share(self.settings, at))

    def measure(self, pictures: NDArray[np.uint8]) -> Measured:
        codes = self.tokenizer.encode(pictures)
        after = torch.from_numpy(self.tokenizer.decode(codes))
        return Measured(psnr(torch.from_numpy(pictures), after).mean().item(), use_of([codes], CODES))


class Plain:
    """As taming-transformers trains: float32, Adam of betas 0.5 and 0.9 at a constant rate, a codebook from U(-1/K, 1/K) learnt by
    gradient, adversarial weight 0.8; neither k-means nor restarts.

    Shared with ours: the network, the perceptual network, the start of the discriminator, and that one forward pass serves both turns.
    """

    def __init__(self, like: ImageTokenizer, learning_rate: float, seed: int) -> None:
        fresh = ImageTokenizer.build(like.settings, like.form, seed).autoencoder
        self.encoder, self.decoder = fresh.encoder, fresh.decoder
        self.last_weight = fresh.last_weight
        torch.manual_seed(seed)
        self.quantizer = VectorQuantizer(CODES, like.autoencoder.quantizer.in_width)
        self.discriminator = PatchDiscriminator(64, 3, torch.Generator().manual_seed(seed))
        self.perceptual = random_perceptual()
        generator = [*self.encoder.parameters(), *self.decoder.parameters(), *self.quantizer.parameters()]
        self.generator, self.judge = (
            torch.optim.Adam(parameters, lr=learning_rate, betas=(0.5, 0.9))
            for parameters in (generator, [*self.discriminator.parameters()])
        )

    def step(self, pictures: NDArray[np.uint8], progress: float) -> None:
        x = to_signed(torch.from_numpy(pictures))
        z, codebook_loss, _ = self.quantizer(self.encoder(x))
        xhat = self.decoder(z)
        nll = (x - xhat).abs().mean() + self.perceptual(x, xhat)
        loss = nll + codebook_loss
        if progress >= DISCRIMINATOR_FROM:
            adversarial = generator_loss(self.discriminator(xhat))
            asked = (torch.autograd.grad(each, xhat, retain_graph=True)[0] for each in (nll, adversarial))
            loss = loss + 0.8 * adaptive_weight(xhat, *asked, self.last_weight) * adversarial
        _update(self.generator, loss)
        if progress >= DISCRIMINATOR_FROM:
            _update(self.judge, hinge(self.discriminator(x), self.discriminator(xhat.detach())))

    @torch.inference_mode()
    def measure(self, pictures: NDArray[np.uint8]) -> Measured:
        chosen, ratios = [], []
        for part in np.array_split(pictures, max(1, len(pictures) // 16)):
            before = torch.from_numpy(part)
            z, _, codes = self.quantizer(self.encoder(to_signed(before)))
            ratios.append(psnr(before, from_signed(self.decoder(z))))
            chosen.append(codes.numpy())
        return Measured(torch.cat(ratios).mean().item(), use_of(chosen, CODES))


class Run(NamedTuple):
    """What became of a contestant."""

    steps: int
    last: Measured
    at: dict[int, Measured]  # after some numbers of steps


def race(contestants: dict[str, Contestant], pictures: NDArray[np.uint8], held_out: NDArray[np.uint8], seconds: float) -> dict[str, Run]:
    """Trains all for `seconds` each, in turns of SLICE; all see the same batches in the same order. Measuring is not counted."""
    spent, steps = dict.fromkeys(contestants, 0.0), dict.fromkeys(contestants, 0)
    at: dict[str, dict[int, Measured]] = {name: {} for name in contestants}
    while min(spent.values()) < seconds:
        for name, contestant in contestants.items():
            until = min(seconds, spent[name] + SLICE)
            while spent[name] < until:
                index = np.random.default_rng(steps[name]).integers(len(pictures), size=BATCH)
                start = time.perf_counter()
                contestant.step(pictures[index], spent[name] / seconds)
                spent[name] += time.perf_counter() - start
                steps[name] += 1
                if steps[name] in COMPARED:
                    at[name][steps[name]] = contestant.measure(held_out)
    return {name: Run(steps[name], contestant.measure(held_out), at[name]) for name, contestant in contestants.items()}


def figures() -> Iterator[Figure]:
    """Of both kinds of pictures. A ratio of decibels is their difference."""
    for kind, make in KINDS.items():
        pictures, held_out = make()
        runs = race(contestants(), pictures, held_out, SECONDS)
        ours = runs.pop("ours")
        plain, best = max(runs.items(), key=lambda run: run[1].last.psnr)
        peer = f"{plain}, {best.steps} steps beside {ours.steps}"
        yield _decibels(f"quality.{kind}.psnr", ours.last.psnr, peer, best.last.psnr, 3.0)
        yield at_least(f"quality.{kind}.perplexity", ours.last.use.perplexity, "codes", "all codes alike", float(CODES), 0.65)
        yield at_least(f"quality.{kind}.perplexity_beside_plain", ours.last.use.perplexity, "codes", peer, best.last.use.perplexity, 1.0)
        yield at_least(f"quality.{kind}.use", ours.last.use.share, "of the codes", peer, best.last.use.share, 1.0)
        yield from _at_equal_steps(kind, ours, runs)


def contestants() -> dict[str, Contestant]:
    """Ours, and two plain ones."""
    ours = Ours(SETTINGS, torch.get_num_threads())
    return {
        "ours": ours,
        "plain at its own rate": Plain(ours.tokenizer, PLAIN_RATE, SETTINGS.seed),
        "plain at our rate": Plain(ours.tokenizer, SETTINGS.learning_rate, SETTINGS.seed),
    }


def _at_equal_steps(kind: str, ours: Run, plain: dict[str, Run]) -> Iterator[Figure]:
    """Where ours is the least ahead of the better plain one, of all numbers of steps that were measured."""
    compared = {step: max(run.at[step].psnr for run in plain.values() if step in run.at) for step in ours.at if _all_have(step, plain)}
    if not compared:
        raise RuntimeError(f"this machine took fewer than {COMPARED[0]} steps in {SECONDS:.0f} s; measure when it has less else to do")
    step = min(compared, key=lambda step: ours.at[step].psnr - compared[step])
    yield _decibels(f"quality.{kind}.psnr_at_equal_steps", ours.at[step].psnr, f"plain, both after {step} steps", compared[step], 0.0)


def _all_have(step: int, runs: dict[str, Run]) -> bool:
    return all(step in run.at for run in runs.values())


def _decibels(figure: str, value: float, peer: str, peer_value: float, goal: float) -> Figure:
    return Figure(figure, value, "dB", peer, peer_value, value - peer_value, goal, value - peer_value >= goal)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def drawn_shapes() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures of the shapes world [N, S, S, 3]: some to train on, and some drawn anew."""
    settings = MakeShapes.model_validate({"run": "make_shapes", "streams": {"frame": {"kind": "image", "size": SIDE}}})
    train, held_out = (
        np.stack([shapes.draw(one.thing, SIDE) for one in _imagined(settings, Shard(split, "drawn", 0, count))])
        for split, count in (("train", TRAINED), ("validation", HELD_OUT))
    )
    return train, held_out


def characters() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Hand-drawn characters [N, S, S, 3], black on white: every fifth of the folder PICTURES is held out; without one, made-up strokes."""
    folder = os.environ.get("PICTURES")
    if folder is None:
        return _all_strokes(range(4 * HELD_OUT)), _all_strokes(range(4 * HELD_OUT, 5 * HELD_OUT))
    paths = sorted(Path(folder).rglob("*.png"))
    if len(paths) < 5:
        raise ValueError(
            f"PICTURES={folder}: there are {len(paths)} PNG files, at least 5 are needed; name another folder, or leave it out"
        )
    pictures = np.stack([_fitted(Image.open(path)) for path in paths])
    held_out = np.arange(len(pictures)) % 5 == 4
    return pictures[~held_out], pictures[held_out]


def _all_strokes(numbers: range) -> NDArray[np.uint8]:
    return np.stack([_fitted(strokes(np.random.default_rng((1, number)))) for number in numbers])


def strokes(generator: np.random.Generator) -> Image.Image:
    """One to four strokes of a pen: Bezier curves of four points that begin near one another."""
    image = Image.new("L", (105, 105), 255)
    pen = ImageDraw.Draw(image)
    start = generator.uniform(25, 80, 2)
    t = np.linspace(0, 1, 24)[:, None]
    for _ in range(generator.integers(1, 5)):
        a, b, c, d = start + generator.normal(0, 8, 2), *generator.uniform(12, 93, (3, 2))
        curve = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
        pen.line([tuple(point) for point in curve.tolist()], fill=0, width=2, joint="curve")
        start = curve[generator.integers(len(curve))]
    return image


def _fitted(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS).convert("RGB"))


KINDS: dict[str, Callable[[], tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = {"shapes": drawn_shapes, "characters": characters}
