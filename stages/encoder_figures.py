"""What a trained encoder is worth: its neighbours and a linear probe, beside raw pixels and its first weights, and what it sees."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from worldloom.stages.card import Block, Card, Cell, Curves, Table, write_card, write_figures
from worldloom.stages.dataset import Dataset
from worldloom.stages.deterministic import deterministic
from worldloom.stages.encoder_features import Read, features_of, own_pixels
from worldloom.stages.encoder_learner import EncoderLearner, SimMimLearner
from worldloom.stages.encoder_pictures import looks, show_attention, show_redrawn
from worldloom.stages.encoder_scores import linear_probe, weighted_knn
from worldloom.stages.labels import Labels
from worldloom.stages.pretrain_encoder import PretrainEncoder
from worldloom.stages.value_batches import Values, spaced
from worldloom.world_model.encoders.build import Network
from worldloom.world_model.encoders.joined import Namer

SHOWN = 8  # pictures
UNSEEN = ("held_out", "validation")
LOSSES = (
    *("loss/labels", "loss/teacher", "loss/deit", "loss/hidden_pixels", "loss/agreement"),
    *("loss/hidden_patches", "loss/koleo", "loss/contrastive", "loss/caption"),
)


def report_encoder(
    settings: PretrainEncoder,
    first: Network,
    learner: EncoderLearner,
    dataset: Dataset,
    labels: Labels | None,
    out: Path,
    threads: int,
) -> None:
    """Writes figures.json, pictures and card.json; `first` is the encoder that training began with."""
    name, encoder, first = settings.stream, learner.judged.eval(), first.eval()
    splits = {split: values for split in ("train", *UNSEEN) if len(values := Values(dataset, split, name))}
    figures: dict[str, float] = {f"{name}.parameters": sum(each.numel() for each in encoder.parameters())}
    blocks: list[Block] = []
    with deterministic(threads):
        if labels is not None and len(splits) > 1:
            table, found = _scores(splits, labels, settings.measured, lambda x: encoder(x).pooled, lambda x: first(x).pooled)
            figures |= {f"{name}.{figure}": round(value, 4) for figure, value in found.items()}
            blocks.append(table)
            if learner.namer is not None:
                figures |= {
                    f"{name}.{figure}": round(value, 4) for figure, value in _named(splits, labels, settings.measured, learner.namer)
                }
        shown = splits[list(splits)[-1]]
        some = shown[spaced(len(shown), SHOWN)]
        blocks += _pictures(learner, some, out)
    blocks += [
        Curves(series=("knn",), title=f"k-NN accuracy on {_unseen(splits)} while the encoder learnt ({name})"),
        Curves(series=LOSSES, title=f"Loss of the encoder of {name}"),
        Curves(series=("accuracy",), title=f"Share of the training batch named rightly ({name})"),
        Curves(series=("teacher_entropy",), title=f"Entropy of what the teacher says ({name})", unit="nats"),
        Curves(series=("gradient_norm/encoder",), title="Gradient norm before clipping"),
        Curves(series=("learning_rate",), title="Learning rate"),
    ]
    write_figures(out, figures)
    headline = tuple(figure for figure in (f"{name}.accuracy", f"{name}.knn") if figure in figures)[:1]
    write_card(out, Card(title=f"Encoder of {name} ({settings.objective.type})", blocks=tuple(blocks), headline=headline))


def _scores(splits: dict[str, Values], labels: Labels, most: int, trained: Read, first: Read) -> tuple[Table, dict[str, float]]:
    """Accuracies on every split that training has not seen, the bank being the training's; figures of the first of them."""
    ways: dict[str, Read] = {"trained": trained, "first weights": first, "pixels": own_pixels}
    chosen = {split: spaced(len(values), most) for split, values in splits.items()}
    answers = {split: torch.from_numpy(labels.of[split][values.samples[chosen[split]]]) for split, values in splits.items()}
    rows: list[tuple[Cell, ...]] = []
    figures: dict[str, float] = {}
    unseen = [split for split in UNSEEN if split in splits]
    for way, read in ways.items():
        features = {split: features_of(values, chosen[split], read) for split, values in splits.items()}
        asked = (features["train"], answers["train"], torch.cat([features[split] for split in unseen]), len(labels.classes))
        counts = [len(chosen[split]) for split in unseen]
        near, probed = (torch.split(say(*asked), counts) for say in (weighted_knn, linear_probe))
        for place, split in enumerate(unseen):
            by_near, by_probe = (float((said[place] == answers[split]).double().mean()) for said in (near, probed))
            rows.append((way, split, len(answers[split]), round(by_near, 4), round(by_probe, 4)))
            if not place:
                ending = {"trained": "", "first weights": "_untrained", "pixels": "_pixels"}[way]
                figures |= {f"knn{ending}": by_near, f"linear_probe{ending}": by_probe}
    columns = ("features", "split", "pictures", "k-NN accuracy", "linear probe")
    return Table(columns=columns, rows=tuple(rows), title=f"{len(labels.classes)} classes"), figures


def _named(splits: dict[str, Values], labels: Labels, most: int, namer: Namer) -> Iterator[tuple[str, float]]:
    """The share of pictures that what was trained names rightly, of the first split that training has not seen."""
    namer.model.eval()
    split = next(split for split in UNSEEN if split in splits)
    chosen = spaced(len(splits[split]), most)
    said = features_of(splits[split], chosen, namer.logits).argmax(1)
    yield "accuracy", float((said == torch.from_numpy(labels.of[split][splits[split].samples[chosen]])).double().mean())


def _pictures(learner: EncoderLearner, some: NDArray[np.uint8], out: Path) -> list[Block]:
    """What was drawn for hidden patches, and where the class token looks."""
    blocks: list[Block] = []
    if isinstance(learner, SimMimLearner):
        numbers = np.arange(len(some))
        blocks.append(show_redrawn(learner.redrawer.model.eval(), some, learner.hidden(np.zeros_like(numbers), numbers), out))
    if looks(learner.judged):
        blocks.append(show_attention(learner.judged, some, out))
    return blocks


def _unseen(splits: Mapping[str, Values]) -> str:
    return next((split for split in UNSEEN if split in splits), "nothing")
