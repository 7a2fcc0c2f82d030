"""Trains a world model on the tokens of a dataset: one transformer for all streams, in every order."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NOT_IN_OUTPUT, FeaturesRef, Settings, TokensRef
from worldloom.stages.training_settings import TrainingSettings

if TYPE_CHECKING:
    from worldloom.stages.artifact import Artifact
    from worldloom.stages.dataset import Tokens
    from worldloom.stages.mixture import Mixture
    from worldloom.stages.sights import Sights
    from worldloom.stages.token_batches import TokenBatches
    from worldloom.stages.training import Before
    from worldloom.stages.worker import Worker
    from worldloom.world_model.example import Example
    from worldloom.world_model.grammar import Grammar
    from worldloom.world_model.legal_offsets import LegalMass
    from worldloom.world_model.transformer import Shape, WorldModel

SENTINELS = 32  # spans of a document at most, where they are learnt
SETTLED = (2_000, 60_000)  # labels, at least and at most, that being legal without the grammar is fitted to behind the training
Share = Annotated[float, Field(ge=0, lt=1)]
ObjectiveName = Literal["next_token", "masked", "span"]


class Model(Settings):
    """The transformer's shape."""

    width: PositiveInt = Field(default=256, description="features of a token")
    depth: PositiveInt = Field(default=6, description="blocks")
    heads: PositiveInt = Field(default=4, description="of queries; they share the width")
    kv_heads: PositiveInt | None = Field(default=None, description="of keys and values; null: as many as heads")
    ff: PositiveInt | None = Field(default=None, description="width of the feed-forward layers; null: 8/3 of the width, in steps of 32")
    rope_theta: PositiveFloat = Field(default=10_000.0, description="slowest rotary wavelength / 2 pi, in tokens")
    tied: bool = Field(default=False, description="one matrix for the token embedding and the output layer")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width ({self.width}) must be a multiple of twice the heads ({self.heads}), so that each is of even width")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


class Context(Settings):
    """One of several trainings in a row, each on longer rows than the last (Large World Model, arXiv:2402.08268, section 3).

    Samples that are longer than its rows are left to those whose rows are the longest, so that contexts grow with the rows.
    """

    row_length: PositiveInt = Field(description="tokens of a row")
    steps: PositiveInt = Field(description="optimizer steps; warm-up and schedule begin again")
    rope_theta: PositiveFloat | None = Field(
        default=None,
        description="slowest rotary wavelength / 2 pi, in tokens; null: as in `model`. Longer rows want a larger one: "
        "LWM takes 1e6 for 32 thousand tokens, 1e7 for 128, 2.5e7 for 512, 5e7 for a million",
    )
    rows: PositiveInt | None = Field(default=None, description="rows of a step; null: as in the stage")
    learning_rate: PositiveFloat | None = Field(default=None, description="at its highest; null: as in the stage")
    weights: dict[str, NonNegativeFloat] | None = Field(default=None, description="as in the stage; null: those of the stage")


class Sees(Settings):
    """Features of a picture ahead of each document: vectors, and no codes, in places that are reserved for them."""

    features: FeaturesRef = Field(description="name of a stage that embeds the dataset of the tokens")
    unseen: Annotated[float, Field(ge=0, lt=1, description="share of the documents that learn to go without")] = 0.1


