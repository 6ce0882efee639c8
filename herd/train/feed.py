"""Feeds: endless streams of batches that are a pure function of (seed, step), so resuming is exact.

A feed walks epochs. The rows of an epoch are planned at once from the seed: which documents, in what order,
packed how; `state()` is the epoch and the row, and nothing else.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from herd.base.errors import DataError
from herd.base.seeds import named_seed
from herd.tokenizer.shards import TokenShards
from herd.train.batch import WHOLE, Batch, Example, Part, collate, pack

# rows shorter than this would save little attention and waste places at their ends
_SHORTEST_ROW = 256
_Planned = tuple[int, list[list[int]]]  # row length, and the documents of each row


class Feed(Protocol):
    """What the loop draws from."""

    def __next__(self) -> Batch: ...

    def state(self) -> dict[str, Any]:
        """Return plain data; `restore` with it makes the next batch the very next one."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Source(Protocol):
    """Documents by index. `lengths` counts ids per document; none longer than a row plus one.

    `top_k` is how many of a teacher's log-probabilities each place brings.
    """

    lengths: np.ndarray
    top_k: int

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return the document indices of one epoch, shuffled; a document may appear never or many times."""
        ...

    def example(self, index: int) -> Example: ...


class PackedFeed:
    """Batches of packed documents from any source, epoch after epoch, each of `rows` x `row_length` places.

    Attention costs the square of a row, and documents don't see each other: documents that fit a half or a quarter
    of a row (down to 256 places) are packed into shorter rows, and a batch of those has as many more of them.
    Without `shorter_rows` every batch has one shape, as a pipeline needs it.

    The batches are planned alike on all ranks; each lays out the rows of its own `part`, and empty ones where rows
    run out, so that all ranks have equal shapes.
    """

    def __init__(
        self,
        source: Source,
        *,
        rows: int,
        row_length: int,
        pad_id: int,
        seed: int,
        part: Part = WHOLE,
        shorter_rows: bool = True,
    ) -> None:
        self.source, self.rows, self.row_length = source, rows, row_length
        self.pad_id, self.seed = pad_id, seed
        self.part, self.shorter_rows = part, shorter_rows
        self._epoch, self._batch = 0, 0
        self._plan = self._plan_epoch(0)
        if not self._plan:
            raise DataError("there is no document to train on: the corpus is smaller than one row")

    @property
    def batches_per_epoch(self) -> int:
        """How many batches the current epoch has; other epochs may have a few more or less."""
        return len(self._plan)

    def _plan_epoch(self, epoch: int) -> list[_Planned]:
        rng = np.random.default_rng(named_seed(self.seed, f"epoch/{epoch}"))
        drawn = self.source.draw(rng)
        places = self.source.lengths[drawn] - 1
        batches: list[_Planned] = []
        waiting, shorter = np.zeros(len(drawn), bool), 0
        for length in _row_lengths(self.row_length) if self.shorter_rows else [self.row_length]:
            waiting |= (places > shorter) & (places <= length)
            mine, shorter = np.flatnonzero(waiting), length
            rows = [mine[row] for row in pack(self.source.lengths[drawn[mine]], length)]
            order = rng.permutation(len(rows))
            count = self.rows * self.row_length // length
            groups = [order[start : start + count] for start in range(0, len(rows), count)]
            last = length == self.row_length
            # a batch that isn't full is filled with longer rows' documents; of the longest, half a batch will do
            if groups and len(groups[-1]) < count and (not last or (batches and 2 * len(groups[-1]) < count)):
                groups.pop()
            for group in groups:
                batches.append((length, [drawn[rows[row]].tolist() for row in group]))
                waiting[np.concatenate([rows[row] for row in group])] = False
        return [batches[i] for i in rng.permutation(len(batches))]

    def __next__(self) -> Batch:
        while self._batch == len(self._plan):  # an epoch of small repeats may draw nothing
            self._epoch, self._batch = self._epoch + 1, 0
            self._plan = self._plan_epoch(self._epoch)
        length, rows = self._plan[self._batch]
        self._batch += 1
        picked = [[self.source.example(i) for i in row] for row in rows[self.part.index :: self.part.of]]
        wanted = self.part.rows(len(rows) if self.shorter_rows else self.rows)
        picked += [[] for _ in range(wanted - len(picked))]
        return collate(picked, row_length=length, pad_id=self.pad_id, top_k=self.source.top_k)

    def state(self) -> dict[str, Any]:
        """Return where the next batch is taken from."""
        return {"epoch": self._epoch, "batch": self._batch}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved place."""
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self._plan = self._plan_epoch(self._epoch)


