"""Who holds which block of the cache, and which blocks hold a beginning that a new request may share.

    free -> held (by one request or several that share a prefix) -> free
                         \\-> idle: no one holds it, its content is known by key; the longest unused is taken first

A block's key is the SHA-256 of the key before it and its own ids, so equal keys mean equal content from id 0 on.
"""

import hashlib
import heapq
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence


def chain_key(before: bytes, ids: Sequence[int]) -> bytes:
    """Return the key of a full block of ids after the block with key `before` (b"" for the first)."""
    return hashlib.sha256(before + array("q", ids).tobytes()).digest()


class BlockPool:
    """Counts the holders of each of `total` blocks."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._holders = [0] * total
        # lowest first: what one request takes from an empty pool is one run, which attention reads in place
        self._free = list(range(total))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """How many blocks can be taken, idle ones included."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """How many blocks someone holds."""
        return self.total - self.available

    def take(self, count: int) -> list[int]:
        """Hold `count` blocks of no known content, at most `available`: free ones, then the longest unused."""
        assert count <= self.available
        blocks = []
        for _ in range(count):
            if self._free:
                block = heapq.heappop(self._free)
            else:
                block, _ = self._idle.popitem(last=False)
                self._forget(block)
            self._holders[block] = 1
            blocks.append(block)
        return blocks

    def share(self, keys: Iterable[bytes]) -> list[int]:
        """Hold the blocks of the longest known beginning of a chain of keys."""
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            self._idle.pop(block, None)
            self._holders[block] += 1
            blocks.append(block)
        return blocks

    def next_unknown(self, keys: Iterable[bytes]) -> bytes | None:
        """Return the first key of a chain whose content no block is known to have; None when all are known."""
        return next((key for key in keys if key not in self._block_of), None)

    def publish(self, block: int, key: bytes) -> None:
        """Make a held block's content known. When another block has it already, that one stays the known one."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of a request's blocks."""
        # the last one first: of an unused chain the end is given up before the beginning
        for block in reversed(blocks):
            self._holders[block] -= 1
            assert self._holders[block] >= 0, f"block {block} released twice"
            if self._holders[block] == 0:
                if block in self._key_of:
                    self._idle[block] = None
                else:
                    heapq.heappush(self._free, block)

    def forget(self) -> None:
        """Forget all contents: blocks that are held stay held, idle ones become free."""
        for block in list(self._key_of):
            self._forget(block)
        for block in self._idle:
            heapq.heappush(self._free, block)
        self._idle.clear()

    def _forget(self, block: int) -> None:
        del self._block_of[self._key_of.pop(block)]
