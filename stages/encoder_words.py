"""Words about pictures: prompts that stand for classes, and which captions say the same.

B texts, D width, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from worldloom.stages.dataset import Dataset
from worldloom.stages.evaluate_encoder import names_in
from worldloom.stages.labels import FIXED
from worldloom.stages.open_encoder import Captioner
from worldloom.stages.oracles import Reading, oracle_of
from worldloom.stages.value_batches import Values

AT_ONCE = 256  # texts

Meaning = Callable[[str], Reading]


def class_texts(prompts: Sequence[str], by: str, name: str) -> list[str]:
    """All that `prompts` say of a class of `by`, every value of what else they name standing for it once."""
    texts = []
    for prompt in prompts:
        if by in (named := names_in(prompt)):
            others = sorted(named - {by})
            for values in product(*(FIXED[other] for other in others)):
                texts.append(prompt.format(**{by: name}, **dict(zip(others, values, strict=True))))
    return texts


def class_vectors(captioner: Captioner, prompts: Sequence[str], by: str, classes: Sequence[str]) -> Tensor | None:
    """float32 [K, D] of length one: each class's prompts, averaged (CLIP, arXiv:2103.00020, section 3.1.4); None if none names `by`."""
    rows = []
    for name in classes:
        texts = class_texts(prompts, by, name)
        if not texts:
            return None
        parts = [captioner.texts(texts[start : start + AT_ONCE]).float() for start in range(0, len(texts), AT_ONCE)]
        rows.append(F.normalize(torch.cat(parts), dim=1).mean(0))
    return F.normalize(torch.stack(rows), dim=1)


def meaning_of(dataset: Dataset) -> Meaning:
    """What a caption says: what the dataset's oracle reads in it, or, where there is none that reads texts, its words."""
    oracle = oracle_of(dataset.oracle)
    view = oracle.between("text", "text") if oracle is not None else None
    if view is None:
        return lambda text: (text.strip(),)
    read = view.read["text"]
    # A caption that the oracle cannot read is like no other.
    return lambda text: read(text, None) or (text,)


class Apart(NamedTuple):
    """Pictures and their captions, no two of which say the same."""

    pictures: NDArray[np.int64]  # their numbers
    captions: list[str]
    too_long: int  # captions that were met and left out, because they cannot be read


def pairs_apart(dataset: Dataset, values: Values, stream: str, meaning: Meaning, most: int, fits: Callable[[str], bool]) -> Apart:
    """Up to `most` pairs, of those whose caption `fits`."""
    taken: dict[Reading, tuple[int, str]] = {}
    too_long = 0
    for place in spread(len(values)):
        text = dataset.value(values.split, stream, int(values.samples[place]))
        if text is not None and not fits(str(text)):
            too_long += 1
        elif text is not None:
            taken.setdefault(meaning(str(text)), (place, str(text)))
        if len(taken) == most:
            break
    return Apart(np.array([place for place, _ in taken.values()], np.int64), [text for _, text in taken.values()], too_long)


def spread(count: int) -> Iterator[int]:
    """All numbers below `count`, in the order of their bits read backwards: the first are far apart, where folders are read in order."""
    bits = max(count - 1, 0).bit_length()
    for place in range(1 << bits):
        number = int(f"{place:0{bits}b}"[::-1], 2)
        if number < count:
            yield number
