"""What share of the tokens each key gets, and how shares move while a training goes on (annealing).

name          takes                                         within a name, keys share by tokens x repeats
en/math       documents of that language and kind
math          what is left of that kind
en            what is left of that language
rest          everything that no name takes
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from herd.base.errors import ConfigError, DataError
from herd.tokenizer.shards import Key
from herd.train.config import MixturePoint

REST = "rest"


class Mixture:
    """Shares by key as a function of the progress of a training, 0 to 1; `points` as a recipe has them.

    Without points, a key's share is that of its tokens x repeats, a repeat being the product over a key's parts.
    `where` names the recipe's section in errors. A name that the corpus doesn't have is a ConfigError, or with
    absent="spread" its share goes to all others in proportion.
    """

    def __init__(
        self,
        targets: Mapping[Key, int],
        *,
        points: Sequence[MixturePoint] = (),
        between: str = "linear",
        repeats: Mapping[str, float] | None = None,
        absent: str = "refuse",
        where: str = "mixture",
    ) -> None:
        self.keys = tuple(targets)
        weights = [count * math.prod((repeats or {}).get(part, 1.0) for part in key) for key, count in targets.items()]
        self._weights = np.array(weights, np.float64)
        if not self._weights.sum():
            raise DataError("there is no document to train on: the corpus is empty, or every repeat is 0")
        self._steps, self._spread = between == "steps", absent == "spread"
        self._places = np.array([point.at for point in points])
        names = dict.fromkeys(name for point in points for name in point.shares)
        takers = [_taker(key, names) for key in self.keys]
        table = [self._shares(point, takers, names, where) for point in points]
        self._table = np.array(table) if table else self._weights[None] / self._weights.sum()

    def at(self, progress: float) -> np.ndarray:
        """Return the shares in the order of `keys`; before the first point and after the last they stay."""
        if len(self._table) == 1:
            return self._table[0]
        after = int(np.searchsorted(self._places, progress, side="right"))
        if after in (0, len(self._places)) or self._steps:
            return self._table[max(0, after - 1)]
        low, high = self._places[after - 1 : after + 1]
        part = (progress - low) / (high - low)
        return (1 - part) * self._table[after - 1] + part * self._table[after]

    def _shares(
        self, point: MixturePoint, takers: list[str | None], names: Mapping[str, None], where: str
    ) -> np.ndarray:
        shares = np.zeros(len(self.keys))
        for name in names:
            mine = np.array([taker == name for taker in takers], bool)
            share, weight = point.shares.get(name, 0.0), self._weights[mine].sum()
            if not mine.any() and name not in self._known():
                if self._spread:
                    continue
                raise ConfigError(f"{where}: the corpus has no {name!r}; it has {', '.join(self._known())}")
            if share and not weight:
                raise ConfigError(f"{where}: nothing is left for {name!r} after what other names take and repeats of 0")
            if share:
                shares[mine] = share * self._weights[mine] / weight
        return shares / shares.sum()  # given shares may be off by a rounding

    def _known(self) -> list[str]:
        languages, kinds = ({key[part]: None for key in self.keys} for part in (0, 1))
        return [*languages, *kinds, REST]


def _taker(key: Key, names: Mapping[str, None]) -> str | None:
    candidates = (f"{key[0]}/{key[1]}", key[1], key[0], REST)
    return next((name for name in candidates if name in names), None)
