"""Who guesses the next ids, which can't change an answer, only how many rounds it takes; and guessing by lookup.

A sibling that runs ahead is in `sibling.py`.
"""

from collections.abc import Sequence
from typing import Protocol

from herd.engine.sequence import Sequence as InFlight

_SHORTEST = 2  # ids that must be the same before a guess
_TRIED = 8  # earlier places that are compared
_LONGEST = 32  # ids back to which they are compared


class Drafter(Protocol):
    """Proposes ids for sequences that run."""

    def prepare(self, sequences: Sequence[InFlight]) -> list[InFlight]:
        """Return those that can be drafted for this round; the others are worked on."""
        ...

    def draft(self, sequences: Sequence[InFlight], lengths: Sequence[int]) -> list[list[int]]:
        """Return for each prepared sequence up to so many ids that may follow its own."""
        ...

    def forget(self, sequence: InFlight) -> None:
        """Let go of a sequence that has ended."""
        ...


class NgramDrafter:
    """Looks up where the last ids of a sequence, prompt included, stood before, and proposes what followed there."""

    def __init__(self) -> None:
        self._indices: dict[int, _Index] = {}

    def prepare(self, sequences: Sequence[InFlight]) -> list[InFlight]:
        """Return all of them."""
        return list(sequences)

    def draft(self, sequences: Sequence[InFlight], lengths: Sequence[int]) -> list[list[int]]:
        """See Drafter; nothing for a sequence whose end is new."""
        return [
            self._indices.setdefault(sequence.handle, _Index()).guess(sequence.ids, length)
            for sequence, length in zip(sequences, lengths, strict=True)
        ]

    def forget(self, sequence: InFlight) -> None:
        """See Drafter."""
        self._indices.pop(sequence.handle, None)


class _Index:
    """Of one sequence: behind each pair of ids the newest place, and behind each place the one before it."""

    def __init__(self) -> None:
        self._newest: dict[tuple[int, int], int] = {}
        self._before: list[int] = [-1, -1]  # by place: how many ids stand before it

    def guess(self, ids: list[int], length: int) -> list[int]:
        """Return what followed the longest of the newest places that end like `ids`."""
        for place in range(len(self._before), len(ids)):
            pair = ids[place - 2], ids[place - 1]
            self._before.append(self._newest.get(pair, -1))
            self._newest[pair] = place
        if len(ids) < _SHORTEST:
            return []
        place, best, most = self._newest.get((ids[-2], ids[-1]), -1), -1, 0
        for _ in range(_TRIED):
            if place < 0:
                break
            same = self._same(ids, place)
            if same > most:
                best, most = place, same
            place = self._before[place]
        if best < 0:
            return []
        # where what followed reaches the end, it goes round: a text that repeats itself goes on doing so
        period = len(ids) - best
        return [ids[best + i % period] for i in range(length)]

    def _same(self, ids: list[int], place: int) -> int:
        """Return how many ids before a place are those at the end."""
        most = min(_LONGEST, place)
        return next((n for n in range(_SHORTEST, most) if ids[place - 1 - n] != ids[-1 - n]), most)
