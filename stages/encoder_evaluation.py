"""What a trained encoder can do, measured on a dataset: name classes by neighbours, a linear probe and words, find captions, write them.

Features of the training split are what is compared with; figures are of the splits that training has not seen.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from worldloom.stages.artifact import Artifact
from worldloom.stages.dataset import Dataset
from worldloom.stages.encoder_features import Read, features_of, own_pixels, resized, signed
from worldloom.stages.encoder_scores import linear_probe, recalls, weighted_knn
from worldloom.stages.encoder_words import Apart, Meaning, class_vectors, meaning_of, pairs_apart
from worldloom.stages.evaluate_encoder import EvaluateEncoder, names_in
from worldloom.stages.eye import fit, shrink, side_of
from worldloom.stages.labels import Labels, read_labels
from worldloom.stages.open_encoder import Captioner, open_captioner, open_encoder, open_redrawer
from worldloom.stages.value_batches import Values, spaced
from worldloom.stages.worker import Worker
from worldloom.tokenizers.text import BOS, EOS
from worldloom.world_model.encoders.build import Network, NetworkSettings, build_encoder
from worldloom.world_model.encoders.captioning import TopP, beam_search, write_captions
from worldloom.world_model.encoders.joined import Redrawer

UNSEEN = ("held_out", "validation")
AT_ONCE = 64  # pictures


class Judged(NamedTuple):
    """An encoder, frozen, and what it has learnt beside seeing."""

    name: str
    encoder: Network
    about: NetworkSettings
    captioner: Captioner | None
    redrawer: Redrawer | None
    side: int | None = None  # pixels that pictures are brought to, where it was imported; None: it sees them as they are

    def pooled(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] to features [B, D]."""
        return pooled_by(self.encoder, x, self.side)


class Named(NamedTuple):
    """How well features name the classes of a split."""

    way: str  # "trained", "untrained", "pixels", or "trained at 96 pixels"
    by: str
    split: str
    pictures: int
    neighbours: float
    probe: float | None


class ByWords(NamedTuple):
    """Classes of a split named by the nearest of their prompts."""

    by: str
    split: str
    pictures: int
    accuracy: float


class Found(NamedTuple):
    """Pictures and captions of a split that were found again."""

    split: str
    pairs: int
    at: int
    to_captions: float
    to_pictures: float


class Caption(NamedTuple):
    """One picture's captions."""

    picture: NDArray[np.uint8]  # [H, W, 3]
    true: str
    written: dict[str, str]  # by way of writing
    right: dict[str, bool]


class Captioned(NamedTuple):
    """Those of a split."""

    split: str
    captions: tuple[Caption, ...]

    def accuracy(self, way: str) -> float:
        return sum(caption.right[way] for caption in self.captions) / len(self.captions)


class Measured(NamedTuple):
    """All of an evaluation."""

    judged: Judged
    shown: NDArray[np.uint8]  # uint8 [B, H, W, 3]: some pictures that training has not seen
    classes: dict[str, int]  # number of classes by what names them
    named: tuple[Named, ...]
    by_words: tuple[ByWords, ...]
    found: tuple[Found, ...]
    captioned: tuple[Captioned, ...]
    left_out: tuple[str, ...]  # sentences: what could not be measured, and why
    figures: dict[str, float]


def open_judged(artifact: Artifact) -> Judged:
    """From what pretrain_encoder or import_encoder left."""
    encoder, about = open_encoder(artifact.folder)
    captioner = open_captioner(artifact.folder) if "coca/config.json" in artifact.manifest else None
    redrawer = open_redrawer(artifact.folder) if "redraw/config.json" in artifact.manifest else None
    return Judged(artifact.name, encoder, about, captioner, redrawer, None if "data" in artifact.inputs else side_of(about))


def pooled_by(encoder: Network, x: Tensor, side: int | None) -> Tensor:
    """Of pictures brought to that side."""
    found: Tensor = encoder(x if side is None else fit(x, side)).pooled
    return found


