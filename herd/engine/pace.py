"""How many ids to draft: as many as bring the most tokens a second, by what rounds have cost and what was accepted.

    tokens   of a request with n drafted ids of which each is accepted with chance a: 1 + a + a^2 + ... + a^n
    seconds  of a round: those of so many rows (all ids that are run) in the model, and of n passes of the drafter

All lengths are compared with none. What was never tried counts as free, so it is tried; and drafting stops where it was
slower in fact, whatever was to be expected. Once in a while the way not taken is measured anew; drafting that didn't
pay, after twice the time each time. No clock here: whoever has one tells what it showed.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low

_PRIOR = 0.7  # acceptance before anything is known
_TRUST = 2.0  # tries after which a request's own acceptance counts as much as everybody's
_OWN, _ALL = 0.9, 0.99  # what a round's acceptance counts for after the next one of the request, of the engine
_LEAST = 0.1  # chance of an id's being accepted below which it is not drafted
_FADING = 0.95  # what a round's drafting counts for after the next one
_BELIEVED = 3  # measurements before which nothing is known
_ENOUGH = 8  # drafted rounds after which facts count
_SPIKE = 4  # times the usual seconds of a round: more was other work
_GAIN = 1.03  # measurements are no better than that
_PATIENCE, _MOST_PATIENCE = 64, 1024  # rounds until what is decided is put to the test


class Cost:
    """Seconds of one kind of round: the median of the newest, for other work on the machine adds to some."""

    def __init__(self) -> None:
        self._measured: deque[float] = deque(maxlen=9)
        self.seconds: float | None = None

    def note(self, seconds: float) -> None:
        """Take a measurement."""
        self._measured.append(seconds)
        if len(self._measured) >= _BELIEVED:
            self.seconds = median_low(self._measured)


class Costs:
    """What rounds of about so many sequences cost: in the model, by rows a sequence, and a pass of the drafter."""

    def __init__(self) -> None:
        self.plain = Cost()
        self.forget()

    def forget(self) -> None:
        """Forget what drafting cost."""
        self._more: dict[int, Cost] = {}
        self._passes = Cost()
        self._won = self._spent = 0.0
        self._tried = 0

    def note_round(self, sequences: int, rows: int, seconds: float) -> None:
        """Take a measurement of the model."""
        cost = self.plain if rows == sequences else self._more.setdefault(_kind(sequences, rows), Cost())
        cost.note(seconds)

    def note_pass(self, seconds: float) -> None:
        """Take a measurement of the drafter."""
        self._passes.note(seconds)

    def note_gain(self, rounds: float, model: float, drafter: float) -> None:
        """Take note of a drafted round: of the plain rounds that would have said as much, and its own seconds."""
        if self.plain.seconds is not None:
            self._won = _FADING * self._won + rounds * self.plain.seconds
            self._spent = _FADING * self._spent + min(model, _SPIKE * self.plain.seconds) + drafter
            self._tried += 1

    @property
    def lost(self) -> bool:
        """Whether drafting was slower than it would have been without, all that it took counted."""
        return self._tried >= _ENOUGH and self._won * _GAIN < self._spent

    def of(self, sequences: int, rows: int, passes: int) -> float:
        """Return the seconds of a round; a kind that isn't known costs as much as the next smaller one."""
        assert self.plain.seconds is not None
        seconds = self.plain.seconds
        for kind in range(_kind(sequences, rows), 0, -1):
            known = self._more.get(kind)
            if known is not None and known.seconds is not None:
                seconds = known.seconds
                break
        return seconds + passes * (self._passes.seconds or 0.0)


@dataclass
class Acceptance:
    """Drafted ids that were tried, and those that were accepted, older ones counting less; rounds without a try."""

    hits: float = 0.0
    tries: float = 0.0
    quiet: int = 0

    def note(self, hits: int, tries: int, *, keep: float) -> None:
        """Take a round's outcome."""
        self.hits, self.tries, self.quiet = keep * self.hits + hits, keep * self.tries + tries, 0


