"""The feed for corpora of any size, for mixtures and for ramps: the corpus is walked in windows of so many tokens.

blocks of each key, as its share says -> a window's pieces, shuffled -> rows, packed -> batches, and a rest of rows
                                                                          rests of several windows -> one more batch
A window is a pure function of the seed and of the place where it begins (per key: blocks taken, tokens owed), and a
place is small plain data; so is the feed's state. No piece is dropped: rows that don't fill a batch wait for those of
later windows, and when a ramp changes the shape, what is left of the window goes on in rows of the new length.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any

import numpy as np

from herd.base.errors import DataError
from herd.base.seeds import named_seed
from herd.tokenizer.shards import TokenShards
from herd.train.batch import WHOLE, Batch, Part, collate
from herd.train.blocks import KeyBlocks, key_blocks
from herd.train.config import Phase, TrainConfig
from herd.train.feed import Reader, pieces
from herd.train.mixture import Mixture
from herd.train.rows import plan_rows

# of so many blocks a window is made, each from another part of the corpus
WINDOW_BLOCKS = 1024
# a window holds so many of the largest batches at least, so that most batches come out of one window
WINDOW_BATCHES = 8


@dataclass(frozen=True)
class Place:
    """Where a window begins: its number, the training's progress, and per key the blocks taken and tokens owed."""

    window: int
    progress: float
    blocks: tuple[int, ...]
    owed: tuple[float, ...]


@dataclass(frozen=True)
class Drawn:
    """A window's pieces in random order: starts among all ids, lengths, number of the key; and what follows."""

    starts: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray
    blocks: tuple[int, ...]
    owed: tuple[float, ...]