def measure(judged: Judged, dataset: Dataset, settings: EvaluateEncoder, worker: Worker) -> Measured:
    """Everything but pictures of what it sees; ValueError where there is no picture to compare with or to ask about."""
    splits = {split: values for split in ("train", *UNSEEN) if len(values := Values(dataset, split, settings.stream))}
    unseen = {split: values for split, values in splits.items() if split in UNSEEN}
    if not unseen or "train" not in splits:
        raise ValueError(
            f"the reference set is empty: evaluating needs pictures of {settings.stream!r} to compare with (train) and to ask about "
            f"({' or '.join(UNSEEN)}), this dataset has {', '.join(splits) or 'none'}; give it both"
        )
    labels = _labels(dataset, settings)
    named = list(_named(judged, splits, labels, settings, worker))
    by_words: list[ByWords] = []
    found: list[Found] = []
    captioned: list[Captioned] = []
    left_out = list(_left_out(judged, settings))
    if judged.captioner is not None and settings.text is not None:
        meaning = meaning_of(dataset)
        for split, values in unseen.items():
            by_words += _by_words(judged.captioner, values, labels, settings)
            pairs = pairs_apart(dataset, values, settings.text, meaning, settings.candidates, judged.captioner.has_room_for)
            found += _found(judged.captioner, values, pairs, settings)
            captions = _captioned(judged.captioner, dataset, values, meaning, settings)
            captioned += [captions] if captions.captions else []
            left_out += _left_out_of(split, pairs, captions, judged.captioner, settings)
            worker.check()
    last = list(unseen.values())[-1]
    shown = last[spaced(len(last), settings.shown)]
    measured = Measured(
        judged,
        shown if judged.side is None else shrink(shown, judged.side),
        {by: len(each.classes) for by, each in labels.items()},
        tuple(named),
        tuple(by_words),
        tuple(found),
        tuple(captioned),
        tuple(left_out),
        {},
    )
    return measured._replace(figures={f"{settings.stream}.{name}": round(value, 4) for name, value in _figures(measured).items()})


def _labels(dataset: Dataset, settings: EvaluateEncoder) -> dict[str, Labels]:
    """By what names the classes; ValueError where they cannot be told."""
    try:
        return {by: read_labels(dataset, settings.text, by) for by in settings.label_by} if settings.text is not None else {}
    except ValueError as error:
        raise ValueError(f"{error}; or set label_by to [], and captions alone are asked for") from None


def _named(judged: Judged, splits: dict[str, Values], labels: dict[str, Labels], settings: EvaluateEncoder, worker: Worker) -> list[Named]:
    """By neighbours and probe, of the encoder, of an untrained one of its form, of bare pixels, and of the encoder at other sides."""
    if not labels:
        return []
    untrained = build_encoder(judged.about, torch.Generator().manual_seed(settings.seed)).eval()
    ways: dict[str, Read] = {
        "trained": judged.pooled,
        "untrained": lambda x: pooled_by(untrained, x, judged.side),
        "pixels": own_pixels,
    }
    for side in settings.sides:
        ways[_at(side)] = lambda x, side=side: judged.encoder(resized(x, side)).pooled  # type: ignore[misc]
    chosen = {split: spaced(len(values), settings.measured) for split, values in splits.items()}
    unseen = [split for split in splits if split in UNSEEN]
    counts = [len(chosen[split]) for split in unseen]
    rows = []
    for way, read in ways.items():
        features = {split: features_of(values, chosen[split], read) for split, values in splits.items()}
        queries = torch.cat([features[split] for split in unseen])
        worker.check()
        for by, each in labels.items():
            answers = {split: torch.from_numpy(each.of[split][values.samples[chosen[split]]]) for split, values in splits.items()}
            asked = features["train"], answers["train"], queries, len(each.classes)
            near = torch.split(weighted_knn(*asked, settings.neighbours, settings.temperature), counts)
            probed = torch.split(linear_probe(*asked), counts) if way in ("trained", "untrained", "pixels") else None
            for place, split in enumerate(unseen):
                right = _share(near[place] == answers[split]), None if probed is None else _share(probed[place] == answers[split])
                rows.append(Named(way, by, split, len(near[place]), *right))
    return rows


def _by_words(captioner: Captioner, values: Values, labels: dict[str, Labels], settings: EvaluateEncoder) -> list[ByWords]:
    """Zero-shot: no picture of the dataset was shown with its class."""
    if not labels:
        return []
    index = spaced(len(values), settings.measured)
    pictures = F.normalize(features_of(values, index, captioner.pictures), dim=1)
    rows = []
    for by, each in labels.items():
        vectors = class_vectors(captioner, settings.prompts, by, each.classes)
        if vectors is not None:
            said = (pictures @ vectors.T).argmax(1)
            answers = torch.from_numpy(each.of[values.split][values.samples[index]])
            rows.append(ByWords(by, values.split, len(said), _share(said == answers)))
    return rows


def _found(captioner: Captioner, values: Values, pairs: Apart, settings: EvaluateEncoder) -> list[Found]:
    """Recalls among pairs of which no two say the same; none where there are too few."""
    if len(pairs.pictures) <= max(settings.recall_at):
        return []
    pictures, texts = features_of(values, pairs.pictures, captioner.pictures), captioner.texts(pairs.captions)
    return [Found(values.split, len(pairs.pictures), at, *recalls(pictures, texts, at)) for at in settings.recall_at]


