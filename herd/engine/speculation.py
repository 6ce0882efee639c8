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
        self._began = self._drafting = 0.0  # of this round: when it went to the model; seconds of the drafter
        self._decoding: list[InFlight] = []
        self._said = 0
        self.drafted = self.accepted = self.rounds = 0

    def extend(self, shares: list[Share], scheduler: Scheduler, capacity: int) -> list[Share]:
        """Return the shares of a round with drafted ids behind those that end in the newest token."""
        rooms = {share.sequence.handle: _room(share.sequence, capacity) for share in shares if _decodes(share)}
        if self._length is None:
            lengths = self._pace.lengths(rooms, sum(share.count for share in shares))
        else:
            lengths = {handle: min(self._length, room) for handle, room in rooms.items()}
        wanted = [share.sequence for share in shares if lengths.get(share.sequence.handle)]
        drafts = self._draft(wanted, lengths, len(rooms)) if wanted else {}
        self._decoding = [share.sequence for share in shares if share.sequence.handle in rooms]
        self._said = sum(len(sequence.tokens) for sequence in self._decoding)
        self._began = self._clock()
        return [scheduler.extend(share, drafts.get(share.sequence.handle, [])) for share in shares]

    def _draft(self, wanted: list[InFlight], lengths: dict[int, int], decoding: int) -> dict[int, list[int]]:
        began = self._clock()
        ready = self._drafter.prepare(wanted)
        prepared = self._clock()
        drafts = self._drafter.draft(ready, [lengths[sequence.handle] for sequence in ready]) if ready else []
        ended = self._clock()
        if passes := max(map(len, drafts), default=0):
            self._pace.note_draft(decoding, passes, ended - prepared)
        self._drafting = ended - began
        return {sequence.handle: ids for sequence, ids in zip(ready, drafts, strict=True)}

    def note(self, shares: list[Share], stood: Sequence[Sequence[bool]]) -> None:
        """Take note of a round that has run: which drafted ids of each share stood, as far as they were tried."""
        seconds, decoding = self._clock() - self._began, len(self._decoding)
        if decoding:
            self._pace.note_round(decoding, sum(share.count for share in shares), seconds)
        if self._drafting:
            tokens = sum(len(sequence.tokens) for sequence in self._decoding) - self._said
            model = seconds if decoding == len(shares) and any(share.drafted for share in shares) else None
            self._pace.note_gain(decoding, tokens, model=model, drafter=self._drafting)
        self._drafting, self._decoding = 0.0, []
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
