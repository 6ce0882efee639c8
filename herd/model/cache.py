"""The paged key/value cache: positions live in blocks, and a sequence is a list of block numbers, its table.

keys, values   [layer][kv head, block x offset, head size]
one pass       the new tokens of all its sequences in one row [1, t]: linear layers see no padding; attention takes
               the sequences in groups of like size:

    row      a a a a b c d d        a is in the middle of its prompt, b and c get one token, d begins
    groups   [a a a a] [b / c] [d d]

Bytes a token (all layers, bfloat16): 32 KiB for Llama 3.2 1B, 112 KiB for 3B, 128 KiB for 3.1 8B, 320 KiB for 70B,
504 KiB for 405B; so 128k tokens of the 8B take 16 GiB.
Shape legend: t new tokens of all rows, n rows of a group, m new tokens of its longest, s stored positions, h kv head.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from herd.model.config import ModelConfig

_WASTE = 1 << 18  # (new + _READ) x stored positions that padding may add to a group: less than a kernel's start costs
_READ = 16  # new tokens whose attention costs as much as reading the stored positions


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes that the keys and values of one position take in all layers."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_size * dtype.itemsize


@dataclass(frozen=True)
class Row:
    """One sequence in a pass: its blocks, how many positions they hold, and how many new tokens follow them."""

    table: Sequence[int]
    start: int
    count: int

    @property
    def end(self) -> int:
        """How many positions are held after the pass."""
        return self.start + self.count


@dataclass(frozen=True)
class Group:
    """Rows that attend together.

    tokens: where their new tokens stand in the pass: a slice, or [n * m] with padding that repeats a row's last one.
    real: which of the n * m are no padding, and where they stand in the pass; None: all, as in `tokens`.
    blocks: a slice of positions where one row's blocks are neighbours, else [h * n * blocks] to gather from.
    mask: [n, 1, m, s], which stored positions each new token may see.
    """

    rows: int
    tokens: slice | Tensor
    real: tuple[Tensor, Tensor] | None
    blocks: slice | Tensor
    mask: Tensor


class Pass(ABC):
    """One pass over new tokens [t] by kernels that find their way through the blocks themselves.

    positions: each new token's place in its own sequence, [1, t].
    """

    positions: Tensor

    @abstractmethod
    def attend(self, layer: int, q_thd: Tensor, k_thd: Tensor, v_thd: Tensor, cos_td: Tensor, sin_td: Tensor) -> Tensor:
        """Turn queries and keys, store keys and values, and return attention [t, h, d]."""


class PagedCache:
    """Storage for `blocks` blocks of `block_size` positions."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        blocks: int,
        block_size: int = 16,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.n_layers, config.n_kv_heads, blocks * block_size, config.head_size)
        self.blocks, self.block_size = blocks, block_size
        self.keys, self.values = zeros(shape, dtype, device), zeros(shape, dtype, device)

    def view(self, rows: Sequence[Row]) -> "CacheView":
        """Return what a pass over the new tokens of `rows`, one after the other, reads and writes.

        Each row's table must have room for its new tokens, and no two rows may write into one block.
        """
        return CacheView(self, tuple(rows))


