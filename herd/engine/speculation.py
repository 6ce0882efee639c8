"""Speculative decoding (arXiv:2211.17192): several drafted ids are verified in one round, in which one would be run.

    shares of sequences that decode -> pace: how many -> drafter: which -> longer shares -> runner -> what stands
                                         ^------------ seconds, acceptance --------------------------'

Verification is no more than choosing each place as ever (`sampler.py`), so answers are those without speculation.
"""

import time
from collections.abc import Callable, Sequence

from herd.engine.drafter import Drafter
from herd.engine.pace import Pace
from herd.engine.scheduler import Scheduler, Share
from herd.engine.sequence import Sequence as InFlight


class Speculation:
    """Drafts for whoever decodes. `length`: always so many ids; None: as many as pay, by `clock`."""

    def __init__(
        self, drafter: Drafter, *, length: int | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._drafter, self._length, self._clock = drafter, length, clock
        self._pace = Pace()
        self._began = 0.0
        self.drafted = self.accepted = self.rounds = 0

    def extend(self, shares: list[Share], scheduler: Scheduler, capacity: int) -> list[Share]:
        """Return the shares of a round with drafted ids behind those that end in the newest token."""
        rooms = {share.sequence.handle: _room(share.sequence, capacity) for share in shares if _decodes(share)}
        lengths = self._pace.lengths(rooms) if self._length is None else _capped(rooms, self._length)
        wanted = [share.sequence for share in shares if lengths.get(share.sequence.handle)]
        ready = self._drafter.prepare(wanted) if wanted else []
        drafts: dict[int, list[int]] = {}
        self._began = self._clock()
        if ready:
            found = self._drafter.draft(ready, [lengths[sequence.handle] for sequence in ready])
            drafts = {sequence.handle: ids for sequence, ids in zip(ready, found, strict=True) if ids}
            began, self._began = self._began, self._clock()
            if drafts:
                passes = max(map(len, drafts.values()))
                self._pace.note_draft(len(rooms), passes, self._began - began)
        return [scheduler.extend(share, drafts.get(share.sequence.handle, [])) for share in shares]

    def note(self, shares: list[Share], stood: Sequence[Sequence[bool]]) -> None:
        """Take note of which drafted ids of each share stood, as far as they were tried."""
        if all(share.count == 1 + len(share.drafted) for share in shares):
            self._pace.note_round(len(shares), sum(share.count for share in shares), self._clock() - self._began)
        for share, outcome in zip(shares, stood, strict=True):
            if share.drafted:
                sequence, hits = share.sequence, sum(outcome)
                self._pace.note_outcome(sequence.handle, hits, len(outcome))
                for each in (sequence, self):
                    each.drafted += len(share.drafted)
                    each.accepted += hits
                    each.rounds += 1

    @property
    def counts(self) -> tuple[int, int, int]:
        """Ids that were drafted and accepted, in so many rounds of single requests."""
        return self.drafted, self.accepted, self.rounds

    def forget(self, sequence: InFlight) -> None:
        """Let go of a sequence that has ended."""
        self._drafter.forget(sequence)
        self._pace.forget(sequence.handle)


def _decodes(share: Share) -> bool:
    return share.complete and share.count == 1


def _room(sequence: InFlight, capacity: int) -> int:
    """Return how many drafted ids can become tokens, the one that always comes left out."""
    return max(0, min(sequence.request.sampling.max_tokens - len(sequence.tokens), capacity - len(sequence.ids)) - 1)


def _capped(rooms: dict[int, int], length: int) -> dict[int, int]:
    return {handle: min(length, room) for handle, room in rooms.items()}
