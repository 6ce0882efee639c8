"""How many ids to draft: as many as bring the most tokens a second, by what rounds have cost and what was accepted.

    tokens   of a request with n drafted ids of which each is accepted with chance a: 1 + a + a^2 + ... + a^n
    seconds  of a round: those of so many sequences and rows in the model, and of n passes of the drafter

All lengths up to the longest are compared with none. Once in a while a round goes the other way: what isn't tried is
not known. No clock here: whoever has one tells what it showed.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass

_PRIOR = 0.7  # acceptance before anything is known
_TRUST = 2.0  # tries after which a request's own acceptance counts as much as everybody's
_OWN, _ALL = 0.9, 0.99  # what a round's acceptance counts for after the next one of the request, of the engine
_LEAST = 0.1  # chance of an id's being accepted below which it is not drafted
_GAIN = 1.03  # measurements are no better than that
_PATIENCE, _MOST_PATIENCE = 64, 1024  # rounds that go the same way
_PROBE = 2
_FALLING, _RISING = 0.5, 0.1  # weight of a new measurement: other work on the machine only ever adds
_BASELINE = 2  # undrafted rounds before the first draft


class Curve:
    """Seconds as a function of rows: measured ones, straight lines between them, flat at both ends."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._seconds: dict[int, float] = {}

    def note(self, rows: int, seconds: float) -> None:
        """Take a measurement."""
        rows = rows if rows <= 16 else 8 * round(rows / 8)
        known = self._seconds.get(rows)
        if known is None:
            insort(self._rows, rows)
            self._seconds[rows] = seconds
        else:
            self._seconds[rows] += (_FALLING if seconds < known else _RISING) * (min(seconds, 2 * known) - known)

    def at(self, rows: int) -> float:
        """Return the seconds of so many rows; 0 where nothing was measured, so that it is tried."""
        if not self._rows:
            return 0.0
        place = bisect_left(self._rows, rows)
        if place == len(self._rows) or place == 0:
            return self._seconds[self._rows[max(0, place - 1)]]
        low, high = self._rows[place - 1 : place + 1]
        part = (rows - low) / (high - low)
        return self._seconds[low] + part * (self._seconds[high] - self._seconds[low])


@dataclass
class Acceptance:
    """Drafted ids that were tried, and those that were accepted, older ones counting less; rounds without a try."""

    hits: float = 0.0
    tries: float = 0.0
    quiet: int = 0

    def note(self, hits: int, tries: int, *, keep: float) -> None:
        """Take a round's outcome."""
        self.hits, self.tries, self.quiet = keep * self.hits + hits, keep * self.tries + tries, 0


class Costs:
    """What rounds of so many sequences cost: in the model by rows, and a pass of the drafter by sequences."""

    def __init__(self) -> None:
        self.rounds, self.passes = Curve(), Curve()
        self.baseline = 0  # undrafted rounds measured


class Pace:
    """Decides the length of each draft, up to `longest`. Requests go by handle."""

    def __init__(self, longest: int = 8) -> None:
        self._longest = longest
        self._costs: dict[int, Costs] = {}  # by the number of sequences, in powers of two
        self._all = Acceptance(_PRIOR * _TRUST, _TRUST)
        self._own: dict[int, Acceptance] = {}
        self._same_way, self._patience, self._turn = 0, _PATIENCE, 0

    def lengths(self, rooms: Mapping[int, int]) -> dict[int, int]:
        """Return how many ids to draft for each request of a round; `rooms` has the most that it could use."""
        costs = self._cost(len(rooms))
        if costs.baseline < _BASELINE:
            return dict.fromkeys(rooms, 0)
        lengths = self._best(rooms, costs)
        for handle in rooms:
            self._of(handle).quiet += 1
        self._same_way += 1
        if self._same_way < self._patience:
            return lengths
        self._same_way, self._turn = 0, self._turn + 1
        on = any(lengths.values())
        self._patience = _PATIENCE if on else min(_MOST_PATIENCE, 2 * self._patience)
        off = [handle for handle, room in rooms.items() if room and not lengths[handle]]
        if on and (not off or self._turn % 2):
            return dict.fromkeys(rooms, 0)
        if off:
            longest = max(off, key=lambda handle: self._of(handle).quiet)
            lengths[longest] = min(_PROBE, rooms[longest])
        return lengths

    def note_round(self, sequences: int, rows: int, seconds: float) -> None:
        """Take note of what a round without prompts cost the model."""
        costs = self._cost(sequences)
        costs.baseline += rows == sequences
        costs.rounds.note(rows, seconds)

    def note_draft(self, sequences: int, drafted: int, *, passes: int, seconds: float) -> None:
        """Take note of what drafting for `drafted` of the sequences cost, in so many passes."""
        self._cost(sequences).passes.note(drafted, seconds / passes)

    def note_outcome(self, handle: int, hits: int, tries: int) -> None:
        """Take note of how many drafted ids were accepted, of those that were tried."""
        self._of(handle).note(hits, tries, keep=_OWN)
        self._all.note(hits, tries, keep=_ALL)

    def forget(self, handle: int) -> None:
        """Let go of a request that has ended."""
        self._own.pop(handle, None)

    def chance(self, handle: int) -> float:
        """Return the estimated chance that a drafted id of a request is accepted, if those before it are."""
        own, everyone = self._of(handle), self._all.hits / self._all.tries
        return (everyone * _TRUST + own.hits) / (_TRUST + own.tries)

    def _best(self, rooms: Mapping[int, int], costs: Costs) -> dict[int, int]:
        chances = {handle: self.chance(handle) for handle in rooms}
        best = dict.fromkeys(rooms, 0)
        rate = len(rooms) / costs.rounds.at(len(rooms)) * _GAIN
        reach = {handle: min(room, _reach(chances[handle], self._longest)) for handle, room in rooms.items()}
        for longest in range(1, max(reach.values(), default=0) + 1):
            lengths = {handle: min(longest, most) for handle, most in reach.items()}
            tokens = sum(_tokens(chances[handle], length) for handle, length in lengths.items())
            drafting = sum(length > 0 for length in lengths.values())
            seconds = costs.rounds.at(len(rooms) + sum(lengths.values())) + longest * costs.passes.at(drafting)
            if tokens > rate * seconds:
                best, rate = lengths, tokens / seconds
        return best

    def _cost(self, sequences: int) -> Costs:
        return self._costs.setdefault((sequences - 1).bit_length(), Costs())

    def _of(self, handle: int) -> Acceptance:
        return self._own.setdefault(handle, Acceptance())


def _reach(chance: float, longest: int) -> int:
    """Return the last place of a draft that is still accepted with a chance worth it."""
    return next((n for n in range(longest) if chance ** (n + 1) < _LEAST), longest)


def _tokens(chance: float, length: int) -> float:
    """Return the tokens to be expected of a round."""
    return sum(chance**n for n in range(length + 1))
