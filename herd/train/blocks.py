"""A corpus too large to shuffle whole, as blocks: runs of neighbouring documents of one key, in a drawn order.

Each key (a language and a kind) has its own endless stream of blocks: all of its blocks in one pseudo-random order,
then all in another. The order is computed place by place, so it takes no memory however many blocks there are.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np

from herd.base.errors import DataError
from herd.base.seeds import named_seed
from herd.tokenizer.shards import Count, Key, TokenShards

_ROUNDS = 6


class Permutation:
    """A pseudo-random order of 0..size-1 from a seed, asked place by place.

    A Feistel network permutes the numbers of twice so many bits as one of its halves has; what falls outside
    0..size-1 is sent through again until it falls inside ("cycle walking"), which keeps it a permutation.
    """

    def __init__(self, size: int, seed: int) -> None:
        assert size > 0
        self.size = size
        self._bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._keys = np.random.default_rng(seed).integers(0, 1 << 64, _ROUNDS, dtype=np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Return the numbers at these places, int64."""
        assert places.size == 0 or (places.min() >= 0 and places.max() < self.size)
        numbers = self._once(places.astype(np.uint64))
        while (outside := numbers >= self.size).any():
            numbers[outside] = self._once(numbers[outside])
        return numbers.astype(np.int64)

    def _once(self, numbers: np.ndarray) -> np.ndarray:
        bits, mask = self._bits, (np.uint64(1) << self._bits) - np.uint64(1)
        left, right = numbers >> bits, numbers & mask
        for key in self._keys:
            # two multiplications by odd constants mix all bits upwards; the uppermost are taken
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ (mixed >> (np.uint64(64) - bits))
        return (left << bits) | right


@dataclass(frozen=True)
class Run:
    """The documents of one key in a file: they begin at `first` in its table."""

    file: int
    first: int
    count: Count


@dataclass(frozen=True)
class Block:
    """Documents `first` to `last` of a file's table, in the order of keys."""

    file: int
    first: int
    last: int


class KeyBlocks:
    """The blocks of one key, each of about `block_tokens` ids and within one file."""

    def __init__(self, shards: TokenShards, runs: Sequence[Run], *, block_tokens: int, seed: int) -> None:
        self.shards, self.key = shards, shards.keys[runs[0].count.key]
        self._name, self._seed = "/".join(self.key), seed
        documents, tokens = (sum(getattr(run.count, name) for run in runs) for name in ("documents", "tokens"))
        self.targets: int = sum(run.count.targets for run in runs)
        self._runs, self._size = runs, max(1, round(block_tokens * documents / max(1, tokens)))
        self._firsts = list(accumulate((-(-run.count.documents // self._size) for run in runs), initial=0))
        self.count: int = self._firsts.pop()
        self._order = lru_cache(2)(self._order_of)

    @property
    def average(self) -> float:
        """Ids predicted by a block, on average."""
        return self.targets / self.count

    def block(self, number: int) -> Block:
        """Return block `number` of the endless stream."""
        epoch, place = divmod(number, self.count)
        chosen = int(self._order(epoch)(np.array([place]))[0])
        number = bisect_right(self._firsts, chosen) - 1
        run, offset = self._runs[number], (chosen - self._firsts[number]) * self._size
        last = min(offset + self._size, run.count.documents)
        return Block(run.file, run.first + offset, run.first + last)

    def documents(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return starts among all ids, and lengths, of the documents of block `number`."""
        block = self.block(number)
        starts, lengths = self.shards.table_of(block.file).documents(block.first, block.last)
        ends = starts + lengths
        if lengths.size and (lengths.min() < 0 or ends.max() > self.shards.files[block.file].n_tokens):
            raise DataError(f"{self.shards.folder}: offsets of documents fall in file {block.file}; write it again")
        return starts + self.shards.first_tokens[block.file], lengths

    def _order_of(self, epoch: int) -> Permutation:
        return Permutation(self.count, named_seed(self._seed, f"blocks/{self._name}/{epoch}"))


def key_blocks(shards: TokenShards, *, block_tokens: int, seed: int) -> dict[Key, KeyBlocks]:
    """Return the blocks of every key that has something to predict."""
    runs: dict[int, list[Run]] = {}
    for number, file in enumerate(shards.files):
        first = 0
        for count in file.counts:
            runs.setdefault(count.key, []).append(Run(number, first, count))
            first += count.documents
    every = (KeyBlocks(shards, runs[key], block_tokens=block_tokens, seed=seed) for key in sorted(runs))
    return {blocks.key: blocks for blocks in every if blocks.targets}
