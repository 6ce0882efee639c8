"""What happens after each step of the loop: metrics lines, checkpoints, progress. A tuple of these, run in order."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from herd.base.files import write_atomic
from herd.base.progress import Progress, rounded
from herd.train.checkpoint import Checkpoints
from herd.train.feed import Feed
from herd.train.loop import State
from herd.train.optim import Optimizer


class Metrics:
    """One JSON line a step: step, tokens and the figures. On resuming, lines of steps that will run again are cut."""

    def __init__(self, path: Path, *, from_step: int) -> None:
        kept: list[str] = []
        if from_step and path.exists():
            kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:from_step]
        write_atomic(path, "".join(kept))
        self._path = path
        self._waiting: list[str] = []

    def __call__(self, state: State) -> None:
        row = {"step": state.step, "tokens": state.tokens} | rounded(state.figures)
        self._waiting.append(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Write the lines gathered so far; called before a checkpoint so that the file is never behind it."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(self._waiting))
        self._waiting.clear()


class Saver:
    """A checkpoint every `seconds` of work, and never at the last step: the model folder follows at once."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        optimizer: Optimizer,
        feed: Feed,
        metrics: Metrics,
        *,
        seconds: float,
        steps: int,
    ) -> None:
        self._checkpoints, self._optimizer, self._feed, self._metrics = checkpoints, optimizer, feed, metrics
        self._seconds, self._steps = seconds, steps
        self._last = time.perf_counter()

    def __call__(self, state: State) -> None:
        if state.step == self._steps or time.perf_counter() - self._last < self._seconds:
            return
        self._metrics.flush()
        self._checkpoints.save(state, self._optimizer, self._feed.state())
        self._last = time.perf_counter()


def reporter(progress: Progress, steps: int) -> Callable[[State], None]:
    """Return a hook that tells the listener how far the loop is."""

    def report(state: State) -> None:
        shown = {key: state.figures[key] for key in ("loss", "tokens_per_s") if key in state.figures}
        progress.advance(state.step, steps, **shown)

    return report