class TrainWorldModel(TrainingSettings):
    """One training; a step learns from `rows` x `row_length` tokens, all workers together."""

    run: Literal["train_world_model"]
    tokens: TokensRef | Annotated[dict[TokensRef, PositiveFloat], Field(min_length=1)] = Field(
        description="name of a stage that encodes a dataset; or several, each with its share of the samples that are learnt from"
    )
    model: Model = Model()
    objectives: dict[ObjectiveName, PositiveFloat] = Field(
        {"next_token": 1.0}, min_length=1, description="the share of documents that each serves, in proportion"
    )
    rows: PositiveInt = Field(16, description="rows of a step; a multiple of the training workers")
    row_length: PositiveInt = Field(256, description="tokens of a row; documents are packed into it and never cut")
    weights: dict[str, NonNegativeFloat] = Field(
        {}, description="stream, or order -> what a label of it counts in the loss; 1 where not said"
    )
    loss_mean: Literal["token", "stream"] = Field(
        "token", description="token: all labels of a batch count alike; stream: all streams do, however many labels they have"
    )
    stages: tuple[Context, ...] = Field(
        (), description="trainings on longer and longer rows, each from what the last one left; in place of steps and row_length"
    )
    sees: Sees | None = Field(None, description="features of a picture, projected into the stream ahead of all segments; null: nothing")
    drop: dict[str, Share] = Field({}, description="stream -> the share of samples in which it is left out")
    full_share: Annotated[
        float, Field(ge=0, le=1, description="share of labels that take the softmax over the whole vocabulary, for all of them")
    ] = 1 / 16
    legality: Annotated[float, Field(ge=1)] | None = Field(
        None,
        description="how often being legal counts at these labels in the last part of the training; null: as if all labels were such, "
        "1 / full_share, so that the world stays legal without the grammar",
    )
    legality_from: Annotated[
        float,
        Field(ge=0, le=1, description="share of the steps before that part: until then it counts once, which learns sooner what is likely"),
    ] = 0.9
    parts: Annotated[PositiveInt, NOT_IN_OUTPUT] = Field(
        1, description="backward passes that a worker's rows are split into, to save memory"
    )
    checkpoint_activations: Annotated[bool, NOT_IN_OUTPUT] = Field(
        False, description="keep only what goes into each block and compute the rest again on the way back: less memory, a third more work"
    )
    ema: Annotated[float | None, Field(ge=0, lt=1)] = Field(
        None,
        description="share of the weights' moving average that each update keeps, in its first updates less; "
        "where it is given, the average is the model that is saved. null: the weights of the last step",
    )
    learning_rate: PositiveFloat = Field(2e-3, description="at its highest, after the warm-up")
    spike_guard: bool = Field(
        True, description="where a loss leaps and stays up: goes back to a checkpoint from before, and passes over the batches that did it"
    )
    weight_decay: NonNegativeFloat = Field(0.05, description="decoupled, on matrices only")

    @model_validator(mode="after")
    def _sees_one_dataset(self) -> Self:
        if self.sees is not None and not isinstance(self.tokens, str):
            raise ValueError(f"sees.features ({self.sees.features}) are of one dataset, and tokens names {len(self.tokens)} sets; name one")
        return self

    @model_validator(mode="after")
    def _steps_are_said_once(self) -> Self:
        if not self.stages:
            return self
        for name in ("steps", "row_length"):
            value, usual = getattr(self, name), type(self).model_fields[name].default
            if value != usual:
                raise ValueError(f"{name} is {value}, but each of the {len(self.stages)} stages has its own; leave out {name} or stages")
        return self

    @property
    def all_stages(self) -> tuple["TrainWorldModel", ...]:
        """The settings of each training in turn."""
        if not self.stages:
            return (self,)
        made = []
        for stage in self.stages:
            said = {name: getattr(stage, name) for name in Context.model_fields if getattr(stage, name) is not None}
            theta = said.pop("rope_theta", self.model.rope_theta)
            made.append(self.model_copy(update={**said, "stages": (), "model": self.model.model_copy(update={"rope_theta": theta})}))
        return tuple(made)


def run(settings: TrainWorldModel, inputs: Mapping[str, "Artifact"], out: Path, worker: "Worker") -> None:
    """Trains; rank 0 then writes the model, its figures and its card."""
    import torch

    from worldloom.stages.training import Before
    from worldloom.stages.worker import Worker
    from worldloom.world_model.load import save_pretrained
    from worldloom.world_model.transformer import WorldModel

    if (out / "card.json").exists():
        return
    tokens = tokens_of(settings, inputs)
    sights = sights_of(settings, inputs, tokens)
    grammar = grammar_of(settings, tokens, sights)
    generator = torch.Generator().manual_seed(settings.seed)
    model: WorldModel | None = None
    before = Before(total=sum(stage.steps for stage in settings.all_stages))
    # All of them first: a mistake in the last must not wait for the others to have trained.
    longest = max(stage.row_length for stage in settings.all_stages)
    batches = [_batches(stage, tokens, sights, grammar, worker, stage.row_length < longest) for stage in settings.all_stages]
    for stage, its_batches in zip(settings.all_stages, batches, strict=True):
        # Not the same module again: DeepSpeed leaves its marks on it.
        longer = WorldModel(shape_of(stage.model, grammar.vocabulary.size, sights), generator)
        if model is not None:
            longer.load_state_dict(model.state_dict())
        model = longer
        before = _train(stage, its_batches, grammar, model, out, worker, before)
    assert model is not None
    if worker.rank == 0:
        last = settings.all_stages[-1]
        mass = _make_legal(last, _batches(last, tokens, sights, grammar, Worker(), last.row_length < longest), grammar, model)
        save_pretrained(out / "world", model, grammar)
        _report(settings, tokens, batches, model, mass, out)


