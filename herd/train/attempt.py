"""One attempt at a step of a run, as training sees it: its clock and heart, the signals it obeys, what it tells."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from herd.base.ledger import Record
from herd.runtime.signals import StopSignals
from herd.train.clock import Clock
from herd.train.heart import Heart


@dataclass(frozen=True)
class Attempt:
    """start: the attempt's first record. tell: writes an event into the ledger and says it (the first rank does).

    ranks: how many processes make the attempt together.
    """

    start: Record
    heart: Heart
    stop: StopSignals
    tell: Callable[[str, Mapping[str, Any]], None]
    ranks: int = 1

    def saved(self, step: int) -> None:
        """Say that a checkpoint is whole, before it can be found: its work is kept whatever happens."""
        self.clock.saved(step)
        self.heart.beat()

    @property
    def clock(self) -> Clock:
        """What the attempt's time is spent on."""
        return self.heart.clock
