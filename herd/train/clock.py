"""The wall time of one attempt at a step, split by what it was spent on (base/goodput.py); no torch.

The process is always at exactly one kind, so the parts sum to the whole. Read by another thread while it runs.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from herd.base.goodput import WORK

STEP = ("useful", "data")  # what a training step spends time on
_REMEMBERED = 16  # checkpoints whose work is told apart: a restart goes on from one of the newest


class Clock:
    """Seconds by kind: `kind`, within `spending` another. What was useful before `training` was start-up."""

    def __init__(self, kind: str = "useful", *, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._kinds = [kind]
        self._spent: dict[str, float] = {}
        self._since = now()
        self._first, self._step = 0, 0
        self._marked: dict[int, dict[str, float]] = {}
        self._saved: dict[int, dict[str, float]] = {}
        self._useful = 0.0  # up to the last step
        self._working, self._entered = 0.0, 0.0  # work up to the last step; when the current kind was turned to
        self._first_step: float | None = None
        self.steps = 0  # done in this attempt
        self.durations: deque[float] = deque(maxlen=101)  # of the newest steps, without checkpoints and evaluation

    @property
    def step(self) -> int:
        """Training steps done."""
        return self._step

    @property
    def kind(self) -> str:
        """What time is spent on now."""
        return self._kinds[-1]

    def training(self, step: int) -> None:
        """Say that training goes on from `step`: what came before was start-up."""
        with self._lock:
            self._settle()
            self._spent["startup"] = self._spent.get("startup", 0.0) + self._spent.pop("useful", 0.0)
        self._first = self._step = step
        self._useful, self._working = self._spent.get("useful", 0.0), self._in_steps()

    @contextmanager
    def spending(self, kind: str) -> Generator[None]:
        """Spend the time of a block on `kind`."""
        with self._lock:
            self._settle()
            self._kinds.append(kind)
            self._entered = self._since
        try:
            yield
        finally:
            with self._lock:
                self._settle()
                self._kinds.pop()

    def stepped(self, step: int) -> None:
        """Say that a training step is done. What the first takes longer than the second is start-up: warming up."""
        with self._lock:
            self._settle()
            useful, working = self._spent.get("useful", 0.0), self._in_steps()
            seconds, self._useful = useful - self._useful, useful
            self.durations.append(working - self._working)
            self._working = working
            self._step, self.steps = step, self.steps + 1
            if self.steps == 1:
                self._first_step = seconds
            elif self.steps == 2 and self._first_step is not None:
                self._warm(max(0.0, self._first_step - seconds))

    def _warm(self, seconds: float) -> None:
        places = [work for found in (self._marked, self._saved) for step, work in found.items() if step > self._first]
        for part in (self._spent, *places):
            part["useful"] -= seconds
        self._spent["startup"] = self._spent.get("startup", 0.0) + seconds
        self._useful -= seconds
        self._working -= seconds

    def _in_steps(self) -> float:
        return self._spent.get("useful", 0.0) + self._spent.get("data", 0.0)

    def current(self) -> float:
        """Return the seconds that what is going on has taken so far: a training step, or anything else."""
        with self._lock:
            self._settle()
            return self._in_steps() - self._working if self.kind in STEP else self._since - self._entered

    def mark(self, step: int) -> None:
        """Say that a checkpoint of `step` is being taken, which would keep the work up to now."""
        with self._lock:
            self._settle()
            self._marked[step] = {kind: self._spent.get(kind, 0.0) for kind in WORK}

    def saved(self, step: int) -> None:
        """Say that the checkpoint of `step` is whole."""
        with self._lock:
            self._saved[step] = self._marked.pop(step)
            for old in sorted(self._saved)[:-_REMEMBERED]:
                del self._saved[old]

    def went_back(self, step: int) -> None:
        """Say that training went back to the checkpoint of `step`: the work since is lost."""
        with self._lock:
            self._settle()
            kept = self._saved.get(step, {})
            for kind in WORK:
                gone = self._spent.get(kind, 0.0) - kept.get(kind, 0.0)
                self._spent[kind] = kept.get(kind, 0.0)
                self._spent["lost"] = self._spent.get("lost", 0.0) + gone
            self._saved = {at: work for at, work in self._saved.items() if at <= step}
            self._useful, self._working = self._spent["useful"], self._in_steps()
            self._step = step

    def hung(self) -> None:
        """Say that what is going on comes to nothing: the time since the last step is idle, and all that follows."""
        with self._lock:
            self._settle()
            if self.kind in STEP:
                gone = {"useful": self._spent.get("useful", 0.0) - self._useful}
                gone["data"] = self._in_steps() - self._working - gone["useful"]
            else:
                gone = {self.kind: self._since - self._entered}
            for kind, seconds in gone.items():
                self._spent[kind] = self._spent.get(kind, 0.0) - seconds
                self._spent["idle"] = self._spent.get("idle", 0.0) + seconds
            self._kinds = ["idle"] * len(self._kinds)

    def spent(self) -> dict[str, float]:
        """Return seconds by kind up to now."""
        with self._lock:
            self._settle()
            return dict(self._spent)

    def attempt(self) -> dict[str, Any]:
        """Return what the ledger keeps of an attempt (base/goodput.py reads it)."""
        spent = self.spent()
        with self._lock:
            return {
                "first": self._first,
                "reached": self._step,
                "spent": _rounded(spent),
                "saved": {str(step): _rounded(work) for step, work in self._saved.items()},
            }

    def _settle(self) -> None:
        now = self._now()
        self._spent[self._kinds[-1]] = self._spent.get(self._kinds[-1], 0.0) + now - self._since
        self._since = now


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {kind: round(value, 4) for kind, value in seconds.items()}
