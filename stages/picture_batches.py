"""Batches of pictures that know which sample of which epoch each is: augmentation draws by that."""

from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.ahead import ahead
from worldloom.stages.order import order
from worldloom.stages.value_batches import Values
from worldloom.stages.worker import Worker

LABELLED = 1 << 40  # stands where an order has its epoch


class Pictures(NamedTuple):
    """A rank's part of a global batch."""

    values: NDArray[np.uint8]  # [b, H, W, 3]
    epoch: NDArray[np.int64]  # [b]
    sample: NDArray[np.int64]  # [b], number within the split
    labels: NDArray[np.int64] | None  # [b]
    again: NDArray[np.int64]  # [b]: how often the picture stood before among those of its kind, 0 without repeats
    place: NDArray[np.int64]  # [b], within the global batch


class PictureBatches:
    """The same sequence on every start, whatever the number of ranks; the position is {"values": seen so far}."""

    def __init__(
        self,
        values: Values,
        batch_size: int,
        seed: int,
        worker: Worker,
        labels: NDArray[np.int64] | None = None,
        chosen: NDArray[np.int64] | None = None,
        repeats: int = 1,
    ) -> None:
        """`labels` has one for every sample of the split; only the values `chosen` are taken, all where it is None.

        Every picture stands `repeats` times in a row (repeated augmentation, arXiv:1902.05509), so that an epoch is as much longer.
        """
        if batch_size % worker.world_size:
            raise ValueError(
                f"batch_size ({batch_size}) must be a multiple of the {worker.world_size} training workers; "
                f"set it to {-(-batch_size // worker.world_size) * worker.world_size}"
            )
        if not len(values):
            raise ValueError(f"no sample of the split {values.split!r} has the stream {values.stream!r}; there is nothing to train on")
        self.values, self.batch_size, self.seed, self.labels = values, batch_size, seed, labels
        self.chosen, self.repeats = np.arange(len(values)) if chosen is None else chosen, repeats
        self.part = batch_size // worker.world_size
        self.first = worker.rank * self.part

    def after(self, position: dict[str, Any] | None) -> Iterator[tuple[Pictures, dict[str, Any]]]:
        """Goes on for ever, epoch after epoch; the next batch is read while this one is trained on."""
        seen = position["values"] if position else 0
        yield from ahead((partial(self._and_position, start) for start in count(seen, self.batch_size)), depth=1)

    def _and_position(self, start: int) -> tuple[Pictures, dict[str, Any]]:
        return self._at(start), {"values": start + self.batch_size}

    def _at(self, start: int) -> Pictures:
        within_batch = np.arange(self.first, self.first + self.part)
        place, again = np.divmod(start + within_batch, self.repeats)
        epoch, within = np.divmod(place, len(self.chosen))
        index = np.empty(len(place), np.int64)
        for number in np.unique(epoch):
            index[epoch == number] = order(self.seed, int(number), within[epoch == number], len(self.chosen))
        index = self.chosen[index]
        sample = self.values.samples[index]
        labels = None if self.labels is None else self.labels[sample]
        return Pictures(self.values[index], epoch, sample, labels, again, within_batch)


def share_of(count: int, share: float) -> NDArray[np.int64]:
    """Which of `count` values are the share that is labelled: always the same ones, those of a smaller share among them; one at least."""
    return np.sort(order(0, LABELLED, np.arange(max(1, round(share * count))), count))
