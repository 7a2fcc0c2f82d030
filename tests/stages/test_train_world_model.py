"""The stage that trains a world model: it learns, goes on where it was stopped, and refuses what cannot be."""

import json
import os
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from worldloom.pipeline.marks import Link, links
from worldloom.stages import disk, train_world_model
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.commit import Commits
from worldloom.stages.dataset import Tokens
from worldloom.stages.dataset_writer import TokenShard
from worldloom.stages.kind import StageKind
from worldloom.stages.learner import Player
from worldloom.stages.metrics import read
from worldloom.stages.settings import StageSettings
from worldloom.stages.token_batches import TokenBatches
from worldloom.stages.train_world_model import Context, Model, TrainWorldModel, shape_of
from worldloom.stages.worker import Interrupted, Worker
from worldloom.stages.world_model_learner import Legality, WorldModelLearner, objectives
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.load import from_pretrained
from worldloom.world_model.next_token import next_token
from worldloom.world_model.transformer import WorldModel
from worldloom.world_model.vocabulary import Vocabulary

SAMPLES = 40


class Nothing(StageSettings):
    pass


def pieces(i):
    """What the caption of sample i says: i % 5, in two or three pieces."""
    return [7, i % 5] if i % 2 else [7, 9, i % 5]


def write_tokens(folder, caption=pieces):
    """Sample i: the caption says `caption(i)`, the frame shows i % 5 in all of its four codes."""
    keys = [f"{i:03d}" for i in range(SAMPLES)]

    def run(settings, inputs, out, worker):
        with Commits.of(out).attempt("train/shard-000000") as attempt:
            with TokenShard(attempt, "train", "caption", "shard-000000", 20) as shard:
                for i, key in enumerate(keys):
                    shard.add(key, np.array(caption(i)))
            with TokenShard(attempt, "train", "frame", "shard-000000", 11) as shard:
                for i, key in enumerate(keys):
                    shard.add(key, np.full((2, 2), 2 * (i % 5)))
            attempt.commit(keys, (), {})

    def finish(settings, inputs, out):
        Commits.of(out).finish(["train/shard-000000"])
        longest = max(len(caption(i)) for i in range(SAMPLES))
        streams = {
            "caption": {"kind": "text", "codebook_size": 20, "shape": None, "dtype": "uint16", "tokenizer": "c", "max_length": longest},
            "frame": {"kind": "image", "codebook_size": 11, "shape": [2, 2], "dtype": "uint16", "tokenizer": "f", "max_length": 4},
        }
        splits = {"train": {"shards": [{"name": "shard-000000", "samples": SAMPLES}], "samples": SAMPLES}}
        disk.write_file(out / "tokens" / "dataset.json", disk.canonical_json({"format": 1, "streams": streams, "splits": splits}))
        return {}

    kind = StageKind("make_something", Nothing, run, finish, "tokens", 1, "shards")
    return execute(kind, "tokens", Nothing(run="make_something"), {}, folder / "tokens" / "f0", Worker())


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("t"))


@pytest.fixture
def learnt(monkeypatch):
    """The batch of every step, as it is learnt from."""
    batches, turns = [], WorldModelLearner.turns
    monkeypatch.setattr(WorldModelLearner, "turns", lambda self, batch, step: batches.append(batch) or turns(self, batch, step))
    return batches


def settings(**changes):
    small = {"width": 32, "depth": 2, "heads": 2, "ff": 48}
    return TrainWorldModel(
        **{
            "run": "train_world_model",
            "tokens": "tokens",
            "model": Model(**small),
            "rows": 4,
            "row_length": 32,
            "steps": 12,
            "log_every": 1,
        }
        | changes
    )


def train(tokens, folder, worker=None, **changes):
    return execute(train_world_model.STAGE, "world", settings(**changes), {"tokens": tokens}, folder / "world" / "f1", worker or Worker())


def losses(out):
    lines = read(out / "logs" / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in ("time", "mfu") and "second" not in name} for line in lines]


