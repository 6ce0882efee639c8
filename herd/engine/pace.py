"""How many ids to draft: as many as bring the most tokens a second, and none where drafting loses time in fact.

    tokens   of a request with n drafted ids of which each is accepted with chance a: 1 + a + a^2 + ... + a^n
    seconds  of a round: those of so many rows (all ids that are run) in the model, and of n passes of the drafter
    loss     of a round, in plain rounds: what it took, all that the drafter did counted, less the tokens that came

A trial begins with short drafts, for what longer ones cost is not known. It ends when nothing is expected of
drafting, or when it has lost its allowance in fact. Then drafting rests until plain rounds have paid, at a hundredth
each, for the next trial, which may lose twice as much, and for what this one lost beyond its own. So, while plain
rounds take what they took, drafting loses at most

    1 % of the time + 4 plain rounds + what one round lost, for each kind of batch (1, 2, 3-4, 5-8 ... sequences)

against never drafting at all. The 4 are granted only until one kind has lost them; then others earn theirs first.
No clock here: whoever has one tells what it showed.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from statistics import median_low

_PRIOR = 0.8  # acceptance before anything is known
_TRUST = 2.0  # tries after which a request's own acceptance counts as much as everybody's
_OWN, _ALL = 0.9, 0.99  # what a round's acceptance counts for after the next one of the request, of the engine
_LEAST = 0.1  # chance of an id's being accepted below which it is not drafted
_GAIN = 1.03  # measurements are no better than that
_SHARE = 0.01  # of the time: what drafting may lose
_FIRST, _MOST = 4.0, 256.0  # plain rounds that a trial may lose: the first one, and any
_ODD = 64.0  # plain rounds that one round can lose; more was other work on the machine
_LOOK = 5  # plain rounds that are measured before a trial
_CHECK = 32  # rounds of drafting after which a plain one is measured again, or of rest after a trial that has won


@dataclass(frozen=True)
class Round:
    """What a round of requests that all decode has shown.

    rows: ids that were run, drafted ones with them. tokens: what came of it. passes: ids of the longest draft.
    Seconds: of the model, of these passes, and of all else that is done for drafts.
    """

    sequences: int
    rows: int
    tokens: int
    passes: int
    model: float
    drafting: float
    beside: float


class Cost:
    """Seconds of something: the median of the newest, the lower of two, for other work on the machine adds to some."""

    def __init__(self) -> None:
        self._measured: deque[float] = deque(maxlen=5)
        self.seconds: float | None = None

    def note(self, seconds: float) -> None:
        """Take a measurement."""
        self._measured.append(seconds)
        if len(self._measured) > 1:
            self.seconds = median_low(self._measured)


class Batch:
    """Batches of about so many sequences: what their rounds cost, and what drafting may still lose on them."""

    def __init__(self) -> None:
        self.allowance = self._trial = _FIRST
        self._begin(0)
        self.fresh = True  # nothing was tried, nor put off

    def _begin(self, rest: int) -> None:
        self.wait = rest + _LOOK  # rounds until drafts are tried; the last ones are measured
        self.rounds, self.fresh = 0, False  # rounds since then
        self.plain, self._passes = Cost(), Cost()
        self._more: dict[int, Cost] = {}

    def earn(self) -> None:
        """Rest until plain rounds have paid for what was lost too much, and for the next trial."""
        self._begin(ceil((self._trial - min(0.0, self.allowance)) / _SHARE))
        self.allowance = self._trial

    def rest(self) -> None:
        """End a trial; the next one may lose twice as much. After one that has won it comes soon, a few times over."""
        if self.allowance > self._trial:
            self.allowance /= 2
            self._begin(_CHECK)
        else:
            self._trial = min(_MOST, 2 * self._trial)
            self.earn()

    def note(self, seen: Round) -> None:
        """Take note of a round."""
        drafted = seen.rows > seen.sequences
        cost = self._more.setdefault(_kind(seen.sequences, seen.rows), Cost()) if drafted else self.plain
        cost.note(seen.model)
        self.wait = max(0, self.wait - 1)
        if self.plain.seconds is None:
            return
        if seen.passes:
            self._passes.note(seen.drafting / seen.passes)
        spent = seen.drafting + seen.beside
        # the seconds of a round without drafts are what it would have taken anyway
        gain = seen.tokens / seen.sequences - seen.model / self.plain.seconds if drafted else 0.0
        self.allowance = min(_MOST, self.allowance + max(-_ODD, gain - spent / self.plain.seconds))
        if self.allowance >= 2 * self._trial:
            self._trial = _FIRST

    @property
    def tried(self) -> int:
        """The largest kind of round that has been measured."""
        return max((kind for kind, cost in self._more.items() if cost.seconds is not None), default=0)

    def seconds(self, kind: int, passes: int, share: float) -> float:
        """Return the seconds of a round; a kind that isn't known costs as much as the next smaller one.

        share: a pass of the drafter, in plain rounds, before one is measured.
        """
        assert self.plain.seconds is not None
        known = (self._more[k].seconds for k in range(kind, 0, -1) if k in self._more)
        seconds = next((each for each in known if each is not None), self.plain.seconds)
        each = self._passes.seconds
        return seconds + passes * (share * self.plain.seconds if each is None else each)


@dataclass
class Acceptance:
    """Drafted ids that were tried, and those that were accepted, older ones counting less."""

    hits: float = 0.0
    tries: float = 0.0

    def note(self, hits: int, tries: int, *, keep: float) -> None:
        """Take a round's outcome."""
        self.hits, self.tries = keep * self.hits + hits, keep * self.tries + tries


