"""Classes of pictures, read from a stream of text: the text itself, or what a caption of shapes says."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.dataset import Dataset
from worldloom.stages.encoder_settings import LabelBy
from worldloom.stages.shapes import COLOURS, PLACES, SHAPES, read_caption

MOST_CLASSES = 10_000
FIXED: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": tuple(COLOURS), "place": PLACES}


class Labels(NamedTuple):
    """Of every split."""

    classes: tuple[str, ...]
    of: dict[str, NDArray[np.int64]]  # split -> [samples]


def read_labels(dataset: Dataset, stream: str, by: LabelBy) -> Labels:
    """Classes are those of the training split, in order of the alphabet, or those of the shapes world; ValueError where a sample has none,
    or one that training never sees, or where there is one class only."""
    names = {split: [_class_of(dataset, split, stream, by, i) for i in range(dataset.samples(split))] for split in dataset.splits}
    classes = FIXED.get(by) or tuple(sorted(set(names.get("train", []))))
    if len(classes) < 2:
        raise ValueError(f"labels: the stream {stream!r} names {len(classes)} class; a classifier needs two at least")
    if len(classes) > MOST_CLASSES:
        raise ValueError(f"labels: the stream {stream!r} names {len(classes)} classes; are these captions? set label_by to what they tell")
    numbers = {name: number for number, name in enumerate(classes)}
    strange = sorted({name for each in names.values() for name in each if name not in numbers})
    if strange:
        raise ValueError(f"labels: {strange[0]!r} is no class of the training split; take those samples out, or train on some")
    return Labels(classes, {split: np.array([numbers[name] for name in each], np.int64) for split, each in names.items()})


def _class_of(dataset: Dataset, split: str, stream: str, by: LabelBy, i: int) -> str:
    text = dataset.value(split, stream, i)
    if text is None:
        raise ValueError(f"labels: sample {i} of {split!r} lacks the stream {stream!r}; every picture needs a label")
    if by == "text":
        return str(text).strip()
    reading = read_caption(text)
    if reading is None:
        raise ValueError(f"labels: the caption {text!r} does not name one {by}; set label_by to 'text'")
    return str(getattr(reading, by))
