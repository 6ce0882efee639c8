"""The watchdog: ends a run that hangs with one line that names the rank that didn't arrive, and names slow ranks.

Every rank has one, in the thread of its heart (train/heart.py). All ranks but the one at fault stand in a collective,
so all notice at about the same time; the first of those that did arrive speaks, and all end. No torch.
"""

import queue
import statistics
import time
from collections.abc import Callable, Sequence

from herd.runtime.signals import EXIT_HUNG, end_now
from herd.train.clock import STEP
from herd.train.config import FaultsConfig
from herd.train.heart import Beat, Heart, read_beats

_FEWEST_STEPS = 5  # that a median step is taken of
_FLOOR = 10.0  # seconds: a step that short is never a hang by factor
_WINDOWS = 3  # that a rank is slow in, one after another, before it is named


class Watchdog:
    """Called with each beat of this rank. Ends the process when a step takes longer than `config` allows.

    slow: (rank, factor) of ranks found to be slow by the first rank's watchdog, to be told by the main thread.
    """

    def __init__(
        self, heart: Heart, config: FaultsConfig, *, ranks: int = 1, end: Callable[[int, str], None] = end_now
    ) -> None:
        self._heart, self._config, self._ranks, self._end = heart, config, ranks, end
        self.slow: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        self._window, self._in_a_row = 0, dict.fromkeys(range(ranks), 0)

    def __call__(self, beat: Beat) -> None:
        limit = self.limit()
        if limit is not None and self._heart.clock.current() > limit:
            self._fire(limit)
        if beat.rank == 0 and self._ranks > 1 and beat.window > self._window and self._config.straggler_factor:
            self._window = beat.window
            self._compare(read_beats(self._heart.folder, self._heart.attempt), self._config.straggler_factor)

    def limit(self) -> float | None:
        """Return the seconds that what is going on may take; None for any."""
        clock, config = self._heart.clock, self._config
        if clock.kind in ("startup", "idle"):
            return None
        limits = [config.hang_seconds] if config.hang_seconds else []
        if clock.kind in STEP and config.hang_factor and len(clock.durations) >= _FEWEST_STEPS:
            limits.append(max(_FLOOR, config.hang_factor * statistics.median(clock.durations)))
        return min(limits, default=None)

    def _fire(self, limit: float) -> None:
        heart, clock = self._heart, self._heart.clock
        heart.ending.set()
        what = f"step {clock.step + 1}" if clock.kind in STEP else f"{clock.kind} after step {clock.step}"
        # time for the others to say where they stand, twice: of a rank without life the count stays
        self._wait(2.0)
        before = read_beats(heart.folder, heart.attempt)
        self._wait(2.0)
        beats = read_beats(heart.folder, heart.attempt)
        reasons = behind(before, beats, ranks=self._ranks)
        clock.hung()
        speaker = next((rank for rank in range(self._ranks) if rank not in reasons), min(reasons, default=0))
        if heart.rank != speaker:
            self._wait(3.0)  # for the speaker to be heard before its collectives break
            self._end(EXIT_HUNG, "")
            return
        why = f"{what} took longer than {limit:g} s: {accusation(reasons, beats, ranks=self._ranks)}"
        heart.beat(why)
        self._end(EXIT_HUNG, f"{why}; the same command goes on from the last checkpoint")

    def _wait(self, beats: float) -> None:
        for _ in range(round(4 * beats)):
            time.sleep(self._heart.seconds / 4)
            self._heart.beat()

    def _compare(self, beats: Sequence[Beat], factor: float) -> None:
        slow = stragglers(beats, factor)
        for rank in self._in_a_row:
            self._in_a_row[rank] = self._in_a_row[rank] + 1 if rank in slow else 0
            if self._in_a_row[rank] == _WINDOWS:
                self.slow.put((rank, slow[rank]))


def behind(before: Sequence[Beat], now: Sequence[Beat], *, ranks: int) -> dict[int, str]:
    """Return the ranks that others wait for, each with the reason, from two looks at all ranks' beats.

    Empty where all ranks wait, or stand at the same step and nobody is seen to wait: then it isn't known.
    """
    if ranks == 1:
        return {}
    counts, last = {beat.rank: beat.count for beat in before}, max((beat.step for beat in now), default=0)
    alive = [beat for beat in now if beat.count > counts.get(beat.rank, 0)]
    found = dict.fromkeys(set(range(ranks)) - {beat.rank for beat in now}, "it never began")
    found |= {beat.rank: f"no sign of life, last at {beat.at}" for beat in now if beat not in alive}
    found |= {beat.rank: f"{last - beat.step} steps behind, at {beat.at}" for beat in alive if beat.step < last}
    level = [beat for beat in alive if beat.step == last]
    # whoever doesn't wait while others do; where waiting can't be seen (a GPU's queue hides it), who still draws data
    idle = [beat for beat in level if not beat.waiting]
    if len(idle) == len(level):
        idle = [beat for beat in level if beat.kind == "data"]
    if len(idle) < len(level):
        found |= {beat.rank: f"at {beat.at}" for beat in idle}
    return dict(sorted(found.items()))


def accusation(reasons: dict[int, str], beats: Sequence[Beat], *, ranks: int) -> str:
    """Return who didn't arrive, in words."""
    if reasons:
        names = [f"rank {rank} ({why})" for rank, why in list(reasons.items())[:8]]
        more = f" and {len(reasons) - 8} more" if len(reasons) > 8 else ""
        return f"{', '.join(names)}{more} of {ranks} didn't arrive"
    if ranks == 1:
        return f"it stands at {beats[0].at}" if beats else "it is not known where"
    places = sorted({beat.at for beat in beats})
    return f"all {ranks} ranks wait for each other (at {', '.join(places[:3])}): look at the network and the cards"


def stragglers(beats: Sequence[Beat], factor: float) -> dict[int, float]:
    """Return the ranks that work over `factor` times as long as the median of the others do, and that factor.

    In step with each other all ranks take the same time; what differs is how much of it they wait for others.
    """
    found = {}
    for beat in beats:
        others = [other.busy for other in beats if other.rank != beat.rank]
        ratio = beat.busy / max(statistics.median_low(others), 0.01) if others else 1.0
        if ratio > factor:
            found[beat.rank] = ratio
    return found