def test_it_learns_what_the_caption_says_of_the_frame(tokens, tmp_path):
    artifact = train(tokens, tmp_path, steps=150, warmup=5, learning_rate=1e-2)
    lines = losses(artifact.folder)
    assert lines[0]["loss/frame"] == pytest.approx(np.log(11), rel=0.1)
    assert lines[-1]["loss/frame"] < 0.35 < lines[0]["loss/caption"]
    figures = json.loads((artifact.folder / "figures.json").read_bytes())
    assert figures["world.tokens_seen"] == lines[-1]["tokens"] == artifact.counts["tokens"]
    world = from_pretrained(artifact.folder / "world")
    assert figures["world.parameters"] == sum(p.numel() for p in world.model.parameters())
    assert world.vocabulary.streams[1].shape == (2, 2)


def test_two_sets_of_tokens_are_learnt_from_in_their_shares(tokens, tmp_path, learnt):
    mixed = {"tokens": {"one": 0.7, "two": 0.3}, "steps": 9}
    other = write_tokens(tmp_path, lambda i: [15, i % 5])
    artifact = execute(
        train_world_model.STAGE,
        "world",
        settings(**mixed),
        {"tokens.one": tokens, "tokens.two": other},
        tmp_path / "world" / "f1",
        Worker(),
    )
    documents = sum(len(batch.places) for batch in learnt)
    of_the_other = sum(int((batch.woven.tokens == 15).sum()) for batch in learnt)
    assert len(learnt) == 9 and documents > 70 and abs(of_the_other - 0.3 * documents) <= 1
    assert [stream.name for stream in from_pretrained(artifact.folder / "world").vocabulary.streams] == ["caption", "frame"]
    assert links(settings(**mixed)) == (Link(("tokens", "one"), "one", "tokens"), Link(("tokens", "two"), "two", "tokens"))


def test_spans_are_learnt_beside_the_others_and_their_sentinels_are_saved(tokens, tmp_path):
    mixed = {"next_token": 1.0, "masked": 1.0, "span": 1.0}
    artifact = train(tokens, tmp_path, steps=150, warmup=5, learning_rate=1e-2, objectives=mixed)
    lines = losses(artifact.folder)
    for name in (*(f"loss/{objective}" for objective in mixed), "loss/span.frame"):
        values = [line[name] for line in lines if name in line]
        assert np.mean(values[-10:]) < 0.8 * np.mean(values[:5])
    ids = from_pretrained(artifact.folder / "world").vocabulary
    assert ids.sentinels == 32 and ids.size == 20 + 4 + 4 + 11 + 32
    alone = train(tokens, tmp_path / "alone", steps=1)
    assert from_pretrained(alone.folder / "world").vocabulary.sentinels == 0


def test_two_objectives_learn_on_the_same_weights_and_each_shows_its_loss(tokens, tmp_path):
    artifact = train(tokens, tmp_path, steps=150, warmup=5, learning_rate=1e-2, objectives={"next_token": 1.0, "masked": 1.0})
    lines = losses(artifact.folder)
    for name in ("loss/frame", "loss/masked.frame"):
        assert lines[0][name] == pytest.approx(np.log(11), rel=0.1)
        assert lines[-1][name] < 0.6 * lines[0][name]
    assert lines[-1]["loss/masked"] < lines[0]["loss/masked"] and lines[-1]["loss/next_token"] < lines[0]["loss/next_token"]


def test_the_order_in_which_objectives_are_named_does_not_matter(tokens, tmp_path):
    one, other = (
        train(tokens, tmp_path / first, objectives=dict.fromkeys((first, second), 0.5), steps=4)
        for first, second in (("next_token", "masked"), ("masked", "next_token"))
    )
    assert losses(one.folder) == losses(other.folder)


@pytest.mark.parametrize(
    "mixed",
    [{"next_token": 1.0}, {"next_token": 1.0, "masked": 2.0}, {"next_token": 1.0, "span": 1.0}],
    ids=["one objective", "two objectives", "spans, too"],
)
def test_stopped_and_started_again_it_leaves_the_same_artifact(tokens, tmp_path, mixed):
    whole = train(tokens, tmp_path / "whole", objectives=mixed)
    steps = [0]
    stopping = Worker(stopping=lambda: steps[0] == 5, report=lambda done, *_: steps.__setitem__(0, done))
    with pytest.raises(Interrupted):
        train(tokens, tmp_path / "two", stopping, objectives=mixed)
    resumed = train(tokens, tmp_path / "two", objectives=mixed)
    assert losses(resumed.folder) == losses(whole.folder)
    done = [(artifact.folder / "DONE.json").read_bytes() for artifact in (whole, resumed)]
    assert done[0] == done[1]


