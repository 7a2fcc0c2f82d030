"""Tokens are checked with the grammar: what it says of a stored sample is what the automaton says of its sequence."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from worldloom.pipeline.verify import verify_artifact
from worldloom.stages import check_tokens, disk
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.check_tokens import illegal_shards
from worldloom.stages.commit import Commits
from worldloom.stages.dataset import Tokens
from worldloom.stages.dataset_writer import TokenShard
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import StageSettings
from worldloom.stages.worker import Worker
from worldloom.world_model.grammar import Grammar, IllegalToken
from worldloom.world_model.vocabulary import Vocabulary

STREAMS: dict[str, dict[str, Any]] = {
    "caption": {"kind": "text", "codebook_size": 5, "shape": None, "max_length": 4},
    "frame": {"kind": "image", "codebook_size": 6, "shape": [2, 2], "max_length": 4},
    "clip": {"kind": "video", "codebook_size": 6, "shape": [3, 2, 1], "max_length": 6, "steps": 3},
    "push": {"kind": "action", "codebook_size": 3, "shape": [2, 2], "max_length": 4, "levels": 2, "steps": 2},
}
CLOCK = {"name": "step", "streams": ["clip", "push"], "given": ["push"]}
GRAMMAR = Grammar(Vocabulary.of(STREAMS, CLOCK))
Sample = Mapping[str, NDArray[np.int64]]


class Nothing(StageSettings):
    pass


def tokens_of(folder: Path, shards: Sequence[Sequence[Sample]], about: Mapping[str, Any] | None = None) -> Artifact:
    """An artifact of samples that nobody has checked: the writer is told of a larger codebook."""

    def run(settings: Any, inputs: Any, out: Path, worker: Worker) -> None:
        for number, samples in enumerate(shards):
            keys = [f"{number:04d}-{at}" for at in range(len(samples))]
            with Commits.of(out).attempt(f"train/{number:04d}") as attempt:
                for stream in STREAMS:
                    with TokenShard(attempt, "train", stream, f"{number:04d}", 1000) as shard:
                        for key, sample in zip(keys, samples, strict=True):
                            shard.add(key, sample.get(stream))
                attempt.commit(keys, (), {})

    def finish(settings: Any, inputs: Any, out: Path) -> dict[str, Any]:
        Commits.of(out).finish([f"train/{number:04d}" for number in range(len(shards))])
        streams = {name: {**stream, "dtype": "uint16", "tokenizer": name} for name, stream in STREAMS.items()}
        split = {
            "shards": [{"name": f"{number:04d}", "samples": len(samples)} for number, samples in enumerate(shards)],
            "samples": sum(map(len, shards)),
        }
        value = {"format": 1, "streams": streams, "clock": CLOCK, "splits": {"train": split}, **(about or {})}
        disk.write_file(out / "tokens" / "dataset.json", disk.canonical_json(value))
        return {}

    kind = StageKind("draw", Nothing, run, finish, "tokens", 1, "shards")
    return execute(kind, "tokens", Nothing(run="draw"), {}, folder / "artifacts" / "tokens" / "f0", Worker())


def draw(generator: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """A legal sample; some of its streams are missing."""
    made = {}
    for name, stream in STREAMS.items():
        if generator.random() < 0.7:
            length = stream["max_length"] if stream["shape"] else generator.integers(1, stream["max_length"] + 1)
            made[name] = generator.integers(stream["codebook_size"], size=length)
    return made


def spoilt(sample: Sample, generator: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """With one stream's codes too many, too few or beyond the codebook; or, of a text, still legal."""
    name = str(generator.choice([*sample]))
    codes = sample[name].copy()
    match generator.integers(3):
        case 0:
            codes = np.append(codes, 0)
        case 1 if len(codes) > 1:
            codes = codes[:-1]
        case _:
            codes[generator.integers(len(codes))] += STREAMS[name]["codebook_size"]
    return {**sample, name: codes}


def is_legal(sample: Sample) -> bool:
    """By the automaton, token by token, of the sequence written by hand."""
    ids = GRAMMAR.vocabulary

    def segment(name: str, codes: NDArray[np.int64]) -> list[int]:
        number = ids.index(name)
        levels, size = ids.streams[number].levels, ids.streams[number].codebook_size
        body = [ids.span(number).start + at % levels * size + int(code) for at, code in enumerate(codes)]
        return [ids.indicator(number), *body, ids.closing(number)]

    tokens = [ids.bos, *(token for name in ("caption", "frame") if name in sample for token in segment(name, sample[name]))]
    steps = {name: [sample[name][at : at + 2] for at in range(0, len(sample[name]), 2)] for name in ("clip", "push") if name in sample}
    for step in range(max(map(len, steps.values()), default=0)):
        for name, parts in steps.items():
            tokens += segment(name, parts[step]) if step < len(parts) else []
    try:
        GRAMMAR.parse([*tokens, ids.eos])
    except IllegalToken:
        return False
    return True


def test_what_is_said_of_a_sample_is_what_the_automaton_says_of_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    samples = [sample for sample in (draw(generator) for _ in range(40)) if sample]
    samples = [spoilt(sample, generator) if number % 2 else sample for number, sample in enumerate(samples)]
    found = {int(wrong.shard) for wrong in illegal_shards(Tokens(tokens_of(tmp_path, [[sample] for sample in samples])))}
    assert found == {number for number, sample in enumerate(samples) if not is_legal(sample)}
    assert 12 < len(found) < 20


def test_the_first_illegal_sample_of_a_shard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_tokens, "AT_ONCE", 4)
    good = {"frame": np.zeros(4, np.int64), "caption": np.ones(2, np.int64)}
    short, beyond = {**good, "frame": np.zeros(3, np.int64)}, {**good, "caption": np.array([5])}
    artifact = tokens_of(tmp_path, [[good] * 3, [good] * 6 + [beyond, short, good], [short, beyond]])
    assert [(wrong.shard, wrong.problem) for wrong in illegal_shards(Tokens(artifact))] == [
        ("0001", "sample '0001-6' is not legal: codes of stream 'caption' run from 5 to 5, its codebook from 0 to 4"),
        ("0002", "sample '0002-0' is not legal: a sample has 3 codes of stream 'frame', it must have exactly 4"),
    ]
    damages = verify_artifact(artifact.folder).damages
    assert [damage.file for damage in damages] == [artifact.folder / "tokens" / "train"] * 2
    assert damages[0].problem.startswith("0001: sample '0001-6' is not legal: ")


def test_tokens_of_no_grammar_are_found_and_legal_ones_are_whole(tmp_path: Path) -> None:
    good = [[{"frame": np.zeros(4, np.int64)}]]
    assert verify_artifact(tokens_of(tmp_path / "good", good).folder).damages == ()
    wrong = tokens_of(tmp_path / "wrong", good, {"clock": None})
    (damage,) = verify_artifact(wrong.folder).damages
    assert damage.file == wrong.folder / "tokens" / "dataset.json"
    assert damage.problem.startswith("describes no tokens that the grammar knows: the clock has the streams []")


def test_a_flipped_byte_is_found_before_the_grammar_is_asked(tmp_path: Path) -> None:
    artifact = tokens_of(tmp_path, [[{"frame": np.full(4, 9)}]])
    place = artifact.folder / "tokens" / "dataset.json"
    place.write_text(json.dumps({"format": 2}))
    (damage,) = verify_artifact(artifact.folder).damages
    assert damage.file == place and "DONE.json says" in damage.problem