class Pace:
    """Decides the length of each draft, up to `longest`. Requests go by handle."""

    def __init__(self, longest: int = 8) -> None:
        self._longest = longest
        self._costs: dict[int, Costs] = {}  # by the number of sequences, in powers of two
        self._all = _unknown()
        self._own: dict[int, Acceptance] = {}
        self._seen: set[int] = set()
        self._rounds, self._patience = 0, _PATIENCE

    def lengths(self, rooms: Mapping[int, int], rows: int) -> dict[int, int]:
        """Return how many ids to draft for each request that decodes in a round of so many rows without drafts.

        rooms: the most ids that each could use.
        """
        none = dict.fromkeys(rooms, 0)
        if not any(rooms.values()):
            return none
        costs = self._of(len(rooms))
        if costs.plain.seconds is None:
            return none
        best = self._best(rooms, rows, costs)
        for handle in rooms:
            self._request(handle).quiet += 1
        self._rounds += 1
        return best if self._rounds < self._patience else self._test(rooms, rows, best)

    def note_round(self, sequences: int, rows: int, seconds: float) -> None:
        """Take note of what a round cost the model; the first of so many rows makes its kernels."""
        if rows in self._seen:
            self._of(sequences).note_round(sequences, rows, seconds)
        self._seen.add(rows)

    def note_draft(self, sequences: int, passes: int, seconds: float) -> None:
        """Take note of what drafting in a round of so many sequences cost."""
        self._of(sequences).note_pass(seconds / passes)

    def note_gain(self, sequences: int, tokens: int, *, model: float | None, drafter: float) -> None:
        """Take note of the tokens of a round in which the drafter worked, and of all the seconds of both.

        model: None where it had other work too, or nothing was drafted.
        """
        costs = self._of(sequences)
        costs.note_gain(tokens / sequences, (costs.plain.seconds or 0.0) if model is None else model, drafter)

    def note_outcome(self, handle: int, hits: int, tries: int) -> None:
        """Take note of how many drafted ids were accepted, of those that were tried."""
        self._request(handle).note(hits, tries, keep=_OWN)
        self._all.note(hits, tries, keep=_ALL)

    def forget(self, handle: int) -> None:
        """Let go of a request that has ended."""
        self._own.pop(handle, None)

    def chance(self, handle: int) -> float:
        """Return the estimated chance that a drafted id of a request is accepted, if those before it are."""
        own, everyone = self._request(handle), self._all.hits / self._all.tries
        return (everyone * _TRUST + own.hits) / (_TRUST + own.tries)

    def _test(self, rooms: Mapping[int, int], rows: int, best: dict[int, int]) -> dict[int, int]:
        """Put to the test what has been decided for some time."""
        self._rounds, costs = 0, self._of(len(rooms))
        if not any(best.values()):
            self._patience = min(_MOST_PATIENCE, 2 * self._patience)
            costs.forget()
            self._all = _unknown()
            self._own.clear()
            return self._best(rooms, rows, costs)
        self._patience, costs.plain = _PATIENCE, Cost()
        off = [handle for handle, room in rooms.items() if room and not best[handle]]
        if off:
            del self._own[max(off, key=lambda handle: self._request(handle).quiet)]
        return dict.fromkeys(rooms, 0)

    def _best(self, rooms: Mapping[int, int], rows: int, costs: Costs) -> dict[int, int]:
        chances = {handle: self.chance(handle) for handle in rooms}
        reach = {handle: min(room, _reach(chances[handle], self._longest)) for handle, room in rooms.items()}
        best = dict.fromkeys(rooms, 0)
        if costs.lost:
            return best
        rate = _GAIN * len(rooms) / costs.of(len(rooms), rows, 0)
        for longest in range(1, max(reach.values()) + 1):
            lengths = {handle: min(longest, most) for handle, most in reach.items()}
            tokens = sum(_tokens(chances[handle], length) for handle, length in lengths.items())
            seconds = costs.of(len(rooms), rows + sum(lengths.values()), longest)
            if tokens > rate * seconds:
                best, rate = lengths, tokens / seconds
        return best

    def _of(self, sequences: int) -> Costs:
        return self._costs.setdefault((sequences - 1).bit_length(), Costs())

    def _request(self, handle: int) -> Acceptance:
        return self._own.setdefault(handle, Acceptance())


def _unknown() -> Acceptance:
    return Acceptance(_PRIOR * _TRUST, _TRUST)


def _kind(sequences: int, rows: int) -> int:
    """Return 0 for a row a sequence, 1 for up to two, 2 for up to four, and so on."""
    return (-(-rows // sequences) - 1).bit_length()


def _reach(chance: float, longest: int) -> int:
    """Return the last place of a draft that is still accepted with a chance worth it."""
    return next((n for n in range(longest) if chance ** (n + 1) < _LEAST), longest)


def _tokens(chance: float, length: int) -> float:
    """Return the tokens to be expected of a round."""
    return sum(chance**n for n in range(length + 1))