def test_with_two_workers_then_one_then_two_every_step_has_the_samples_and_the_losses_of_one(tokens, tmp_path, gang):
    out, whole = tmp_path / "changing" / "world" / "f1", tmp_path / "whole" / "world" / "f1"
    for ranks, stop_at in ((2, 4), (1, 8), (2, None)):
        job = json.dumps({"tokens": str(tokens.folder), "out": str(out), "stop_at": stop_at})
        if ranks == 2:
            gang(__file__, job)
        else:
            _job(**json.loads(job))
    _job(str(tokens.folder), str(whole))
    one, changing = losses(whole), losses(out)
    assert [line["step"] for line in changing] == list(range(1, 13))
    for a, b in zip(one, changing, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    places, expected = _places(out), _places(whole)
    assert places == expected and len(list(out.glob("places-*-of-2.jsonl"))) == 2
    everyone = [place for step in range(12) for place in places[step]]
    assert everyone == list(range(len(everyone)))


def _places(out):
    """Of each step, all ranks together."""
    found = defaultdict(list)
    for line in [line for file in out.glob("places-*.jsonl") for line in file.read_text().splitlines()]:
        found[json.loads(line)["step"]] += json.loads(line)["places"]
    return {step: sorted(places) for step, places in found.items()}


def _job(tokens, out, stop_at=None):
    """The stage, by one of as many workers as the environment says, with the places of its batches noted beside what it writes."""
    rank, ranks, at = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), [0]
    Path(out).mkdir(parents=True, exist_ok=True)
    plain = WorldModelLearner.turns

    def turns(self, batch, step):
        with open(Path(out) / f"places-{rank}-of-{ranks}.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "places": batch.places.tolist()}) + "\n")
        return plain(self, batch, step)

    worker = Worker(rank, ranks, stopping=lambda: at[0] == stop_at, report=lambda done, *_: at.__setitem__(0, done))
    mixed = {"next_token": 0.6, "masked": 0.2, "span": 0.2}
    with pytest.MonkeyPatch.context() as patch, suppress(Interrupted):
        patch.setattr(WorldModelLearner, "turns", turns)
        about = settings(objectives=mixed, precision="fp32", ema=0.9)
        train_world_model.run(about, {"tokens": Artifact.open(Path(tokens))}, Path(out), worker)


def test_a_batch_in_parts_teaches_the_same(tokens, tmp_path):
    one, three = (train(tokens, tmp_path / str(parts), parts=parts, precision="fp32") for parts in (1, 3))
    for a, b in zip(losses(one.folder), losses(three.folder), strict=True):
        for name in ("loss", "loss/frame", "loss/caption", "tokens"):
            assert a[name] == pytest.approx(b[name], rel=1e-4)


def test_the_loss_is_a_mean_over_labels_and_the_sum_of_its_parts(tokens):
    data = Tokens(tokens)
    grammar = Grammar(Vocabulary.of({name: stream._asdict() for name, stream in data.streams.items()}))
    model = WorldModel(shape_of(settings().model, grammar.vocabulary.size), torch.Generator().manual_seed(1))
    # Where all labels take the full softmax, being legal counts once, as all else does.
    learner = WorldModelLearner(model, grammar, Player("world", model, 1e-3), objectives({"next_token": 1.0}, 1.0, {}), 0, 2)
    batch, _ = next(TokenBatches(data, grammar, "train", 4, 32, 0).after(None))
    turns = list(learner.turns(batch, 0))
    assert [turn.step for turn in turns] == [False, True]
    nats = sum(float(mean.total) for turn in turns for mean in turn.metrics.values())
    labels = sum(float(mean.weight) for turn in turns for mean in turn.metrics.values())
    assert sum(float(turn.losses["next_token"].detach()) for turn in turns) == pytest.approx(nats / labels, rel=1e-5)
    assert sum(turn.counts["tokens"] for turn in turns) == batch.woven.lengths.sum() - len(batch.places)


@pytest.mark.parametrize(("times", "then"), [(3.0, 3.0), (None, 2.0)], ids=["as told", "as if all labels had the softmax over all ids"])
def test_being_legal_counts_more_from_a_step_on(tokens, times, then):
    data = Tokens(tokens)
    grammar = Grammar(Vocabulary.of({name: stream._asdict() for name, stream in data.streams.items()}))
    batch, _ = next(TokenBatches(data, grammar, "train", 4, 32, 0).after(None))
    example = next_token(batch.woven, grammar, batch.places, 0, full_share=0.5)
    for step, counts in ((4, 1.0), (5, then)):
        late = Legality(times, begin=5).of(example, step)
        assert {choice.legality for choice in late.choices if choice.legal} == {counts}
        assert {choice.legality for choice in late.choices if not choice.legal} == {1.0}
    model = WorldModel(shape_of(settings().model, grammar.vocabulary.size), torch.Generator().manual_seed(1))
    once, late = (model.losses(Legality(times, begin=5).of(example, step)) for step in (4, 5))
    assert float(once.legality) == 0 < float(late.legality)
    assert float((late.total - once.total).detach()) == pytest.approx(float(late.legality), rel=1e-5)


def test_the_loss_can_be_a_mean_over_streams(tokens):
    data = Tokens(tokens)
    grammar = Grammar(Vocabulary.of({name: stream._asdict() for name, stream in data.streams.items()}))
    model = WorldModel(shape_of(settings().model, grammar.vocabulary.size), torch.Generator().manual_seed(1))
    learner = WorldModelLearner(
        model, grammar, Player("world", model, 1e-3), objectives({"next_token": 1.0}, 0.0, {}), 0, 2, by_stream=True
    )
    batch, _ = next(TokenBatches(data, grammar, "train", 4, 32, 0).after(None))
    turns = list(learner.turns(batch, 0))
    nats, labels = ({name: sum(float(t.metrics[name][part]) for t in turns) for name in turns[0].metrics} for part in (0, 1))
    expected = np.mean([nats[name] / labels[name] for name in nats if labels[name]])
    assert len(set(labels.values())) > 1
    assert sum(float(turn.losses["next_token"].detach()) for turn in turns) == pytest.approx(expected, rel=1e-5)


CONTEXTS = ({"row_length": 32, "steps": 6}, {"row_length": 48, "steps": 5, "rope_theta": 5e4, "rows": 2, "learning_rate": 1e-3})


def contexts(*stages):
    return {"stages": tuple(Context(**stage) for stage in stages), "steps": 1_000, "row_length": 256}


@pytest.mark.parametrize("at", [3, 6, 9], ids=["in the first", "between", "in the second"])
def test_longer_and_longer_rows_go_on_anywhere(tokens, tmp_path, at):
    whole = train(tokens, tmp_path / "whole", **contexts(*CONTEXTS))
    steps = [0]
    stopping = Worker(stopping=lambda: steps[0] >= at, report=lambda done, *_: steps.__setitem__(0, done))
    # Behind the last step of a training there is nothing left of it to stop, and the next one stops after a step.
    with pytest.raises(Interrupted):
        train(tokens, tmp_path / "two", stopping, **contexts(*CONTEXTS))
    resumed = train(tokens, tmp_path / "two", **contexts(*CONTEXTS))
    assert losses(resumed.folder) == losses(whole.folder)
    assert [line["step"] for line in losses(whole.folder)] == list(range(1, 12))
    assert (whole.folder / "DONE.json").read_bytes() == (resumed.folder / "DONE.json").read_bytes()
    assert from_pretrained(whole.folder / "world").model.shape.rope_theta == 5e4
    seen = [line["tokens"] for line in losses(whole.folder)]
    assert seen == sorted(set(seen))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"row_length": 11}, "the shortest sample of 'train' makes 12 tokens, a row has 11; set row_length to at least 12"),
        ({"rows": 3}, r"rows \(3\) cannot be shared by 2 training workers"),
        ({"weights": {"sound": 0.5}}, r"weights for \['sound'\]"),
    ],
    ids=["rows too short", "rows that cannot be shared", "weights of no stream"],
)
def test_a_mistake_in_the_last_of_them_shows_before_the_first_has_begun(tokens, tmp_path, mistake, message):
    # Nothing is trained, or the second worker would be waited for.
    with pytest.raises(ValueError, match=message):
        about = settings(**contexts(CONTEXTS[0], {**CONTEXTS[1], **mistake}))
        train_world_model.run(about, {"tokens": tokens}, tmp_path, Worker(0, 2))
    assert not any(tmp_path.iterdir())