def _captioned(captioner: Captioner, dataset: Dataset, values: Values, meaning: Meaning, settings: EvaluateEncoder) -> Captioned:
    """Written in three ways; right where they mean what the dataset's own caption means. Pictures without one are not asked about."""
    assert settings.text is not None
    captions = []
    drawn = TopP(torch.Generator().manual_seed(settings.seed), settings.top_p)
    index: list[int] = []
    true: list[str] = []
    for place in spaced(len(values), settings.captioned).tolist():
        text = dataset.value(values.split, settings.text, int(values.samples[place]))
        if text is not None:
            index.append(place)
            true.append(str(text))
    for start in range(0, len(index), AT_ONCE):
        pictures = values[np.array(index[start : start + AT_ONCE])]
        written = write_in_all_ways(captioner, signed(pictures), drawn, settings.beams)
        for place, own in enumerate(true[start : start + AT_ONCE]):
            said = {way: texts[place] for way, texts in written.items()}
            captions.append(Caption(pictures[place], own, said, {way: meaning(text) == meaning(own) for way, text in said.items()}))
    return Captioned(values.split, tuple(captions))


def write_in_all_ways(captioner: Captioner, x: Tensor, drawn: TopP, beams: int) -> dict[str, list[str]]:
    """[B, 3, H, W] -> B captions by each way of writing."""
    model, length = captioner.model, captioner.model.text.length
    return {
        "greedy": captioner.read(write_captions(model, x, BOS, EOS, length).ids),
        "top_p": captioner.read(write_captions(model, x, BOS, EOS, length, drawn).ids),
        "beam": captioner.read(beam_search(model, x, BOS, EOS, length, beams).ids),
    }


def _left_out(judged: Judged, settings: EvaluateEncoder) -> Iterator[str]:
    """Of all splits."""
    if settings.text is None:
        yield "Classes, words and captions: no stream of text says what the pictures show."
    else:
        if not settings.label_by:
            yield "Classes: label_by names none."
        if judged.captioner is None:
            yield "Classes by words, finding captions and writing them: this encoder never read texts."
        else:
            for by in settings.label_by:
                if not any(by in names_in(prompt) for prompt in settings.prompts):
                    yield f"Classes by words for {by}: no prompt says {{{by}}}."
    if judged.redrawer is None:
        yield "Hidden patches: this encoder never learnt to draw them."


def _left_out_of(split: str, pairs: Apart, captions: Captioned, captioner: Captioner, settings: EvaluateEncoder) -> Iterator[str]:
    """Of one split."""
    if len(pairs.pictures) <= max(settings.recall_at):
        yield f"Finding captions of {split}: it has no {max(settings.recall_at) + 1} that say different things."
    if pairs.too_long:
        length = captioner.model.text.length
        yield f"Captions of {split} among those to find: {pairs.too_long}, of more than the {length} tokens that the text decoder reads."
    if not captions.captions:
        yield f"Writing captions of {split}: no picture asked about has one of its own."


def _figures(measured: Measured) -> dict[str, float]:
    """By name, without the stream."""
    figures: dict[str, float] = {}
    plain = {(row.by, row.split): row.neighbours for row in measured.named if row.way == "trained"}
    for row in measured.named:
        ending = {"trained": ""}.get(row.way, f"_{row.way.replace(' ', '_')}")
        figures[f"{row.split}_{row.by}_knn{ending}_accuracy"] = row.neighbours
        if row.probe is not None:
            figures[f"{row.split}_{row.by}_probe{ending}_accuracy"] = row.probe
        elif plain[row.by, row.split]:
            figures[f"{row.split}_{row.by}_knn{ending}_kept"] = row.neighbours / plain[row.by, row.split]
    for words in measured.by_words:
        figures[f"{words.split}_{words.by}_zero_shot_accuracy"] = words.accuracy
    for found in measured.found:
        figures[f"{found.split}_captions_of_pictures_top_{found.at}_recall"] = found.to_captions
        figures[f"{found.split}_pictures_of_captions_top_{found.at}_recall"] = found.to_pictures
    for captioned in measured.captioned:
        for way in captioned.captions[0].written:
            figures[f"{captioned.split}_{way}_caption_accuracy"] = captioned.accuracy(way)
    return figures


def _at(side: int) -> str:
    return f"at {side} pixels"


def _share(right: Tensor) -> float:
    return float(right.double().mean())
