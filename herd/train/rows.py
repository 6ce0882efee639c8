"""From drawn pieces to batches of rows: best-fit packing, short pieces into shorter rows, rows in random order."""

from collections.abc import Iterator

import numpy as np

from herd.train.batch import pack

# rows shorter than this would save little attention and waste places at their ends
_SHORTEST_ROW = 256

Planned = tuple[int, list[np.ndarray]]  # row length, and the pieces of each row


def plan_rows(
    lengths: np.ndarray, *, rows: int, row_length: int, rng: np.random.Generator, shorter: bool = True
) -> tuple[list[Planned], list[np.ndarray]]:
    """Pack pieces of so many ids; return full batches, by row length, and the rows of `row_length` left over.

    Attention costs the square of a row, and documents don't see each other: pieces that fit a half or a quarter of a
    row (down to 256 places) are packed into shorter rows when `shorter`, and a batch of those has as many more rows.
    """
    places = lengths - 1
    batches: list[Planned] = []
    rest: list[np.ndarray] = []
    waiting, below = np.zeros(len(lengths), bool), 0
    for length in _row_lengths(row_length) if shorter else [row_length]:
        waiting |= (places > below) & (places <= length)
        mine, below = np.flatnonzero(waiting), length
        packed = [mine[row] for row in pack(lengths[mine], length)]
        packed = [packed[row] for row in rng.permutation(len(packed))]
        for group in _groups(packed, rows * row_length // length):
            if len(group) == rows * row_length // length:
                batches.append((length, group))
                waiting[np.concatenate(group)] = False
            elif length == row_length:
                rest = group
            # a batch of short rows that isn't full waits, to fill longer rows
    return batches, rest


def _groups(rows: list[np.ndarray], count: int) -> Iterator[list[np.ndarray]]:
    return (rows[start : start + count] for start in range(0, len(rows), count))


def _row_lengths(longest: int) -> list[int]:
    """Return the row lengths in use, from the shortest: halves of the longest while they are 256 or more."""
    lengths = [longest]
    while lengths[0] % 2 == 0 and lengths[0] // 2 >= _SHORTEST_ROW:
        lengths.insert(0, lengths[0] // 2)
    return lengths