def test_with_the_rows_the_documents_grow(tmp_path, learnt):
    """Captions of 1 to 30 pieces; those that make more than 20 tokens wait for rows of 42."""
    long = write_tokens(tmp_path, lambda i: [7] * (i % 30) + [i % 5])
    artifact = train(long, tmp_path, **contexts({"row_length": 20, "steps": 4}, {"row_length": 42, "steps": 5}))
    short, grown = ([batch.woven.lengths for batch in part] for part in (learnt[:4], learnt[4:]))
    assert max(map(max, short)) == 20 and len(short) == 4
    assert max(map(max, grown)) > 30 and len(grown) == 5
    table = json.loads((artifact.folder / "card.json").read_bytes())["blocks"][-1]
    assert ["samples left to longer rows", "20, then 0"] in table["rows"]
    with pytest.raises(ValueError, match="the longest sample of 'train' makes 40 tokens, a row has 37; set row_length to at least 40"):
        train(long, tmp_path / "no rows are long enough", **contexts({"row_length": 20, "steps": 4}, {"row_length": 37, "steps": 5}))


def test_each_of_them_begins_with_what_the_last_one_left(tokens, tmp_path):
    short = train(tokens, tmp_path / "short", **contexts(CONTEXTS[0]))
    long = train(tokens, tmp_path / "long", **contexts(CONTEXTS[0], {**CONTEXTS[1], "learning_rate": 1e-9}))
    a, b = (from_pretrained(artifact.folder / "world").model for artifact in (short, long))
    others = dict(b.named_parameters())
    for name, one in a.named_parameters():
        if name != "output":  # to which each one adds offsets of its own
            # The bf16 weights are what the second one's masters begin with.
            torch.testing.assert_close(others[name], one, rtol=2**-8, atol=1e-6)
    assert (short.counts["steps"], long.counts["steps"]) == (6, 11)