def _row_lengths(longest: int) -> list[int]:
    """Return the row lengths in use, from the shortest: halves of the longest while they are 256 or more."""
    lengths = [longest]
    while lengths[0] % 2 == 0 and lengths[0] // 2 >= _SHORTEST_ROW:
        lengths.insert(0, lengths[0] // 2)
    return lengths


class ShardSource:
    """Token shards cut into pieces that fit a row, drawn as often as `repeats` says of their language and kind.

    A repeat of 2.5 takes each document twice and half of them a third time. `teacher` holds cached top-k ids and
    log-probabilities per token of the shards.
    """

    def __init__(
        self,
        shards: TokenShards,
        *,
        row_length: int,
        repeats: Mapping[str, float] | None = None,
        teacher: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.shards, self.teacher = shards, teacher
        self.top_k: int = 0 if teacher is None else teacher[0].shape[1]
        self.starts, self.lengths, self._keys = cut(shards, row_length)
        # a document's repeat is the product over its key, such as that of its language and of its kind
        table = np.array([math.prod((repeats or {}).get(part, 1.0) for part in key) for key in shards.keys])
        self._repeats = table[self._keys] if len(self._keys) else np.zeros(0)

    def shares(self, position: int) -> dict[str, float]:
        """Return the share of an epoch's tokens by one part of the documents' keys: 0 the language, 1 the kind."""
        sums: dict[str, float] = {}
        weights = self._repeats * (self.lengths - 1)
        for number, key in enumerate(self.shards.keys):
            sums[key[position]] = sums.get(key[position], 0.0) + float(weights[self._keys == number].sum())
        total = sum(sums.values()) or 1.0
        return {name: value / total for name, value in sums.items()}

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return piece indices in random order."""
        whole = np.floor(self._repeats).astype(np.int64)
        times = whole + (rng.random(len(whole)) < self._repeats - whole)
        return rng.permutation(np.repeat(np.arange(len(times)), times))

    def example(self, index: int) -> Example:
        """Return one piece."""
        start, length = int(self.starts[index]), int(self.lengths[index])
        ids = self.shards.read(start, length)
        if self.teacher is None:
            return Example(ids)
        top_ids, top_logprobs = (np.asarray(array[start : start + length]) for array in self.teacher)
        return Example(ids, teacher=(top_ids, top_logprobs))


def cut(shards: TokenShards, row_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, length and key of each piece of all documents."""
    offsets = shards.offsets
    documents, starts, lengths = pieces(offsets[:-1], np.diff(offsets), row_length)
    return starts, lengths, shards.key_of[documents]


def pieces(starts: np.ndarray, lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return document, start and length of each piece: what exceeds row_length + 1 ids is cut, one id overlapping.

    A document of less than two ids predicts nothing and has no piece.
    """
    counts = -(-(lengths - 1).clip(0) // row_length)
    documents = np.repeat(np.arange(len(lengths)), counts)
    before = (np.arange(len(documents)) - np.repeat(counts.cumsum() - counts, counts)) * row_length
    return documents, starts[documents] + before, np.minimum(lengths[documents] - before, row_length + 1)


class ExampleSource:
    """Examples in memory, such as encoded dialogs; longer ones than a row lose their tail."""

    top_k = 0

    def __init__(self, examples: Sequence[Example], *, row_length: int) -> None:
        self._examples = [_shorten(example, row_length + 1) for example in examples]
        self.lengths = np.array([len(example.ids) for example in self._examples], np.int64)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return every example once, shuffled."""
        return rng.permutation(len(self._examples))

    def example(self, index: int) -> Example:
        """Return one example."""
        return self._examples[index]


def _shorten(example: Example, length: int) -> Example:
    weights = None if example.weights is None else example.weights[:length]
    return Example(example.ids[:length], weights)