def _batches(
    settings: TrainWorldModel,
    tokens: "Tokens | Mixture",
    sights: "Sights | None",
    grammar: "Grammar",
    worker: "Worker",
    leave_longer: bool,
) -> "TokenBatches":
    """What one training learns from; ValueError where its settings do not go with the tokens."""
    from worldloom.stages.token_batches import TokenBatches
    from worldloom.world_model.next_token import check_weights

    check_weights(grammar, settings.weights)
    return TokenBatches(
        tokens,
        grammar,
        "train",
        settings.rows,
        settings.row_length,
        settings.seed,
        worker.rank,
        worker.world_size,
        settings.drop,
        sights,
        settings.sees.unseen if settings.sees is not None else 0.0,
        leave_longer,
    )


def _train(
    settings: TrainWorldModel,
    batches: "TokenBatches",
    grammar: "Grammar",
    model: "WorldModel",
    out: Path,
    worker: "Worker",
    before: "Before",
) -> "Before":
    """One training, in place, behind those `before` it."""
    from worldloom.stages.learner import Player, resolve_precision
    from worldloom.stages.training import train
    from worldloom.stages.world_model_learner import Legality, WorldModelLearner, objectives

    model.recompute = settings.checkpoint_activations
    precision = resolve_precision(settings.precision)
    player = Player("world", model, settings.learning_rate, settings.betas, settings.weight_decay, precision, settings.ema)
    shares = objectives(settings.objectives, settings.full_share, settings.weights)
    legality = Legality(settings.legality, round(settings.legality_from * settings.steps))
    learner = WorldModelLearner(model, grammar, player, shares, settings.seed, settings.parts, settings.loss_mean == "stream", legality)
    return train(learner, settings, batches, out, worker, out.name, before)


