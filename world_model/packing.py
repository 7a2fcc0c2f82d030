"""Which documents share a row: first fit, in the order given, a pure function of their lengths.

The plan stops at the first document that fits nowhere; it begins the next batch, so the only state between batches is how many documents
were taken.
"""

from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, rows: int, length: int) -> np.ndarray:
    """The row of each of the first documents, int64 [documents taken], for `rows` rows of `length` tokens.

    Fewer documents than `lengths` are taken as soon as one does not fit. ValueError if one of them is longer than a row.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    # A tournament over what is left in every row: the first row with enough room is found in log2(rows) steps.
    leaves = 1 << max(0, rows - 1).bit_length()
    room = [0] * leaves + [length] * rows + [0] * (leaves - rows)
    for node in range(leaves - 1, 0, -1):
        room[node] = max(room[2 * node], room[2 * node + 1])
    taken: list[int] = []
    for tokens in lengths.tolist():
        if tokens > length:
            raise ValueError(f"a document of {tokens} tokens does not fit a row of {length}; make the rows longer or the documents shorter")
        if tokens > room[1]:
            break
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < tokens:
                node += 1
        taken.append(node - leaves)
        room[node] -= tokens
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return np.array(taken, dtype=np.int64)
