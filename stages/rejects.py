"""Input that is refused: one exception with a stable code, and one record for the ledger."""

from typing import NamedTuple


class InputRejected(Exception):
    """A sample that cannot be used; `code` is stable and meant for machines, `detail` is one line for people."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail
        self.which: str | None = None  # of a sample of several files, which is to blame, if not the first


class Rejected(NamedTuple):
    """One line of a rejects ledger."""

    key: str  # the sample's key, or the file's path where no key could be given
    code: str
    detail: str
    sha256: str  # of the refused bytes; empty where none could be read
