"""What a training makes at its checkpoints: the same request, the same seed, every time, so that one sees it learn."""

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from worldloom.pipeline.service.dataset_pages import SampleValue, shown_value
from worldloom.pipeline.service.run_pages import Absent, Runs, checkpoints_of
from worldloom.pipeline.service.told import Told
from worldloom.stages.artifact import Artifact

PROMPTS = 6
SEED = 0
TEMPERATURE = 0.25
TARGETS = ("image", "video", "audio", "text", "action")  # what is asked of a world: the first kind that it has
_LOCK = threading.Lock()  # one checkpoint is loaded at a time


class MadeValue(Told):
    """One value that was made."""

    caption: str
    value: SampleValue
    verdict: str | None  # "right" or "wrong", where an oracle can tell
    detail: str


class CheckpointPage(Told):
    """What a checkpoint made."""

    step: int
    samples: tuple[MadeValue, ...]


def checkpoint_page(runs: Runs, run: str, stage: str, step: int) -> CheckpointPage:
    """Absent where there is no such checkpoint; ValueError where it cannot be read, or went while it was."""
    folders = runs.located(run).artifacts
    if stage not in folders:
        raise Absent(f"the run {run} has no stage {stage!r}; it has {', '.join(folders)}")
    steps = checkpoints_of(folders[stage])
    if step not in steps:
        raise Absent(f"{stage} has no checkpoint of step {step}; it has {', '.join(map(str, steps)) or 'none'}")
    with _LOCK:
        return _page(folders[stage], step)


@lru_cache(maxsize=64)
def _page(folder: Path, step: int) -> CheckpointPage:
    artifact = Artifact.begun(folder)
    made = {"train_world_model": _of_world, "train_tokenizer": _of_tokenizer}.get(artifact.kind)
    if made is None:
        raise Absent(f"{artifact.name} ({artifact.kind}) makes no samples at its checkpoints")
    return CheckpointPage(step=step, samples=tuple(made(artifact, step)))


def _of_world(artifact: Artifact, step: int) -> list[MadeValue]:
    from worldloom.stages.evaluation import Direction, answerable, ask, pick_samples
    from worldloom.stages.open_checkpoint import world_at
    from worldloom.stages.open_world import Choosing
    from worldloom.stages.oracles import oracle_of

    world = world_at(artifact, step)
    oracle = oracle_of(world.dataset.oracle)
    choosing = Choosing(temperature=TEMPERATURE)
    possible = answerable(world, oracle, world.fill_steps_of(None))
    if not possible:
        return []

    def wanted(direction: Direction) -> tuple[bool, int]:
        return world.streams[direction.source] != "text", TARGETS.index(world.streams[direction.target])

    direction = min(possible, key=wanted)
    split = _split(world.dataset)
    rows = pick_samples(world.dataset, split, [*direction], PROMPTS, SEED)
    outcome = ask(world, direction, split, rows, oracle, choosing, SEED, PROMPTS, lambda: None)
    about = world.dataset.streams[direction.target]
    told = []
    for trial in outcome.trials:
        caption = trial.given if isinstance(trial.given, str) else f"from {direction.source}"
        judged = None if outcome.view is None else "right" if trial.right else "wrong"
        if trial.made is None:
            told.append(MadeValue(caption=caption, value=SampleValue(kind="text", text="nothing legal"), verdict=judged, detail=""))
            continue
        detail = "" if oracle is None or trial.right else oracle.say(trial.answered)
        told.append(MadeValue(caption=caption, value=shown_value(trial.made, about), verdict=judged, detail=detail))
    return told


def _of_tokenizer(artifact: Artifact, step: int) -> list[MadeValue]:
    import numpy as np

    from worldloom.stages.evaluation import pick_samples
    from worldloom.stages.open_checkpoint import tokenizer_at
    from worldloom.stages.streams import kind_of

    tokenizer, dataset, stream = tokenizer_at(artifact, step)
    split = _split(dataset)
    values = [dataset.value(split, stream, row) for row in pick_samples(dataset, split, [stream], PROMPTS, SEED)]
    if not values:
        return []
    back = tokenizer.decode(tokenizer.encode(kind_of(tokenizer.kind).batch(values)))
    about = dataset.streams[stream]
    told = []
    for value, made in zip(values, np.asarray(back), strict=True):
        error = np.mean((np.asarray(value, np.float64) - made) ** 2)
        detail = f"PSNR {10 * np.log10(255**2 / max(error, 1e-9)):.1f} dB" if about.kind in ("image", "video") else ""
        told.append(MadeValue(caption="", value=shown_value(made, about), verdict=None, detail=detail))
    return told


def _split(dataset: Any) -> str:
    """Samples that training has not seen, where there are any."""
    return next((name for name in ("held_out", "validation") if dataset.samples(name)), "train")
