import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldloom.stages import shapes
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.evaluate_world_model import STAGE, EvaluateWorldModel
from worldloom.stages.evaluation import Direction, _documents, bits, directions, distinct, kept, pick_samples, row_seed
from worldloom.stages.evaluation_card import _spread, evaluation_card
from worldloom.stages.evaluation_figures import _varied, choosing_of, figures_of, measure
from worldloom.stages.open_world import Choosing, OpenWorld, Sampled, open_world
from worldloom.stages.oracles import ORACLES, oracle_of
from worldloom.stages.worker import Interrupted, Worker
from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.example import Run
from worldloom.world_model.grammar import Grammar, IllegalToken
from worldloom.world_model.transformer import WorldModel
from worldloom.world_model.vocabulary import BOS
from worldloom.world_model.weave import weave

SETTINGS = EvaluateWorldModel(run="evaluate_world_model", world="world", prompts=5, unconditional=3, batch=2, shown=4, answers=2)
CHOOSING = Choosing()


class Artist(OpenWorld):
    """Stands in for a trained world: does what it is told, in colours of its own if `colour` is given."""

    colour: str | None = None

    def sample(
        self, given: Sequence[Mapping[str, Any]], want: Sequence[str] | None, seeds: Sequence[int], choosing: Choosing
    ) -> list[Sampled]:
        return [Sampled(np.array([seed]), True, self._answer(dict(values))) for values, seed in zip(given, seeds, strict=True)]

    def _answer(self, values: dict[str, Any]) -> dict[str, Any]:
        told = shapes.read_caption(values["words"]) if "words" in values else None
        seen = shapes.read_picture(values["view"]) if "view" in values else None
        reading = told or seen or shapes.COMBINATIONS[11]
        reading = reading._replace(colour=self.colour or reading.colour)
        thing = shapes.imagine(reading, np.random.default_rng(3))
        return {"words": shapes.describe(thing, shapes.WORDINGS[5]), "view": shapes.draw(thing, 16), **values}


class Blue(Artist):
    colour = "blue"


@pytest.fixture(scope="module")
def world(tiny_world: Artifact) -> OpenWorld:
    return open_world(tiny_world)


