"""A batch of packed rows, and the packing of documents into them.

documents   [bos a b c end] [bos d end] [bos e f end]
tokens       bos a b c  | bos d  | bos e f  | pad       inputs: each document without its last token
targets       a  b c end|  d end |  e f end | pad       the next token of the same document
weights       1  1 1 1  |  1  1  |  1 1 1   | 0         0 on padding and on tokens that carry no loss
documents     0  0 0 0  |  1  1  |  2 2 2   | -1        who may attend to whom
positions     0  1 2 3  |  0  1  |  0 1 2   | 0         RoPE starts anew in each document
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Packed rows, all [rows, row_length]; `teacher` holds what a distillation feed adds, [rows, row_length, k]."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    documents: Tensor
    positions: Tensor
    teacher: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        teacher = (self.teacher[0].to(device), self.teacher[1].to(device)) if self.teacher else None
        parts = (self.tokens, self.targets, self.weights, self.documents, self.positions)
        return Batch(*(part.to(device) for part in parts), teacher=teacher)


@dataclass(frozen=True)
class Part:
    """Which rows of every batch a data-parallel rank takes: each `of`-th, from `index`."""

    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.index < self.of, self

    def rows(self, whole: int) -> int:
        """Return how many rows each part of a batch of `whole` rows has, the empty ones among them."""
        return -(-whole // self.of)


WHOLE = Part()


@dataclass(frozen=True)
class Example:
    """One document, or a piece of one: its ids and the loss weight of each id (of the first it is never used)."""

    ids: np.ndarray
    weights: np.ndarray | None = None
    teacher: tuple[np.ndarray, np.ndarray] | None = None


def pack(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Assign documents to rows, best fit in the order given; returns the document indices of each row.

    `lengths` are ids per document; one of n ids takes n - 1 places and none takes more than a row.
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(row_length + 1)]  # by free places
    fullest = _SmallestAtLeast(row_length + 1)
    for document, length in enumerate(lengths.tolist()):
        places = length - 1
        free = fullest.find(places)
        if free < 0:
            row = len(rows)
            rows.append([])
            free = row_length
        else:
            row = open_rows[free].pop()
            if not open_rows[free]:
                fullest.remove(free)
        rows[row].append(document)
        left = free - places
        if left > 0:
            open_rows[left].append(row)
            fullest.add(left)
    return rows


class _SmallestAtLeast:
    """A set of small integers that finds the smallest member not below a value, by one big integer of bits."""

    def __init__(self, size: int) -> None:
        self.bits = 0
        self.size = size

    def add(self, value: int) -> None:
        self.bits |= 1 << value

    def remove(self, value: int) -> None:
        self.bits &= ~(1 << value)

    def find(self, value: int) -> int:
        above = self.bits >> value
        return value + ((above & -above).bit_length() - 1) if above else -1


def collate(rows: Sequence[Sequence[Example]], *, row_length: int, pad_id: int, top_k: int = 0) -> Batch:
    """Lay documents out in rows as drawn in the module docstring; a row without documents is all padding.

    With `top_k` there are places for a teacher's figures even where no document of these rows brings any.
    """
    shape = (len(rows), row_length)
    tokens = np.full(shape, pad_id, np.int64)
    targets = np.full(shape, pad_id, np.int64)
    weights = np.zeros(shape, np.float32)
    documents = np.full(shape, -1, np.int64)
    positions = np.zeros(shape, np.int64)
    teacher = _teacher_arrays(rows, shape, top_k)
    counting = np.arange(row_length)
    for r, row in enumerate(rows):
        at = 0
        for d, example in enumerate(row):
            n = len(example.ids) - 1
            place = (r, slice(at, at + n))
            tokens[place] = example.ids[:-1]
            targets[place] = example.ids[1:]
            weights[place] = 1.0 if example.weights is None else example.weights[1:]
            documents[place] = d
            positions[place] = counting[:n]
            if teacher is not None and example.teacher is not None:
                teacher[0][place] = example.teacher[0][:n]
                teacher[1][place] = example.teacher[1][:n]
            at += n
    parts = (torch.from_numpy(a) for a in (tokens, targets, weights, documents, positions))
    pair = (torch.from_numpy(teacher[0]), torch.from_numpy(teacher[1])) if teacher else None
    return Batch(*parts, teacher=pair)


def _teacher_arrays(
    rows: Sequence[Sequence[Example]], shape: tuple[int, int], top_k: int
) -> tuple[np.ndarray, np.ndarray] | None:
    first = next((example.teacher for row in rows for example in row if example.teacher is not None), None)
    k = top_k if first is None else first[0].shape[-1]
    return (np.zeros((*shape, k), np.int64), np.full((*shape, k), -np.inf, np.float32)) if k else None
