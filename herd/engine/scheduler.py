"""Who runs in a round, and in which blocks: by priority, then first come, first served.

    waiting -> running: one token each, and a bounded chunk of prompts -> finished
       ^----------'  preempted: its blocks went to one of better rank; what it generated is kept and run again

The first in rank always finds room, for it may take the blocks of all others: no load can bring the engine to a halt.
"""

from bisect import insort
from dataclasses import dataclass
from operator import attrgetter

from herd.engine.blocks import BlockPool
from herd.engine.sequence import Sequence

_RANK = attrgetter("rank")


@dataclass(frozen=True)
class Share:
    """How many ids of a sequence are run this round: pending ones, then those `drafted` behind the last of them."""

    sequence: Sequence
    count: int
    drafted: tuple[int, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the next token comes with it."""
        return self.count == self.sequence.pending + len(self.drafted)

    @property
    def ids(self) -> list[int]:
        """The ids to run."""
        end = self.sequence.stored + self.count - len(self.drafted)
        return [*self.sequence.ids[self.sequence.stored : end], *self.drafted]

    @property
    def scored(self) -> int:
        """Scores after how many of its last ids are wanted."""
        return 1 + len(self.drafted) if self.complete else 0


class Scheduler:
    """Divides `pool` among sequences; at most `max_running` at once, and `chunk` ids of prompts a round."""

    def __init__(self, pool: BlockPool, *, block_size: int, max_running: int, chunk: int, reuse: bool) -> None:
        self.pool = pool
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.reused_tokens = 0
        self.spare = 0  # ids that the newest plan left of its chunk
        self._block_size, self._max_running, self._chunk, self._reuse = block_size, max_running, chunk, reuse

    def add(self, sequence: Sequence) -> None:
        """Take a new or preempted sequence into the queue."""
        insort(self.waiting, sequence, key=_RANK)

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence go, wherever it is; its blocks are free at once."""
        (self.running if sequence.running else self.waiting).remove(sequence)
        self._release(sequence)

    def restart(self) -> None:
        """Make all that is running start again with nothing stored, and forget all content: it is no longer right."""
        for sequence in list(self.running):
            self._preempt(sequence)
        self.pool.forget()

    def plan(self) -> list[Share]:
        """Return the shares of the next round; each has blocks for them."""
        shares: list[Share] = []
        budget, closed = self._chunk, False
        begun: set[bytes] = set()  # contents that this round computes
        candidates = [(s, s.running) for s in (*self.running, *self.waiting[: self._max_running])]
        for sequence, ran in sorted(candidates, key=lambda pair: pair[0].rank):
            if ran and not sequence.running:
                continue  # preempted a moment ago
            if not ran:
                # who would compute what another does now waits a round and shares it
                if closed or not budget or self._soon_known(sequence, begun):
                    continue
                if not self._admit(sequence):
                    closed = True  # no one overtakes
                    continue
            prompt = sequence.pending > 1
            count = min(sequence.pending, budget) if prompt else 1
            if not count or not self._grow(sequence, count):
                continue
            if prompt:
                budget -= count
                begun.update(self._new_keys(sequence, sequence.stored + count))
            shares.append(Share(sequence, count))
        self.spare = budget
        return shares

    def extend(self, share: Share, drafted: list[int]) -> Share:
        """Put drafted ids behind a share that has none, as many as the chunk and free blocks hold."""
        sequence, end = share.sequence, share.sequence.stored + share.count
        held = (len(sequence.table) + self.pool.available) * self._block_size
        fitting = tuple(drafted[: max(0, min(self.spare, held - end))])
        end += len(fitting)
        self.spare -= len(fitting)
        sequence.table += self.pool.take(max(0, self._blocks(end) - len(sequence.table)))
        return Share(sequence, share.count + len(fitting), fitting)

    def advance(self, share: Share) -> None:
        """Take note that a share has run and its tokens are taken: its full blocks can be shared from now on."""
        sequence = share.sequence
        # drafted ids that were not taken are no longer there: the next ids overwrite them
        end = min(sequence.stored + share.count, len(sequence.ids) - 1)
        first = sequence.stored // self._block_size
        for number, key in enumerate(self._new_keys(sequence, end), first):
            self.pool.publish(sequence.table[number], key)
        sequence.stored = end
        if share.drafted:
            kept = self._blocks(len(sequence.ids))
            self.pool.release(sequence.table[kept:])
            del sequence.table[kept:]

    def _new_keys(self, sequence: Sequence, end: int) -> list[bytes]:
        """Return the keys of the blocks that are full when `end` positions are stored and not yet now."""
        if not self._reuse:
            return []
        return sequence.keys(end // self._block_size, self._block_size)[sequence.stored // self._block_size :]

    def _known_keys(self, sequence: Sequence) -> list[bytes]:
        """Return the keys of the blocks that a sequence with nothing stored may take from others."""
        return sequence.keys(sequence.reusable // self._block_size, self._block_size) if self._reuse else []

    def _soon_known(self, sequence: Sequence, begun: set[bytes]) -> bool:
        return bool(begun) and self.pool.next_unknown(self._known_keys(sequence)) in begun

    def _admit(self, sequence: Sequence) -> bool:
        """Let a waiting sequence run if there is room for all its ids, even if those of worse rank hold it."""
        while True:
            shared = self.pool.share(self._known_keys(sequence))
            # one block to spare, or those who run would soon push it out again
            need = self._blocks(len(sequence.ids)) - len(shared) + bool(self.running)
            if need <= self.pool.available and len(self.running) < self._max_running:
                break
            self.pool.release(shared)
            if not self.running or self.running[-1].rank < sequence.rank:
                return False
            self._preempt(self.running[-1])
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_RANK)
        sequence.running, sequence.table = True, shared
        sequence.stored = len(shared) * self._block_size
        self.reused_tokens += sequence.stored
        if not sequence.tokens:
            sequence.reused = sequence.stored
        return True

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Give a running sequence blocks for `count` more ids; False when it is the last in rank and had to go."""
        need = self._blocks(sequence.stored + count) - len(sequence.table)
        while need > self.pool.available:
            last = self.running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        sequence.table += self.pool.take(need)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.remove(sequence)
        self.add(sequence)
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.table)
        sequence.table, sequence.stored, sequence.running = [], 0, False

    def _blocks(self, positions: int) -> int:
        return -(-positions // self._block_size)