class Pace:
    """Decides the length of each draft, up to `longest`. Requests go by handle.

    share: of a plain round's seconds, what a pass of the drafter is taken to cost until it is measured.
    """

    def __init__(self, longest: int = 8, *, share: float = 0.0) -> None:
        self._longest, self._share = longest, share
        self._batches: dict[int, Batch] = {}  # by the number of sequences, in powers of two
        self._all = _unknown()
        self._own: dict[int, Acceptance] = {}
        self._lost = False  # whether any trial has

    def rests(self, sequences: int) -> bool:
        """Say whether a round of so many sequences is neither drafted nor measured; it is counted then."""
        batch = self._batches.get((sequences - 1).bit_length())
        if batch is None or batch.wait <= _LOOK:
            return False
        batch.wait -= 1
        return True

    def lengths(self, rooms: Mapping[int, int]) -> dict[int, int]:
        """Return how many ids to draft for each request of a round. rooms: the most ids that each could use."""
        batch, none = self._batch(len(rooms)), dict.fromkeys(rooms, 0)
        if batch.wait or not any(rooms.values()):
            return none
        chances = {handle: self.chance(handle) for handle in rooms}
        best = self._best(batch, chances)
        if not any(best.values()) and not any(self._best(batch, dict.fromkeys(rooms, self._usual)).values()):
            self._rest(batch)
            return none
        for handle, length in best.items():
            if not length:  # what was seen of a request fades, so that it is tried again
                self._own[handle].note(0, 0, keep=_ALL)
        batch.rounds += 1
        return (
            none if batch.rounds % _CHECK == 0 else {handle: min(best[handle], room) for handle, room in rooms.items()}
        )

    def note(self, seen: Round) -> None:
        """Take note of a round that was not rested."""
        batch = self._batch(seen.sequences)
        batch.note(seen)
        if batch.allowance < 0:
            self._rest(batch)

    def note_outcome(self, handle: int, hits: int, tries: int) -> None:
        """Take note of how many drafted ids were accepted, of those that were tried."""
        self._own.setdefault(handle, Acceptance()).note(hits, tries, keep=_OWN)
        self._all.note(hits, tries, keep=_ALL)

    def forget(self, handle: int) -> None:
        """Let go of a request that has ended."""
        self._own.pop(handle, None)

    def chance(self, handle: int) -> float:
        """Return the estimated chance that a drafted id of a request is accepted, if those before it are."""
        own = self._own.setdefault(handle, Acceptance())
        return (self._usual * _TRUST + own.hits) / (_TRUST + own.tries)

    @property
    def _usual(self) -> float:
        return self._all.hits / self._all.tries

    def _rest(self, batch: Batch) -> None:
        self._lost |= batch.allowance < 0
        batch.rest()
        for other in self._batches.values():
            if self._lost and other.fresh:
                other.earn()
        self._all = _unknown()
        self._own.clear()

    def _best(self, batch: Batch, chances: Mapping[int, float]) -> dict[int, int]:
        """Return the lengths that bring the most tokens a second; kinds of rounds are tried one after the other."""
        sequences = len(chances)
        tokens, rows, best = float(sequences), sequences, 0
        rate = _GAIN * tokens / batch.seconds(0, 0, self._share)
        for length in range(1, self._longest + 1):
            more = [more for chance in chances.values() if (more := chance**length) >= _LEAST]
            tokens, rows = tokens + sum(more), rows + len(more)
            kind = _kind(sequences, rows)
            if not more or kind > batch.tried + 1:
                break
            now = tokens / batch.seconds(kind, length, self._share)
            if now > rate:
                best, rate = length, now
        return {handle: _reach(chance, best) for handle, chance in chances.items()}

    def _batch(self, sequences: int) -> Batch:
        kind = (sequences - 1).bit_length()
        if kind not in self._batches:
            self._batches[kind] = Batch()
            if self._lost:
                self._batches[kind].earn()
        return self._batches[kind]


def _unknown() -> Acceptance:
    return Acceptance(_PRIOR * _TRUST, _TRUST)


def _kind(sequences: int, rows: int) -> int:
    """Return 0 for a row a sequence, 1 for up to two, 2 for up to four, and so on."""
    return (-(-rows // sequences) - 1).bit_length()


def _reach(chance: float, longest: int) -> int:
    """Return the last place of a draft that is still accepted with a chance worth it."""
    return next((n for n in range(longest) if chance ** (n + 1) < _LEAST), longest)