class Windows:
    """Token shards as windows of about `tokens` predicted ids, of every key what `mixture` says at that moment."""

    def __init__(
        self,
        shards: TokenShards,
        mixture: Mixture,
        *,
        blocks: Sequence[KeyBlocks],
        tokens: int,
        seed: int,
        teacher: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.mixture, self.blocks, self.tokens, self.seed = mixture, blocks, tokens, seed
        self.reader = Reader(shards, teacher)

    def first(self) -> Place:
        """Return the place of the first window. What is owed begins anywhere within a block, so that keys of which less
        than half a block is due are seen in their turn and not left out together."""
        drawn = np.random.default_rng(named_seed(self.seed, "owed")).random(len(self.blocks)) - 0.5
        owed = tuple(float(part) * blocks.average for part, blocks in zip(drawn, self.blocks, strict=True))
        return Place(0, 0.0, (0,) * len(self.blocks), owed)

    def draw(self, place: Place, row_length: int) -> Drawn:
        """Return the pieces of the window at `place`, cut to fit rows of `row_length`.

        A key takes blocks until it has what it is owed, to the nearest block; the difference is owed to the next
        window, so that shares are met to within a block over any number of windows.
        """
        rng = np.random.default_rng(named_seed(self.seed, f"window/{place.window}"))
        shares = self.mixture.at(place.progress)
        taken, owed, found = list(place.blocks), list(place.owed), []
        for key, blocks in enumerate(self.blocks):
            owed[key] += float(shares[key]) * self.tokens
            while owed[key] >= blocks.average / 2:
                starts, lengths = blocks.documents(taken[key])
                _, starts, lengths = pieces(starts, lengths, row_length)
                taken[key] += 1
                owed[key] -= float((lengths - 1).sum())
                found.append((starts, lengths, np.full(len(starts), key)))
        if not found:
            empty = np.zeros(0, np.int64)
            return Drawn(empty, empty, empty, tuple(taken), tuple(owed))
        parts = [np.concatenate(part) for part in zip(*found, strict=True)]
        order = rng.permutation(len(parts[0]))
        return Drawn(parts[0][order], parts[1][order], parts[2][order], tuple(taken), tuple(owed))


def windows_of(
    shards: TokenShards,
    config: TrainConfig,
    *,
    seed: int,
    teacher: tuple[np.ndarray, np.ndarray] | None = None,
    where: str = "mixture",
) -> Windows:
    """Return the windows that a training section asks for. Raises ConfigError on a mixture that can't be had."""
    if not shards.n_tokens:
        raise DataError(f"{shards.folder} holds no token: there is nothing to train on")
    largest = max(phase.rows * phase.accumulate * phase.context for phase in config.phases)
    size = min(config.window_tokens, shards.n_tokens)
    if len(config.mixture) > 1:  # shares stay within a window, so they need several to move
        size = min(size, config.tokens // 16)
    size = max(size, WINDOW_BATCHES * largest)
    blocks = key_blocks(shards, block_tokens=max(1, size // WINDOW_BLOCKS), seed=seed)
    mixture = Mixture(
        {key: blocks[key].targets for key in blocks},
        points=config.mixture,
        between=config.mixture_between,
        repeats=config.repeats,
        absent=config.mixture_absent,
        where=where,
    )
    return Windows(shards, mixture, blocks=list(blocks.values()), tokens=size, seed=seed, teacher=teacher)


@dataclass
class _Plan:
    """A planned window, and how many of its rows were given. Rows lie end to end: those of batches, then the rest."""

    place: Place
    phase: int
    row: int
    drawn: Drawn
    rows: list[np.ndarray]
    row_lengths: list[int]
    ends: list[int]  # after which rows a batch ends

    @property
    def left(self) -> int:
        """Rows not yet given."""
        return len(self.rows) - self.row

    def batch_end(self) -> int | None:
        """Return the row after the next full batch, if there is one."""
        after = bisect_right(self.ends, self.row)
        return self.ends[after] if after < len(self.ends) else None

    def state(self) -> dict[str, Any]:
        place = {"window": self.place.window, "progress": self.place.progress}
        keys = {"blocks": list(self.place.blocks), "owed": list(self.place.owed)}
        return {"phase": self.phase, "row": self.row, **place, **keys}


_Row = tuple[_Plan, np.ndarray]  # pieces of a planned window


class WindowFeed:
    """Batches of packed pieces out of `windows`, shaped as the `phases` say, each from its very first batch on.

    Parts and `shorter_rows` are as for `PackedFeed`. Every batch is full.
    """

    def __init__(
        self,
        windows: Windows,
        phases: Sequence[Phase],
        *,
        pad_id: int,
        part: Part = WHOLE,
        shorter_rows: bool = True,
    ) -> None:
        self.windows, self.phases = windows, tuple(phases)
        self.pad_id, self.part, self.shorter_rows = pad_id, part, shorter_rows
        self._ends = list(accumulate(phase.steps * phase.accumulate for phase in self.phases))
        self._given = 0
        self._shown = np.zeros(len(windows.blocks), np.int64)
        self._waiting: deque[_Plan] = deque()
        self._at = self._plan(replace(windows.first(), progress=self._progress()), phase=self._phase())
        self._ready: deque[tuple[int, int]] = deque()  # rows of what waits, joined to today's length

    def _phase(self) -> int:
        """Return the phase of the next batch; the last one never ends."""
        return min(bisect_right(self._ends, self._given), len(self.phases) - 1)

    def _progress(self) -> float:
        """Return how far the training will be in the middle of a window that begins now."""
        given, done, total = self._given, 0, 0
        for phase in self.phases:
            count = phase.steps * phase.accumulate
            done += min(given, count) * phase.rows * phase.context
            total += count * phase.rows * phase.context
            given = max(0, given - count)
        return min(1.0, (done + self.windows.tokens / 2) / max(1, total))

    def _plan(self, place: Place, *, phase: int, row: int = 0) -> _Plan:
        shape = self.phases[phase]
        drawn = self.windows.draw(place, shape.context)
        rng = np.random.default_rng(named_seed(self.windows.seed, f"rows/{place.window}"))
        batches, rest = plan_rows(
            drawn.lengths, rows=shape.rows, row_length=shape.context, rng=rng, shorter=self.shorter_rows
        )
        batches = [batches[i] for i in rng.permutation(len(batches))]
        lengths = [length for length, rows in batches for _ in rows] + [shape.context] * len(rest)
        ends = list(accumulate(len(rows) for _, rows in batches))
        return _Plan(place, phase, row, drawn, [*chain(*(rows for _, rows in batches)), *rest], lengths, ends)

    def _turn(self, phase: int) -> None:
        """Go to the next window; what is left of this one waits."""
        before = self._at
        if before.left:
            self._waiting.append(before)
        place = Place(before.place.window + 1, self._progress(), before.drawn.blocks, before.drawn.owed)
        self._at = self._plan(place, phase=phase)
        self._join()

    def _join(self) -> None:
        """Join the rows that wait to rows of today's length, neighbours of one window together."""
        longest = self.phases[self._at.phase].context
        self._ready.clear()
        for plan in self._waiting:
            row = plan.row
            while row < len(plan.rows):
                end, places = row, 0
                while end < len(plan.rows) and places + plan.row_lengths[end] <= longest:
                    places += plan.row_lengths[end]
                    end += 1
                self._ready.append((row, end))
                row = end

    def _rows(self) -> tuple[int, list[_Row]]:
        """Return the row length and the rows of the next batch."""
        phase = self._phase()
        if phase != self._at.phase:
            self._turn(phase)
        shape = self.phases[phase]
        while True:
            if len(self._ready) >= shape.rows:
                return shape.context, [self._waited() for _ in range(shape.rows)]
            first, end = self._at.row, self._at.batch_end()
            if end is not None:
                self._at.row = end
                return self._at.row_lengths[first], [(self._at, row) for row in self._at.rows[first:end]]
            self._turn(phase)

    def _waited(self) -> _Row:
        plan, (first, end) = self._waiting[0], self._ready.popleft()
        plan.row = end
        if not plan.left:
            self._waiting.popleft()
        return plan, np.concatenate(plan.rows[first:end])

    def __next__(self) -> Batch:
        length, rows = self._rows()
        self._given += 1
        for plan, row in rows:
            keys, targets = plan.drawn.keys[row], plan.drawn.lengths[row] - 1
            self._shown += np.bincount(keys, targets, len(self._shown)).astype(np.int64)
        read = self.windows.reader.example
        mine = [
            [read(int(plan.drawn.starts[i]), int(plan.drawn.lengths[i])) for i in row]
            for plan, row in rows[self.part.index :: self.part.of]
        ]
        mine += [[] for _ in range(self.part.rows(len(rows)) - len(mine))]
        return collate(mine, row_length=length, pad_id=self.pad_id, top_k=self.windows.reader.top_k)

    def state(self) -> dict[str, Any]:
        """Return where the next batch is taken from, and how many tokens of each key were shown."""
        return {
            "given": self._given,
            "shown": self._shown.tolist(),
            "at": self._at.state(),
            "waiting": [plan.state() for plan in self._waiting],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved place: the window there and those whose rows wait are planned again."""
        self._given, self._shown = int(state["given"]), np.array(state["shown"], np.int64)
        self._waiting = deque(self._planned(saved) for saved in state["waiting"])
        self._at = self._planned(state["at"])
        self._join()

    def _planned(self, saved: Mapping[str, Any]) -> _Plan:
        place = Place(saved["window"], saved["progress"], tuple(saved["blocks"]), tuple(saved["owed"]))
        return self._plan(place, phase=saved["phase"], row=saved["row"])

    def facts(self) -> dict[str, Any]:
        """Return the shares that were shown, by kind and by key, and how often each key's tokens were."""
        total = max(1, int(self._shown.sum()))
        mixture: dict[str, float] = {}
        shares, epochs = {}, {}
        for blocks, shown in zip(self.windows.blocks, self._shown.tolist(), strict=True):
            name = "/".join(blocks.key)
            mixture[blocks.key[1]] = mixture.get(blocks.key[1], 0.0) + shown / total
            shares[name], epochs[name] = round(shown / total, 6), round(shown / blocks.targets, 4)
        return {
            "mixture": {kind: round(share, 4) for kind, share in mixture.items()},
            "shown": shares,
            "epochs": epochs,
        }
