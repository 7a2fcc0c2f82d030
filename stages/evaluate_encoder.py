"""Measures a trained encoder on a dataset and shows what it sees: neighbours, a probe, words, captions, hidden patches, attention."""

from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from worldloom.stages.artifact import Artifact
from worldloom.stages.encoder_settings import LabelBy
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import DatasetRef, EncoderRef, StageSettings, StreamName
from worldloom.stages.worker import Worker

PROMPTS = ("{text}", "a picture of a {text}", "a {colour} {shape} at the {place}", "this is a {colour} {shape}, {place}")


class EvaluateEncoder(StageSettings):
    """One evaluation; the same settings give the same figures. What an encoder has not learnt is left out, and the card says so."""

    run: Literal["evaluate_encoder"]
    encoder: EncoderRef
    data: DatasetRef = Field(description="name of a stage that makes or imports a dataset; its training split is what is compared with")
    stream: Annotated[str, StreamName(("image",))] = Field(description="the pictures to look at")
    text: Annotated[str, StreamName(("text",))] | None = Field(
        None, description="stream that describes each picture: its classes, and its caption for encoders that read; null: pictures only"
    )
    label_by: tuple[LabelBy, ...] = Field(
        ("text",), description="what of the text is a class, each measured on its own; [] where texts are captions and name no classes"
    )
    measured: PositiveInt = Field(2_000, description="pictures of each split, at most")
    neighbours: PositiveInt = Field(20, description="of each picture that name its class")
    temperature: PositiveFloat = Field(0.07, description="of their votes, which count exp(cosine / temperature)")
    sides: tuple[Annotated[int, Field(ge=8, le=1024)], ...] = Field(
        (), description="pixels of other sides that pictures are brought to, to see how much of the k-NN accuracy is kept"
    )
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        PROMPTS,
        description="texts that stand for classes, {text}, {shape}, {colour} and {place} being their names; all of a class are averaged",
    )
    candidates: Annotated[int, Field(ge=2)] = Field(
        100, description="pairs of picture and caption, no two of which say the same, to find again"
    )
    recall_at: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field((1, 5), description="nearest that are looked through")
    captioned: PositiveInt = Field(200, description="pictures of each split that captions are written for, at most")
    top_p: Annotated[float, Field(gt=0, le=1, description="probability that the tokens to draw from make up")] = 0.9
    beams: PositiveInt = Field(4, description="captions that a beam search keeps")
    shown: PositiveInt = Field(8, description="pictures of every kind on the card")
    seed: NonNegativeInt = Field(0, description="of drawn captions, hidden patches, and the untrained encoder that stands beside")

    @field_validator("prompts")
    @classmethod
    def _prompts_name_classes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in value:
            try:
                named = names_in(prompt)
            except ValueError as error:
                raise ValueError(f"prompts: {prompt!r} cannot be read: {error}; double a brace that is meant as one") from None
            if not named or named - set(get_args(LabelBy)) or (len(named) > 1 and "text" in named):
                raise ValueError(f"prompts: {prompt!r} must name {{text}} alone, or some of {{shape}}, {{colour}} and {{place}}")
        return value

    @model_validator(mode="after")
    def _recalls_are_of_candidates(self) -> Self:
        if max(self.recall_at) >= self.candidates:
            raise ValueError(f"recall_at ({max(self.recall_at)}) must be below candidates ({self.candidates}), or all are found")
        return self


def names_in(prompt: str) -> frozenset[str]:
    """What stands in its braces; ValueError where they do not match, or hold more than a name."""
    found = set[str]()
    for _, name, form, conversion in Formatter().parse(prompt):
        if form or conversion:
            raise ValueError(f"behind {name!r} stands how to write it, and braces are for names alone")
        found |= set() if name is None else {name}
    return frozenset(found)


def run(settings: EvaluateEncoder, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Everything, in one worker; short enough to begin again if it is stopped."""
    if worker.rank or (out / "card.json").exists():
        return
    from worldloom.stages.card import write_card, write_figures
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.deterministic import deterministic
    from worldloom.stages.encoder_card import encoder_card
    from worldloom.stages.encoder_evaluation import measure, open_judged

    with deterministic(worker.threads):
        measured = measure(open_judged(inputs["encoder"]), Dataset(inputs["data"]), settings, worker)
        card = encoder_card(measured, settings, out)
    write_figures(out, measured.figures)
    write_card(out, card)


def finish(settings: EvaluateEncoder, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Says how many figures there are."""
    import json

    return {"figures": len(json.loads((out / "figures.json").read_bytes()))}


STAGE = StageKind(
    name="evaluate_encoder",
    settings=EvaluateEncoder,
    run=run,
    finish=finish,
    produces="scores",
    version=3,
    placement="shards",
    parallelism=lambda settings, inputs: 1,
)