@dataclass(frozen=True)
class CacheView:
    """The part of the cache of one pass. Everything that all layers share is worked out once."""

    cache: PagedCache
    rows: tuple[Row, ...]

    @cached_property
    def positions(self) -> Tensor:
        """Each new token's place in its own sequence, [1, t]."""
        return self._tensor([p for row in self.rows for p in range(row.start, row.end)]).unsqueeze(0)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All rows, those of like size together."""
        firsts = [0, *accumulate(row.count for row in self.rows)]
        order = sorted(range(len(self.rows)), key=lambda i: (self.rows[i].count, self.rows[i].end))
        return tuple(self._group(part, firsts) for part in self._alike(order))

    def store(self, layer: int, keys_1htd: Tensor, values_1htd: Tensor) -> None:
        """Write the new tokens' keys and values."""
        self.cache.keys[layer].index_copy_(1, self._places, keys_1htd[0].to(self.cache.keys.dtype))
        self.cache.values[layer].index_copy_(1, self._places, values_1htd[0].to(self.cache.values.dtype))

    def load(self, layer: int, group: Group) -> tuple[Tensor, Tensor]:
        """Return keys and values [n, h, s, d] of a group, in the cache's dtype."""
        return self._read(self.cache.keys[layer], group), self._read(self.cache.values[layer], group)

    def _read(self, stored_hpd: Tensor, group: Group) -> Tensor:
        if isinstance(group.blocks, slice):
            run_1hsd = stored_hpd[:, group.blocks].unsqueeze(0)
            # a processor's product in another format first copies what isn't dense, ten times as slowly as this does
            in_place = run_1hsd.dtype == torch.float32 or run_1hsd.device.type != "cpu"
            return run_1hsd if in_place else run_1hsd.contiguous()
        heads, _, size = stored_hpd.shape
        blocks = stored_hpd.view(heads * self.cache.blocks, -1).index_select(0, group.blocks)
        return blocks.view(group.rows, heads, -1, size)

    @cached_property
    def _places(self) -> Tensor:
        size = self.cache.block_size
        return self._tensor(
            [row.table[p // size] * size + p % size for row in self.rows for p in range(row.start, row.end)]
        )

    def _alike(self, order: list[int]) -> Iterable[list[int]]:
        """Cut rows in order of size where padding to the largest would cost more than another group."""
        part: list[int] = []
        real = longest = 0
        for i in order:
            row = self.rows[i]
            cost, longest = (row.count + _READ) * row.end, max(longest, row.end)
            if part and (len(part) + 1) * (row.count + _READ) * longest - real - cost > _WASTE:
                yield sorted(part)
                part, real, longest = [], 0, row.end
            part.append(i)
            real += cost
        if part:
            yield sorted(part)

    def _group(self, part: list[int], firsts: list[int]) -> Group:
        rows = [self.rows[i] for i in part]
        most = max(row.count for row in rows)
        wanted = [firsts[i] + min(k, row.count - 1) for i, row in zip(part, rows, strict=True) for k in range(most)]
        real = None
        if any(row.count < most for row in rows):
            which = [n * most + k for n, row in enumerate(rows) for k in range(row.count)]
            real = self._tensor(which), self._tensor([wanted[place] for place in which])
        neighbours = wanted == list(range(wanted[0], wanted[0] + len(wanted)))
        tokens = slice(wanted[0], wanted[-1] + 1) if neighbours else self._tensor(wanted)
        blocks, length = self._blocks(rows)
        starts = self._tensor([row.start for row in rows]).view(-1, 1, 1, 1)
        device = self.cache.keys.device
        places = starts + torch.arange(most, device=device).view(1, 1, -1, 1)
        return Group(len(rows), tokens, real, blocks, torch.arange(length, device=device) <= places)

    def _blocks(self, rows: list[Row]) -> tuple[slice | Tensor, int]:
        """Return where a group's positions are, and how many there are a row, padding included."""
        size = self.cache.block_size
        counts = [-(-row.end // size) for row in rows]
        first = rows[0].table[0]
        if len(rows) == 1 and list(rows[0].table[: counts[0]]) == list(range(first, first + counts[0])):
            # whole blocks: a processor makes new bf16 kernels for a new length, which takes longer than to run them
            return slice(first * size, (first + counts[0]) * size), counts[0] * size
        most = max(counts)
        # behind a shorter row any block does: the mask hides it
        tables = [[*row.table[:n], *[first] * (most - n)] for row, n in zip(rows, counts, strict=True)]
        heads = self.cache.keys.shape[1]
        starts = torch.arange(heads, device=self.cache.keys.device) * self.cache.blocks
        return (self._tensor(tables).unsqueeze(1) + starts.view(1, -1, 1)).flatten(), most * size

    def _tensor(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, device=self.cache.keys.device)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return zeros whose memory, on a processor, is taken page by page as it is written."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy asks for zeroed pages, which cost nothing until they are written; torch.zeros writes them all
    count = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(count, dtype=np.uint8)).view(dtype).view(shape)
