"""Fits the bins of an action tokenizer to one stream of a dataset: actions, rewards or ends of episodes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from worldloom.stages.artifact import Artifact
from worldloom.stages.estimate import Estimate
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import ActionStream, DatasetRef, StageSettings, StreamName
from worldloom.stages.worker import Worker
from worldloom.tokenizers.action_settings import Binning, Uniform


class TrainActionTokenizer(StageSettings):
    """One action tokenizer; streams of discrete choices take their choices as codes, whatever `bins` says."""

    run: Literal["train_action_tokenizer"]
    data: DatasetRef
    stream: Annotated[str, StreamName(("action",))] = Field(description="the stream of actions to learn")
    bins: Binning = Uniform()
    most_samples: PositiveInt = Field(100_000, description="samples that the bins are fitted to, evenly spaced over the training split")


def run(settings: TrainActionTokenizer, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Everything, in one worker; short enough to begin again if it is stopped."""
    if worker.rank or (out / "card.json").exists():
        return
    from worldloom.stages.action_figures import report_actions
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.value_batches import Values, spaced
    from worldloom.tokenizers.action import ActionTokenizer

    dataset = Dataset(inputs["data"])
    stream = dataset.streams.get(settings.stream)
    if not isinstance(stream, ActionStream):
        found = ", ".join(f"{name} ({about.kind})" for name, about in dataset.streams.items())
        raise ValueError(f"stream: {settings.stream!r} is no stream of actions of this dataset, which has {found}")
    values = Values(dataset, "train", settings.stream)
    if not len(values):
        raise ValueError(f"no sample of the split 'train' has the stream {settings.stream!r}; there is nothing to fit bins to")
    rows = values[spaced(len(values), settings.most_samples)].reshape(-1, stream.dimensions)
    tokenizer = ActionTokenizer.fit(rows, stream.steps, stream.choices, settings.bins)
    report_actions(settings, tokenizer, dataset, out)
    tokenizer.save_pretrained(out / "tokenizer")
    worker.report(1, 1, "models", {})


def finish(settings: TrainActionTokenizer, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """What there is, read back."""
    import json
    from math import prod

    config = json.loads((out / "tokenizer" / "config.json").read_bytes())
    return {"codebook_size": config["codebook_size"], "codes_per_sample": prod(config["shape"])}


def estimate(settings: TrainActionTokenizer, inputs: Mapping[str, Estimate]) -> Estimate:
    """Codes of one sample."""
    stream = (inputs["data"].streams or {}).get(settings.stream)
    return Estimate(codes=stream.steps * stream.dimensions) if isinstance(stream, ActionStream) else Estimate()


STAGE = StageKind(
    name="train_action_tokenizer",
    settings=TrainActionTokenizer,
    run=run,
    finish=finish,
    produces="tokenizer",
    version=2,
    placement="shards",
    parallelism=lambda settings, inputs: 1,
    estimate=estimate,
)
