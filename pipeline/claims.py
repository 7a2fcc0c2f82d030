"""Who does which shard: workers of a stage claim items one at a time, so that a fast one takes over from a slow one.

A claim is a file, created exclusively. It only saves work; that a shard is made once is the commit's business.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")


class Claims:
    """The claims of one worker, in a folder that belongs to one run of one stage.

    A folder that is gone means that the run is over: FileNotFoundError ends whoever outlived it.
    """

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self.folder = folder
        self.rank = rank
        self.world_size = world_size
        self._lists = 0

    def give_back(self) -> None:
        """Frees everything that this rank claimed in an earlier life; what it had finished is found committed."""
        for path in self.folder.iterdir():
            try:
                mine = path.read_text(encoding="ascii") == str(self.rank)
            except FileNotFoundError:  # given back meanwhile, by another worker that began anew
                continue
            if mine:
                path.unlink(missing_ok=True)

    def share(self, items: Sequence[Item]) -> Iterator[Item]:
        """Items nobody has claimed yet, each claimed as it is taken; every worker passes the same lists in the same order."""
        number, self._lists = self._lists, self._lists + 1
        start = self.rank * len(items) // self.world_size  # apart from the others, and stealing from them at the end
        for index in (*range(start, len(items)), *range(start)):
            if self._claim(f"{number}-{index}"):
                yield items[index]

    def _claim(self, name: str) -> bool:
        try:
            with open(self.folder / name, "x", encoding="ascii") as file:
                file.write(str(self.rank))
        except FileExistsError:
            return False
        return True