def _make_legal(settings: TrainWorldModel, batches: "TokenBatches", grammar: "Grammar", model: "WorldModel") -> "LegalMass | None":
    """Fits, in place, what the trained model lacks to be legal by itself, on the documents of the first `batches`; None where one matrix
    is embedding and output layer.
    """
    import torch

    from worldloom.stages.world_model_learner import objectives
    from worldloom.world_model.legal_offsets import fit_legal_offsets

    if settings.model.tied:
        return None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # No hidden code takes the softmax over all ids.
    makes = [make for name, (make, _) in objectives(settings.objectives, full_share=1.0, weights={}).items() if name != "masked"]
    wanted = min(max(settings.steps * settings.rows * settings.row_length // 20, SETTLED[0]), SETTLED[1])

    def examples() -> Iterator[tuple["Example", "torch.Tensor | None"]]:
        found = 0
        for batch, _ in batches.after(None):
            seen = None if batch.seen is None else torch.from_numpy(batch.seen).to(device)
            for make in makes:
                example = make(batch.woven, grammar, batch.places, settings.seed).to(device)
                found += len(example.inputs)
                yield example, seen
            if found >= wanted:
                return

    mass = fit_legal_offsets(model.to(device), examples() if makes else ())
    model.cpu()
    return mass


def finish(settings: TrainWorldModel, inputs: Mapping[str, "Artifact"], out: Path) -> dict[str, Any]:
    """What the model was trained with."""
    import json

    figures = json.loads((out / "figures.json").read_bytes())
    steps = sum(stage.steps for stage in settings.all_stages)
    return {"parameters": int(figures["world.parameters"]), "steps": steps, "tokens": int(figures["world.tokens_seen"])}


def grammar_of(settings: TrainWorldModel, tokens: "Tokens | Mixture", sights: "Sights | None") -> "Grammar":
    """The grammar of a world that learns from the tokens, and sees features ahead of them."""
    from worldloom.world_model.grammar import Grammar
    from worldloom.world_model.vocabulary import Vocabulary

    streams = {name: stream._asdict() for name, stream in tokens.streams.items()}
    sentinels = SENTINELS if "span" in settings.objectives else 0
    return Grammar(Vocabulary.of(streams, tokens.clock, sentinels, sights.count if sights is not None else 0))


def tokens_of(settings: TrainWorldModel, inputs: Mapping[str, "Artifact"]) -> "Tokens | Mixture":
    """What it learns from, by the fields of its settings."""
    from worldloom.stages.dataset import Tokens
    from worldloom.stages.mixture import Mixture

    if isinstance(settings.tokens, str):
        return Tokens(inputs["tokens"])
    # In the order of their names: that of a mapping is no part of the settings.
    return Mixture({name: Tokens(inputs[f"tokens.{name}"]) for name in sorted(settings.tokens)}, settings.tokens)


def sights_of(settings: TrainWorldModel, inputs: Mapping[str, "Artifact"], tokens: "Tokens | Mixture") -> "Sights | None":
    """The features of the pictures that it sees ahead of the tokens, by the fields of its settings."""
    from worldloom.stages.dataset import Tokens
    from worldloom.stages.sights import Sights

    if settings.sees is None:
        return None
    assert isinstance(tokens, Tokens), "settings see to it"
    return Sights(inputs["sees.features"], tokens)


def shape_of(model: Model, vocab_size: int, sights: "Sights | None" = None) -> "Shape":
    """The transformer that `model` describes, for a vocabulary, and for what is seen."""
    from worldloom.world_model.transformer import Shape

    return Shape(
        vocab_size=vocab_size,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        kv_heads=model.kv_heads or model.heads,
        ff=model.ff or -(-model.width * 8 // 3 // 32) * 32,
        head_width=model.width // model.heads,
        rope_theta=model.rope_theta,
        tied=model.tied,
        ahead=sights.count if sights is not None else 0,
        seen_width=sights.width if sights is not None else 0,
    )


def _report(
    settings: TrainWorldModel, tokens: Any, batches: "Sequence[TokenBatches]", model: Any, mass: "LegalMass | None", out: Path
) -> None:
    from worldloom.stages.card import Block, Card, Curves, Table, write_card, write_figures
    from worldloom.stages.metrics import read

    parameters = sum(parameter.numel() for parameter in model.parameters())
    last = read(out / "logs" / "metrics.jsonl")[-1]
    seen = int(last["tokens"])
    write_figures(out, {"world.parameters": parameters, "world.tokens_seen": seen})
    streams = tuple(f"loss/{name}" for name in tokens.streams)
    others = [
        Curves(series=tuple(f"loss/{objective}.{name}" for name in tokens.streams), title=title, unit="nats per code")
        for objective, title in (("masked", "Loss of each stream's hidden codes"), ("span", "Loss of each stream's spans"))
        if objective in settings.objectives
    ]
    rows = (
        ("parameters", parameters),
        ("vocabulary", model.shape.vocab_size),
        ("tokens seen", seen),
        ("floating-point operations", f"{last['operations']:.3g}"),
        ("samples", tokens.samples("train")),
        ("samples left to longer rows", ", then ".join(str(its_batches.left_out) for its_batches in batches)),
        ("steps", sum(stage.steps for stage in settings.all_stages)),
        *([("probability of legal ids without the grammar", f"{mass.before:.2%}, fitted {mass.after:.2%}")] if mass is not None else []),
        ("tokens a step, at most", ", then ".join(str(stage.rows * stage.row_length) for stage in settings.all_stages)),
    )
    blocks: tuple[Block, ...] = (
        Curves(series=streams, title="Loss of each stream", unit="nats per token"),
        *others,
        Curves(series=("loss/order", "loss/full"), title="Loss of the order of streams, and of the full softmax", unit="nats per token"),
        Curves(series=("gradient_norm/world",), title="Gradient norm before clipping"),
        Curves(series=("learning_rate",), title="Learning rate"),
        Curves(series=("mfu",), title="Share of the device's rate of matrix products that training reached (MFU)"),
        Table(columns=("what", "how much"), rows=rows),
    )
    write_card(out, Card(title="World model", blocks=blocks))


STAGE = StageKind(
    name="train_world_model",
    settings=TrainWorldModel,
    run=run,
    finish=finish,
    produces="world_model",
    version=5,
    placement="gang",
)
