"""Goodput: where the device-hours of a step of a run went, over all attempts at it.

    attempt 1   start-up | steps 1 to 57, checkpoints at 25 and 50 | killed         steps 51 to 57 are lost
    attempt 2   start-up | steps 51 to 80, its result stands                        nothing is lost

An attempt measures itself as if all its work would last. What was lost is known when all attempts are: the work
beyond the step at which a later one went on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from herd.base.ledger import Record

# what devices do, and how the card calls it
KINDS = {
    "useful": "useful",
    "lost": "lost to restart",
    "checkpoint": "checkpoint",
    "eval": "evaluation",
    "data": "data wait",
    "startup": "start-up",
    "idle": "idle",
}
WORK = ("useful", "eval", "data")  # what is done again after a restart from an earlier step


@dataclass(frozen=True)
class Attempt:
    """One attempt at a step of a run, as measured: device-seconds by kind.

    first   the training step that it went on from
    saved   training step -> work (by kind) up to there since the attempt began, for each checkpoint it wrote
    whole   whether the attempt came to its end, so that its work isn't lost of itself
    """

    spent: Mapping[str, float]
    first: int = 0
    saved: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    whole: bool = True

    @property
    def total(self) -> float:
        """Device-seconds."""
        return sum(self.spent.values())

    def kept(self, until: float) -> Mapping[str, float]:
        """Return the work, by kind, on training steps up to `until`: up to the last checkpoint not beyond it."""
        places = [step for step in self.saved if self.first < step <= until]
        return self.saved[max(places)] if places else {}


def account(tries: Sequence[Attempt]) -> dict[str, float]:
    """Return device-seconds by kind over all attempts at one step, in order; their sum is that of the attempts.

    Work of an attempt is lost beyond the first step of any later attempt, and where it didn't come to its end beyond
    its last checkpoint.
    """
    split = dict.fromkeys(KINDS, 0.0)
    resumed = float("inf")
    for attempt in reversed(tries):
        for kind, seconds in attempt.spent.items():
            split[kind] += seconds
        if not attempt.whole or resumed < float("inf"):
            kept = attempt.kept(resumed)
            for kind in WORK:
                gone = max(0.0, attempt.spent.get(kind, 0.0) - kept.get(kind, 0.0))
                split[kind] -= gone
                split["lost"] += gone
        resumed = min(resumed, attempt.first)
    return split


def attempts(records: Iterable[Record]) -> list[tuple[list[Record], list[Attempt]]]:
    """Return the 'end' and 'stage' records of a ledger, and the attempts they tell of, grouped by what they led to.

    A group is the attempts at one step up to the one that ended in a result; a step made anew later is another group.
    """
    groups: list[tuple[list[Record], list[Attempt]]] = []
    latest: dict[str, tuple[list[Record], list[Attempt]]] = {}
    for record in records:
        if record.kind not in ("end", "stage"):
            continue
        group = latest.get(record.step)
        if group is None or group[0][-1].kind == "stage":
            group = latest[record.step] = ([], [])
            groups.append(group)
        group[0].append(record)
        group[1].append(attempt_of(record))
    return groups


def attempt_of(record: Record) -> Attempt:
    """Return what a record tells of its attempt; all of its time is work where it tells no more."""
    devices = int(record.cost.get("devices") or 1)
    seconds = float(record.cost.get("device_hours") or 0.0) * 3600 / devices
    measured: Any = record.cost.get("attempt") or {"spent": {"useful": seconds}}
    saved = {int(step): _times(work, devices) for step, work in measured.get("saved", {}).items()}
    spent = _times(measured["spent"], devices)
    return Attempt(spent, measured.get("first", 0), saved, whole=record.kind == "stage")


def _times(work: Mapping[str, float], devices: int) -> dict[str, float]:
    return {kind: seconds * devices for kind, seconds in work.items()}
