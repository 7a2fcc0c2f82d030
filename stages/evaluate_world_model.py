"""Measures a world model and shows what it makes: bits per token, answers judged by the dataset's oracle, sequences from nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from worldloom.stages.artifact import Artifact
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import StageSettings, WorldRef
from worldloom.stages.worker import Worker

ANSWERING, DREAMING = 0.25, 1.0  # temperature, where something is given and where nothing is
FILLING = 12  # steps in which a world writes that learnt from hidden codes and not from next tokens


class EvaluateWorldModel(StageSettings):
    """One evaluation; the same settings give the same figures."""

    run: Literal["evaluate_world_model"]
    world: WorldRef
    tokens: str | None = Field(
        None, description="which set of tokens is evaluated on, where the world learnt from several; null: the first by name"
    )
    prompts: PositiveInt = Field(200, description="samples asked about in every direction on every split")
    most_codes: PositiveInt = Field(20_000, description="codes that a direction writes on a split: to longer streams it asks less often")
    unconditional: PositiveInt = Field(64, description="sequences written from nothing")
    rollouts: NonNegativeInt = Field(100, description="samples of every split that are rolled out, where clips are on a clock")
    rollout_given: PositiveInt = Field(1, description="true frames that a rollout begins with; from two on it shows what moves already")
    temperature: NonNegativeFloat | dict[str, NonNegativeFloat] = Field(
        ANSWERING,
        description="of answers and rollouts; 0 takes the likeliest token. Or one for each stream named, 0.25 for the others: what may "
        "come at any time, as in sounds, wants a higher one, or it never comes",
    )
    dream_temperature: NonNegativeFloat = Field(DREAMING, description="of sequences from nothing")
    top_k: NonNegativeInt = Field(0, description="tokens to choose from at most; 0 for all")
    top_p: Annotated[float, Field(gt=0, le=1, description="probability that the tokens to choose from make up")] = 1.0
    guidance: NonNegativeFloat = Field(1.0, description="how strongly a prompt counts in answers; 1 is the model's own measure")
    fill_steps: NonNegativeInt | None = Field(
        None,
        description="answers of fixed shape are written in so many steps, by hidden codes; 0: token by token. null: token by token, or in "
        "12 steps where the world did not learn next tokens",
    )
    varied: PositiveInt = Field(8, description="samples of every direction that are asked several times, to see how varied answers are")
    answers: Annotated[int, Field(ge=2, description="times that each of them is asked")] = 8
    batch: PositiveInt = Field(100, description="sequences written side by side")
    shown: NonNegativeInt = Field(24, description="examples of every kind on the card")
    seed: NonNegativeInt = 0


def run(settings: EvaluateWorldModel, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Everything, in one worker; short enough to begin again if it is stopped."""
    if worker.rank or (out / "card.json").exists():
        return
    from worldloom.stages.card import write_card, write_figures
    from worldloom.stages.deterministic import deterministic
    from worldloom.stages.evaluation_card import evaluation_card
    from worldloom.stages.evaluation_figures import figures_of, measure
    from worldloom.stages.open_world import open_world

    with deterministic(worker.threads):
        measured = measure(open_world(inputs["world"], settings.tokens), settings, worker)
    write_figures(out, figures_of(measured))
    write_card(out, evaluation_card(measured, settings.shown, out))


def finish(settings: EvaluateWorldModel, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Says how many figures there are."""
    import json

    return {"figures": len(json.loads((out / "figures.json").read_bytes()))}


STAGE = StageKind(
    name="evaluate_world_model",
    settings=EvaluateWorldModel,
    run=run,
    finish=finish,
    produces="scores",
    version=6,
    placement="shards",
    parallelism=lambda settings, inputs: 1,
)
