"""Feeds: endless streams of batches that are a pure function of (seed, step), so resuming is exact.

Here are the contract and the feed that walks epochs, each planned at once from the seed: which documents, in what
order, packed how. It is for examples in memory and for corpora of up to a window; herd/train/windows.py has the one
for larger corpora, mixtures and ramps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from herd.base.errors import DataError
from herd.base.seeds import named_seed
from herd.tokenizer.shards import TokenShards
from herd.train.batch import WHOLE, Batch, Example, Part, collate
from herd.train.rows import Planned, plan_rows


class Feed(Protocol):
    """What the loop draws from."""

    def __next__(self) -> Batch: ...

    def state(self) -> dict[str, Any]:
        """Return plain data; `restore` with it makes the next batch the very next one."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def facts(self) -> dict[str, Any]:
        """Return what the ledger says of what was shown."""
        ...


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

    Short documents are packed into shorter rows (see `plan_rows`); without `shorter_rows` every batch has one shape,
    as a pipeline needs it.

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

    def _plan_epoch(self, epoch: int) -> list[Planned]:
        rng = np.random.default_rng(named_seed(self.seed, f"epoch/{epoch}"))
        drawn = self.source.draw(rng)
        lengths = self.source.lengths[drawn]
        options = {"rows": self.rows, "row_length": self.row_length}
        batches, rest = plan_rows(lengths, **options, rng=rng, shorter=self.shorter_rows)
        # what is left over is a smaller batch, or waits for the next epoch where it would be far smaller than others
        if rest and (2 * len(rest) >= self.rows or all(length == self.row_length for length, _ in batches)):
            batches.append((self.row_length, rest))
        chosen = (batches[i] for i in rng.permutation(len(batches)))
        return [(length, [drawn[row] for row in rows]) for length, rows in chosen]

    def __next__(self) -> Batch:
        while self._batch == len(self._plan):  # an epoch of small repeats may draw nothing
            self._epoch, self._batch = self._epoch + 1, 0
            self._plan = self._plan_epoch(self._epoch)
        length, rows = self._plan[self._batch]
        self._batch += 1
        picked = [[self.source.example(int(i)) for i in row] for row in rows[self.part.index :: self.part.of]]
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

    def facts(self) -> dict[str, Any]:
        """Return nothing: whole epochs show what the source holds."""
        return {}


class Reader:
    """Pieces of token shards, with the teacher's figures beside them where there is a teacher."""

    def __init__(self, shards: TokenShards, teacher: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        self.shards, self._teacher = shards, teacher
        self.top_k: int = 0 if teacher is None else teacher[0].shape[1]

    def example(self, start: int, length: int) -> Example:
        """Return `length` ids of one document from place `start` of all ids."""
        ids = self.shards.read(start, length)
        if self._teacher is None:
            return Example(ids)
        top_ids, top_logprobs = (np.asarray(array[start : start + length]) for array in self._teacher)
        return Example(ids, teacher=(top_ids, top_logprobs))


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
        self.shards, self._reader = shards, Reader(shards, teacher)
        self.top_k = self._reader.top_k
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
        return self._reader.example(int(self.starts[index]), int(self.lengths[index]))


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
