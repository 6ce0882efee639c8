"""Speculative decoding (arXiv:2211.17192): several drafted ids are verified in one round, in which one would be run.

    shares of sequences that decode -> pace: how many -> drafter: which -> longer shares -> runner -> what stands
                                         ^------------ seconds, acceptance --------------------------'

Verification is no more than choosing each place as ever (`sampler.py`), so answers are those without speculation.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from herd.engine.drafter import Drafter
from herd.engine.pace import Pace, Round
from herd.engine.scheduler import Scheduler, Share
from herd.engine.sequence import Sequence as InFlight


@dataclass
class _Watched:
    """A round under way: who decodes, how many tokens they had, what was done for drafts, when the model began."""

    sequences: list[InFlight]
    said: int = 0
    passes: int = 0
    drafting: float = 0.0
    beside: float = 0.0
    began: float = 0.0


class Speculation:
    """Drafts for whoever decodes. `length`: always so many ids; None: as many as pay, by `clock`.

    share: what a pass of the drafter costs in passes of the model, as far as is known before (see Pace).
    """

    def __init__(
        self,
        drafter: Drafter,
        *,
        length: int | None = None,
        share: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._drafter, self._length, self._clock = drafter, length, clock
        self._pace = Pace(share=share)
        self._watched: _Watched | None = None
        self._begun = False
        self.drafted = self.accepted = self.rounds = 0

    def extend(self, shares: list[Share], scheduler: Scheduler, capacity: int) -> list[Share]:
        """Return the shares of a round with drafted ids behind those that end in the newest token."""
        paced = self._length is None
        if paced and self._pace.rests(len(shares)):
            return shares
        began = self._clock()
        rooms = {share.sequence.handle: _room(share.sequence, capacity) for share in shares if _decodes(share)}
        if not rooms or (paced and len(rooms) < len(shares)):
            return shares  # a round that also reads prompts has little room, and its seconds tell nothing of drafts
        if self._length is None:
            lengths = self._pace.lengths(rooms)
        else:
            lengths = {handle: min(self._length, room) for handle, room in rooms.items()}
        watched = self._watched = _Watched([share.sequence for share in shares if share.sequence.handle in rooms])
        wanted = [sequence for sequence in watched.sequences if lengths[sequence.handle]]
        if wanted:
            drafts = self._draft(wanted, lengths, watched)
            shares = [scheduler.extend(share, drafts.get(share.sequence.handle, [])) for share in shares]
        watched.said = sum(len(sequence.tokens) for sequence in watched.sequences)
        watched.began = self._clock()
        watched.beside = watched.began - began - watched.drafting
        return shares

    def _draft(self, wanted: list[InFlight], lengths: dict[int, int], watched: _Watched) -> dict[int, list[int]]:
        ready = self._drafter.prepare(wanted)
        began = self._clock()
        drafts = self._drafter.draft(ready, [lengths[sequence.handle] for sequence in ready]) if ready else []
        watched.passes = max(map(len, drafts), default=0)
        watched.drafting = self._clock() - began
        return {sequence.handle: ids for sequence, ids in zip(ready, drafts, strict=True)}

    def note(self, shares: list[Share], stood: Sequence[Sequence[bool]]) -> None:
        """Take note of a round that has run: which drafted ids of each share stood, as far as they were tried."""
        watched, self._watched = self._watched, None
        if watched is None:
            return
        ended = self._clock()
        for share, outcome in zip(shares, stood, strict=True):
            if share.drafted:
                sequence, hits = share.sequence, sum(outcome)
                self._pace.note_outcome(sequence.handle, hits, len(outcome))
                for each in (sequence, self):
                    each.drafted += len(share.drafted)
                    each.accepted += hits
                    each.rounds += 1
        # the drafter's first round packs its weights and makes its kernels, once
        begun, self._begun = self._begun, self._begun or watched.drafting > 0
        if self._length is None and self._begun == begun:
            rows = sum(share.count for share in shares)
            tokens = sum(len(sequence.tokens) for sequence in watched.sequences) - watched.said
            model, beside = ended - watched.began, watched.beside + self._clock() - ended
            sequences = len(watched.sequences)
            self._pace.note(Round(sequences, rows, tokens, watched.passes, model, watched.drafting, beside))

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
