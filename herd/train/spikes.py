"""Spikes: a loss or gradient out of bounds, and which batches were left out because of one.

checkpoints/STEP/skips.json   one row a skip: the step that spiked, the checkpoint gone back to, where the feed goes on
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from herd.base.files import write_atomic
from herd.train.config import FaultsConfig
from herd.train.loop import State
from herd.train.optim import Diverged

_FEWEST = 8  # losses that a median is taken of at least


class Spike(Diverged):
    """The loss or the gradient left the bounds that the recipe sets."""


class SpikeWatch:
    """A hook that raises Spike at a step whose loss or gradient norm is out of bounds.

    Deviations are median absolute deviations, scaled to a normal's standard deviation, and at least a thousandth of
    the median, so that one spike among the last losses hides no other.
    """

    def __init__(self, config: FaultsConfig, *, agree: Callable[[bool], bool] = bool) -> None:
        """agree: says whether any rank finds a spike. Ranks may know a norm to different last digits."""
        self._config, self._agree = config, agree
        self._losses: list[float] = []

    def __call__(self, state: State) -> None:
        loss = state.figures["loss"]
        why = self._wrong(loss, state.figures.get("grad_norm", 0.0))
        limited = self._config.spike_deviations is not None or self._config.spike_norm is not None
        if self._agree(bool(why)) if limited else why:
            raise Spike(f"step {state.step}: {why or 'another rank finds its limit exceeded'}")
        self._losses = [*self._losses, loss][-self._config.spike_window :]

    def _wrong(self, loss: float, norm: float) -> str:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"loss {loss:g}, gradient norm {norm:g}"
        limit = self._limit()
        if loss > limit:
            return (
                f"the loss is {loss:.4g}, over {limit:.4g}, which is {self._config.spike_deviations:g} deviations "
                f"above the median of the last {len(self._losses)}"
            )
        if self._config.spike_norm is not None and norm > self._config.spike_norm:
            return f"the gradient norm is {norm:.4g}, over {self._config.spike_norm:g}"
        return ""

    def _limit(self) -> float:
        if self._config.spike_deviations is None or len(self._losses) < _FEWEST:
            return math.inf
        median = statistics.median(self._losses)
        spread = 1.4826 * statistics.median(abs(loss - median) for loss in self._losses)
        return median + self._config.spike_deviations * max(spread, abs(median) / 1000)

    def state(self) -> list[float]:
        """Return the losses that the next one is held against."""
        return list(self._losses)

    def restore(self, losses: list[float]) -> None:
        """Take up saved losses."""
        self._losses = list(losses)


@dataclass(frozen=True)
class Skip:
    """Steps `back` + 1 to `step` were taken back, and their batches left out: the feed goes on at `feed`."""

    step: int
    back: int
    feed: Mapping[str, Any]
    why: str


class Skips:
    """The skips of a training step of a run. A restart finds them, so that it leaves out the same batches."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "skips.json"
        rows = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else []
        self.made = [Skip(**row) for row in rows]

    def add(self, skip: Skip, *, write: bool = True) -> None:
        """Keep a skip, on disk too where `write` (one rank does)."""
        self.made.append(skip)
        if write:
            write_atomic(self._path, json.dumps([asdict(made) for made in self.made], indent=1) + "\n")

    def place_after(self, step: int) -> Mapping[str, Any] | None:
        """Return where the feed goes on from the checkpoint of `step`; None where nothing was skipped there."""
        return next((skip.feed for skip in reversed(self.made) if skip.back == step), None)
