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
    or one that training never sees, or where training sees one class only."""
    met: dict[str, int] = {}  # every name once: a dataset may have more samples than texts fit into memory
    of: dict[str, NDArray[np.int64]] = {}
    for split in dataset.splits:
        names = (_class_of(dataset, split, stream, by, i) for i in range(dataset.samples(split)))
        of[split] = np.fromiter((met.setdefault(name, len(met)) for name in names), np.int64, dataset.samples(split))
    trained = set(np.unique(of["train"]).tolist()) if "train" in of else set()
    if len(trained) < 2:
        raise ValueError(
            f"labels: the training split's {stream!r} names {len(trained)} {'class' if len(trained) == 1 else 'classes'} by {by}; "
            "a classifier needs two at least, so give a stream or a label_by of more"
        )
    classes = FIXED.get(by) or tuple(sorted(name for name, number in met.items() if number in trained))
    if len(classes) > MOST_CLASSES:
        raise ValueError(f"labels: the stream {stream!r} names {len(classes)} classes; are these captions? set label_by to what they tell")
    numbers = {name: number for number, name in enumerate(classes)}
    strange = sorted(met.keys() - numbers.keys())
    if strange:
        raise ValueError(f"labels: {strange[0]!r} is no class of the training split; take those samples out, or train on some")
    renumbered = np.array([numbers[name] for name in met], np.int64)
    return Labels(classes, {split: renumbered[each] for split, each in of.items()})


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