def test_recomputed_activations_and_averages_leave_what_they_should(tokens, tmp_path):
    plain, again, averaged = (
        train(tokens, tmp_path / str(n), **changes) for n, changes in enumerate(({}, {"checkpoint_activations": True}, {"ema": 0.5}))
    )
    assert losses(plain.folder) == losses(again.folder) == losses(averaged.folder)
    models = [(artifact.folder / "world" / "model.safetensors").read_bytes() for artifact in (plain, again, averaged)]
    assert models[0] == models[1] != models[2]


def test_weights_change_what_counts(tokens, tmp_path):
    even, odd = (
        train(tokens, tmp_path / str(weight), steps=30, warmup=2, learning_rate=1e-2, weights={"frame": weight}) for weight in (1.0, 0.0)
    )
    assert losses(even.folder)[-1]["loss/frame"] < losses(odd.folder)[-1]["loss/frame"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"width": 30, "heads": 4}}, r"width \(30\) must be a multiple of twice the heads \(4\)"),
        ({"model": {"heads": 4, "kv_heads": 3}}, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ({"objectives": {"guess": 1.0}}, "next_token"),
        ({"objectives": {}}, "at least 1 item"),
        ({"tokens": {}}, "at least 1 item"),
        ({"tokens": {"a": 0}}, "greater than 0"),
        ({"deepspeed": {"bf16": {"enabled": True}}}, "bf16 is filled from the stage's own settings"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "comes from the profile"),
        ({"drop": {"frame": 1.0}}, "less than 1"),
        ({"stages": [{"row_length": 64, "steps": 5}], "steps": 9}, "steps is 9, but each of the 1 stages has its own; leave out steps"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        TrainWorldModel.model_validate_json(json.dumps({"run": "train_world_model", "tokens": "tokens", **changes}))


def test_the_shape_follows_from_few_numbers():
    shape = shape_of(Model(width=96, heads=6, kv_heads=3), 700)
    assert (shape.head_width, shape.ff, shape.kv_heads, shape.vocab_size) == (16, 256, 3, 700)
    assert shape_of(Model(width=96, heads=6), 700).kv_heads == 6


def test_unknown_streams_are_refused_by_name(tokens, tmp_path):
    with pytest.raises(ValueError, match="drop names sound, but the streams are caption, frame"):
        train(tokens, tmp_path / "a", drop={"sound": 0.5})
    with pytest.raises(ValueError, match=r"weights for \['sound'\]"):
        train(tokens, tmp_path / "b", weights={"sound": 0.5})


if __name__ == "__main__":
    _job(**json.loads(sys.argv[1]))