@pytest.fixture(scope="module")
def scores(tiny_world: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return execute(STAGE, "scores", SETTINGS, {"world": tiny_world}, tmp_path_factory.mktemp("a") / "scores" / "f", Worker())


def _stand_in(world: OpenWorld, kind: type[OpenWorld]) -> OpenWorld:
    return kind(**{field.name: getattr(world, field.name) for field in dataclasses.fields(world)})


def _with_sentinels(world: OpenWorld, objectives: tuple[str, ...]) -> OpenWorld:
    ids = dataclasses.replace(world.vocabulary, sentinels=2)
    shape = dataclasses.replace(world.model.shape, vocab_size=ids.size)
    model = WorldModel(shape, torch.Generator().manual_seed(0))
    return dataclasses.replace(world, model=model, grammar=Grammar(ids), objectives=objectives)


def test_a_world_that_never_learnt_writes_legal_sequences_that_say_nothing(scores: Artifact) -> None:
    figures = json.loads(scores.content("figures.json"))
    assert figures["legal_share"] == 1.0
    for name in ("words_to_view", "view_to_words"):
        assert figures[f"{name}.accuracy"] == figures[f"{name}.held_out_accuracy"] == 0.0
    assert 0 < figures["world.legal_mass"] < 0.6
    assert 0 <= figures["legal_share_free"] < 0.9
    assert 0 < figures["words_to_view.distinct_share"] <= 1 and 0 < figures["view_to_words.distinct_share"] <= 1
    assert not any("masked" in name for name in figures)
    # 17 codes of the picture, nearly alike to it.
    assert figures["world.bits_per_token.view"] == pytest.approx(np.log2(17), abs=0.2)
    assert figures["world.held_out_bits_per_token.view"] == pytest.approx(np.log2(17), abs=0.2)


def test_the_same_evaluation_gives_the_same_bytes(scores: Artifact, tiny_world: Artifact, tmp_path: Path) -> None:
    again = execute(STAGE, "scores", SETTINGS, {"world": tiny_world}, tmp_path / "scores" / "f", Worker())
    assert again.manifest == scores.manifest
    assert {"card.json", "pictures/overview.png"} <= set(again.files()) and any(name.startswith("pictures/") for name in again.files())


def test_a_world_that_does_what_it_is_told_is_right_every_time(world: OpenWorld, tmp_path: Path) -> None:
    measured = measure(_stand_in(world, Artist), SETTINGS, Worker())
    figures = figures_of(measured)
    for name in ("words_to_view", "view_to_words"):
        assert figures[f"{name}.accuracy"] == figures[f"{name}.held_out_accuracy"] == 1.0
    assert figures["unconditional.agreement"] == 1.0
    card = evaluation_card(measured, 4, tmp_path)
    assert card.headline[0] == "words_to_view.accuracy"
    first = card.model_dump()["blocks"][0]
    assert first["title"] == "words → view: combinations that training never saw"
    assert [item["verdict"] for item in first["items"]] == ["right"] * 4
    drawn = next(outcome for outcome in measured.outcomes if (outcome.direction.name, outcome.split) == ("words_to_view", "held_out"))
    assert [item["caption"] for item in first["items"]] == [trial.given for trial in drawn.trials[:4]]


def test_the_oracle_finds_the_one_property_that_is_wrong(world: OpenWorld, tmp_path: Path) -> None:
    measured = measure(_stand_in(world, Blue), SETTINGS, Worker())
    figures = figures_of(measured)
    asked = [trial.asked for outcome in measured.outcomes for trial in outcome.trials if outcome.split == "validation"]
    assert figures["words_to_view.shape_accuracy"] == figures["words_to_view.place_accuracy"] == 1.0
    assert figures["words_to_view.accuracy"] == figures["words_to_view.colour_accuracy"]
    assert figures["words_to_view.accuracy"] == sum(reading is not None and reading[1] == "blue" for reading in asked) / len(asked)
    wrong = [item for block in evaluation_card(measured, 9, tmp_path).model_dump()["blocks"] for item in block.get("items", ())]
    assert any(item["verdict"] == "wrong" and "blue" in item["detail"] and "asked for" in item["detail"] for item in wrong)


def test_bits_of_hidden_codes_and_spans_are_counted_where_they_were_learnt(world: OpenWorld) -> None:
    knows = dataclasses.replace(world, objectives=("next_token", "masked"))
    found = bits(knows, "validation", 0, lambda: None)
    assert found.per_token["masked.view"] == pytest.approx(np.log2(17), abs=0.3) and "span.view" not in found.per_token
    plain = bits(world, "validation", 0, lambda: None)
    assert {name: value for name, value in found.per_token.items() if "." not in name} == plain.per_token
    assert found.legal_mass == plain.legal_mass


def test_a_world_that_learnt_from_hidden_codes_alone_is_asked_by_them_alone(world: OpenWorld, tmp_path: Path) -> None:
    knows = dataclasses.replace(world, objectives=("masked",))
    measured = measure(knows, SETTINGS, Worker())
    figures = figures_of(measured)
    assert {outcome.direction.name for outcome in measured.outcomes} == {"words_to_view"}  # nobody knows how long words would be
    assert measured.fill_steps == 12 and figures["legal_share"] == 1.0 and figures["distinct_share"] == 1.0
    assert all(set(one.values) == {"view"} for one in measured.dreams) and len(measured.dreams) == 3
    assert {"world.bits_per_token.masked.view", "words_to_view.accuracy"} <= set(figures)
    assert not {"world.bits_per_token.view", "world.legal_mass", "legal_share_free"} & set(figures)
    filled = next(outcome for outcome in measured.outcomes if outcome.split == "validation").trials[0]
    row = pick_samples(world.dataset, "validation", ("words", "view"), 5, 0)[0]
    seed = row_seed(0, "words_to_view validation", row)
    (alone,) = knows.sample([{"words": filled.given}], ["view"], [seed], Choosing(temperature=0.25, fill_steps=12))
    assert np.array_equal(alone.values["view"], filled.made)
    card = evaluation_card(measured, 2, tmp_path).model_dump()
    assert card["blocks"][0]["text"].startswith("Answers of fixed shape are written in 12 steps") and set(card["headline"]) <= set(figures)


def test_what_a_world_learnt_decides_how_it_can_be_asked(world: OpenWorld, tmp_path: Path) -> None:
    both, hidden = (dataclasses.replace(world, objectives=learnt) for learnt in (("next_token", "masked"), ("masked",)))
    spans = _with_sentinels(world, ("span",))
    steps = SETTINGS.model_copy(update={"fill_steps": 3})
    assert [choosing_of(one, SETTINGS).fill_steps for one in (both, hidden, spans)] == [0, 12, 0]
    assert [choosing_of(one, steps).fill_steps for one in (both, hidden)] == [3, 3]
    with pytest.raises(
        ValueError, match=r"fill_steps is 3, but this world learnt next_token and not hidden codes, .* leave fill_steps out"
    ):
        choosing_of(world, steps)
    with pytest.raises(ValueError, match=r"fill_steps is 0, but this world learnt masked and not next tokens, so it cannot write token by"):
        choosing_of(hidden, steps.model_copy(update={"fill_steps": 0}))
    measured = measure(spans, SETTINGS, Worker())
    assert not measured.outcomes and not measured.dreams
    assert [name for name in figures_of(measured) if "bits" in name and "held_out" not in name] == [
        f"world.bits_per_token.span.{name}" for name in ("view", "words")
    ]
    assert set(evaluation_card(measured, 2, tmp_path).headline) <= set(figures_of(measured))


def test_answers_are_as_varied_as_they_are_different(world: OpenWorld) -> None:
    way = Direction("words", "view")
    assert distinct(world, way, "train", [0, 1], 4, Choosing(temperature=0.0), 0) == 0.25
    assert distinct(world, way, "train", [0, 1], 4, Choosing(temperature=1.0), 0) == 1.0


def test_a_stream_may_have_a_temperature_of_its_own_beside_the_usual_one(world: OpenWorld) -> None:
    settings = EvaluateWorldModel.model_validate_json(json.dumps({**SETTINGS.model_dump(), "temperature": {"view": 0}}))
    assert choosing_of(world, settings) == Choosing(temperature={"words": 0.25, "view": 0.0, "order": 0.25}, fill_steps=0)
    assert choosing_of(world, SETTINGS) == Choosing(temperature=0.25, fill_steps=0)
    with pytest.raises(ValueError, match="temperature is given for 'sound'; this world has the streams view, words"):
        choosing_of(world, settings.model_copy(update={"temperature": {"sound": 0.8}}))


@pytest.mark.parametrize(("most_codes", "batch", "expected"), [(20_000, 100, 8), (20_000, 20, 5), (33, 100, 2), (1, 1, 1)])
def test_fewer_samples_are_asked_several_times_where_answers_are_long(world: OpenWorld, most_codes: int, batch: int, expected: int) -> None:
    settings = SETTINGS.model_copy(update={"most_codes": most_codes, "batch": batch, "answers": 4})
    assert _varied(world, Direction("words", "view"), settings) == expected  # a view has four codes


def test_a_dataset_without_an_oracle_is_measured_without_verdicts(
    world: OpenWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.dataset, "oracle", None)
    measured = measure(world, SETTINGS, Worker())
    figures = figures_of(measured)
    assert not any("accuracy" in name for name in figures)
    assert {"legal_share", "distinct_share", "world.bits_per_token.words"} <= set(figures)
    drawn, _, told, *_ = evaluation_card(measured, 2, tmp_path).model_dump()["blocks"]
    assert {item["verdict"] for item in drawn["items"] + told["items"]} == {None}
    assert all(item["before"] for item in drawn["items"])  # the dataset's own picture for comparison
    assert drawn["title"] == "words → view: samples held out from training"
    assert told["title"].startswith("view → words: ")
    assert told["items"] and all(item["detail"].startswith("in the dataset: ") for item in told["items"])


def test_examples_are_taken_from_all_over_a_split() -> None:
    assert _spread(list(range(10)), 3) == [0, 3, 6]
    assert _spread([5, 3], 7) == [5, 3]
    assert _spread([5, 3], 0) == []


def test_a_row_gives_the_same_whatever_else_is_in_the_batch(world: OpenWorld) -> None:
    caption = world.dataset.value("train", "words", 0)
    alone = world.sample([{"words": caption}], ["view"], [5], CHOOSING)[0]
    among = world.sample([{}, {"words": caption}, {}], ["view"], [4, 5, 6], CHOOSING)[1]
    assert alone.tokens.tolist() == among.tokens.tolist()
    assert alone.values["words"] == caption and alone.values["view"].shape == (16, 16, 3)


@pytest.mark.parametrize("fill_steps", [0, 2])
def test_rows_of_one_batch_that_want_different_streams_are_each_alone(world: OpenWorld, fill_steps: int) -> None:
    world = dataclasses.replace(world, objectives=("next_token", "masked"))
    caption, choosing = world.dataset.value("train", "words", 0), Choosing(fill_steps=fill_steps, temperature={"view": 0.5})
    given, wants = [{"words": caption}, {}, {}, {"words": caption}], [["view"], ["words", "view"], ["view", "words"], []]
    together = world.sample(given, wants, [1, 2, 3, 4], choosing)
    for row, made in enumerate(together):
        (alone,) = world.sample([given[row]], wants[row], [row + 1], choosing)
        assert alone.tokens.tolist() == made.tokens.tolist() and made.legal
        assert [segment.stream for segment in world.grammar.parse(made.tokens)] == [*given[row], *wants[row]]


@pytest.mark.parametrize(
    ("learnt", "want", "message"),
    [
        (
            ("masked",),
            ["words"],
            r"learnt masked and not next tokens, so it cannot write words token by token; say how many codes that gets, leave it out",
        ),
        (
            ("span",),
            ["view"],
            r"learnt span and not next tokens, so it cannot write samples token by token; have it write codes .*\(infill\)",
        ),
    ],
    ids=str,
)
def test_what_a_world_never_learnt_to_write_is_refused(world: OpenWorld, learnt: Any, want: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(world, objectives=learnt).sample([{}], want, [1], Choosing())


@pytest.mark.parametrize("steps", [0, 2])
def test_a_world_of_spans_alone_is_not_sent_from_one_refusal_to_the_next(world: OpenWorld, steps: int) -> None:
    with pytest.raises(ValueError, match=rf"fill_steps is {steps}, but this world learnt span .* have it write codes of given ones anew"):
        dataclasses.replace(world, objectives=("span",)).sample([{}], ["view"], [1], Choosing(fill_steps=steps))


def test_a_world_that_learnt_from_hidden_codes_alone_fills_them_in_unasked(world: OpenWorld) -> None:
    knows = dataclasses.replace(world, objectives=("masked",))
    (unasked,), (asked,) = (knows.sample([{}], ["view"], [1], Choosing(fill_steps=steps)) for steps in (None, 12))
    assert (unasked.tokens == asked.tokens).all()
    with pytest.raises(ValueError, match=r"fill_steps is 0, but this world learnt masked and not next tokens, .* leave fill_steps out"):
        knows.sample([{}], ["view"], [1], Choosing(fill_steps=0))


def test_a_world_that_never_learnt_from_hidden_codes_fills_none_in(world: OpenWorld) -> None:
    with pytest.raises(ValueError, match=r"this world learnt next_token and not hidden codes, .* train it with the objective masked"):
        world.sample([{}], ["view"], [1], Choosing(fill_steps=2))


def test_a_hole_in_a_picture_is_filled_and_the_rest_stays(world: OpenWorld) -> None:
    knows = _with_sentinels(world, ("next_token", "span"))
    ids = knows.vocabulary
    given = {"words": world.dataset.value("train", "words", 0), "view": world.dataset.value("train", "view", 0)}
    (made,) = knows.infill([given], [{"view": range(1, 3)}], [5], CHOOSING)
    (before,) = world.prompts([given])
    view = int(np.flatnonzero(before == ids.indicator(ids.index("view")))[0]) + 1
    assert made.legal and set(np.flatnonzero(made.tokens[:-1] != before)) <= {view + 1, view + 2}
    with pytest.raises(ValueError, match=r"view has 4 codes in this row; its hole must lie within them, got range\(3, 5\)"):
        knows.infill([given], [{"view": range(3, 5)}], [5], CHOOSING)
    with pytest.raises(ValueError, match="train it with the objective span"):
        world.infill([given], [{"view": range(1)}], [5], CHOOSING)


def test_what_is_given_in_another_order_is_woven_in_that_order(world: OpenWorld) -> None:
    caption, picture = world.dataset.value("train", "words", 0), world.dataset.value("train", "view", 0)
    first, second = world.prompts([{"words": caption, "view": picture}, {"view": picture, "words": caption}])
    assert first[1] == world.vocabulary.indicator(world.vocabulary.index("words"))
    assert second[1] == world.vocabulary.indicator(world.vocabulary.index("view"))
    assert sorted(first) == sorted(second) and first[0] == world.vocabulary.bos


def test_a_sequence_that_breaks_the_grammar_is_counted_as_illegal(world: OpenWorld) -> None:
    bos, eos = world.vocabulary.bos, world.vocabulary.eos
    whole, broken = world.read([np.array([bos, eos]), np.array([bos, bos, eos])])
    assert whole.legal and not broken.legal and broken.values == {}
    with pytest.raises(IllegalToken, match=BOS):
        world.grammar.parse([bos, bos, eos])


def test_an_unknown_stream_and_a_value_that_is_too_long_are_refused(world: OpenWorld) -> None:
    with pytest.raises(ValueError, match="no stream 'sound'; it has view, words"):
        world.prompts([{"sound": "boo"}])
    with pytest.raises(ValueError, match=r"this words is .* codes long, and the world has seen at most"):
        world.prompts([{"words": "zebra " * 50}])


def test_a_world_that_learnt_from_several_sets_is_measured_on_one(tiny_world: Artifact) -> None:
    (place,) = tiny_world.inputs.values()
    several = dataclasses.replace(tiny_world, inputs={"tokens.one": place, "tokens.two": place})
    assert open_world(several, "two").streams == open_world(several).streams == {"view": "image", "words": "text"}
    with pytest.raises(ValueError, match="world did not learn from 'three'; it learnt from one, two"):
        open_world(several, "three")


def test_only_a_world_model_is_opened(tiny_world: Artifact) -> None:
    with pytest.raises(ValueError, match=r"tokens .encode_dataset. leaves a tokens, not a world model"):
        open_world(tiny_world.input("tokens"))


def test_an_unknown_oracle_is_refused_with_the_known_ones() -> None:
    assert oracle_of(None) is None
    with pytest.raises(ValueError, match="no oracle called 'delphi'; there are pong, shapes"):
        oracle_of("delphi")


def test_directions_are_all_pairs_that_can_be_judged() -> None:
    streams = {"words": "text", "view": "image", "noise": "audio", "push": "action", "clip": "video"}
    judged = {direction.name for direction in directions(streams, ORACLES["shapes"])}
    looks = ("words", "view", "clip")
    expected = {f"{a}_to_{b}" for a in (*looks, "noise") for b in (*looks, "noise") if a != b}
    assert judged == expected | {"push_to_clip", "clip_to_push"}
    assert len(directions(streams, None)) == 20


def test_samples_are_chosen_by_the_seed_each_once(world: OpenWorld) -> None:
    chosen = pick_samples(world.dataset, "train", ("words", "view"), 5, 0)
    assert len(set(chosen)) == 5 and chosen == sorted(chosen) and max(chosen) < 12
    assert chosen == pick_samples(world.dataset, "train", ("words", "view"), 5, 0)
    assert chosen != pick_samples(world.dataset, "train", ("words", "view"), 5, 1)
    assert pick_samples(world.dataset, "train", ("view",), 50, 0) == list(range(12))


def test_row_seeds_differ_by_seed_purpose_and_row() -> None:
    seeds = [row_seed(seed, purpose, row) for seed in (0, 1) for purpose in ("a", "ab") for row in (0, 1, 2)]
    assert len(set(seeds)) == 12 and all(0 <= seed < 1 << 63 for seed in seeds)


def test_a_code_among_equally_likely_ones_costs_the_logarithm_of_their_number(world: OpenWorld) -> None:
    before = bits(world, "validation", 0, lambda: None)
    state = {name: value.clone() for name, value in world.model.state_dict().items()}
    try:
        world.model.output.data[world.vocabulary.span(world.vocabulary.index("view")).start :].zero_()
        after = bits(world, "validation", 0, lambda: None)
    finally:
        world.model.load_state_dict(state)
    assert after.per_token["view"] == pytest.approx(np.log2(17), abs=1e-5)
    assert after.per_token["view"] != before.per_token["view"]


def test_a_stop_is_heard_between_batches_and_the_evaluation_can_begin_again(world: OpenWorld, tiny_world: Artifact, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    worker = Worker(stopping=lambda: len(seen) == 3, report=lambda done, total, unit, notes: seen.append((done, total)))
    with pytest.raises(Interrupted):
        execute(STAGE, "scores", SETTINGS, {"world": tiny_world}, tmp_path / "scores" / "f", worker)
    assert len(seen) == 3
    seen.clear()
    done = execute(
        STAGE, "scores", SETTINGS, {"world": tiny_world}, tmp_path / "scores" / "f", dataclasses.replace(worker, stopping=lambda: False)
    )
    assert seen[-1][0] == seen[-1][1] and done.counts["figures"] == len(json.loads(done.content("figures.json")))


def test_bits_and_legal_mass_are_those_of_every_token_taken_alone(world: OpenWorld) -> None:
    rows = range(world.tokens.samples("validation"))
    order, codes = _documents(world, "validation", list(rows), 3)
    woven = weave(world.grammar, order, codes)
    nats, counts, legal = dict.fromkeys(world.streams, 0.0), dict.fromkeys(world.streams, 0), list[float]()
    for document in np.split(woven.tokens, np.cumsum(woven.lengths)[:-1]):
        tokens = torch.from_numpy(document)
        hidden = world.model(tokens, torch.arange(len(tokens)), PackedAttention((Run(1, len(tokens)),)))
        probabilities = torch.softmax(world.model.logits(hidden), dim=-1).double()
        state = world.grammar.step(world.grammar.start(), int(tokens[0]))
        for at, token in enumerate(document[1:].tolist()):
            may = [i for ids in world.grammar.legal(state) for i in ids]
            mass = probabilities[at, may].sum().item()
            legal.append(np.log(mass))
            if state.stream >= 0 and len(may) > 1:
                name = world.vocabulary.streams[state.stream].name
                nats[name] -= np.log(probabilities[at, token].item() / mass)
                counts[name] += 1
            state = world.grammar.step(state, token)
    found = bits(world, "validation", 3, lambda: None)
    for name in world.streams:
        assert found.per_token[name] == pytest.approx(nats[name] / counts[name] / np.log(2), rel=1e-4)
    assert found.legal_mass == pytest.approx(np.exp(np.mean(legal)), rel=1e-4)


def test_what_a_tokenizer_alone_loses_is_measured(world: OpenWorld) -> None:
    oracle = ORACLES["shapes"]
    assert kept(world, "validation", "words", oracle, 5, 0) == 1.0
    loses = kept(world, "validation", "view", oracle, 5, 0)
    assert loses is not None and loses < 0.5  # its tokenizer never learnt anything
    assert kept(world, "nowhere", "view", oracle, 5, 0) is None
