"""Means with their standard errors: no score without one."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A mean over n items and its standard error."""

    value: float
    stderr: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Return plain data, rounded as the ledger keeps it."""
        return {"value": round(self.value, 6), "stderr": round(self.stderr, 6), "n": self.n}


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean and its standard error, sqrt(sample variance / n).

    Where all items agree the sample variance is 0, which says too much of a few items: for values in {0, 1} the
    Agresti-Coull estimate (two successes and two failures added) stands in.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a mean of no items")
    average = math.fsum(values) / n
    variance = math.fsum((v - average) ** 2 for v in values) / (n - 1) if n > 1 else 0.0
    if variance == 0 and average in (0.0, 1.0):
        shrunk = (average * n + 2) / (n + 4)
        return Estimate(average, math.sqrt(shrunk * (1 - shrunk) / (n + 4)), n)
    return Estimate(average, math.sqrt(variance / n), n)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Return sum / sum with its delta-method standard error, such as bits per byte over documents."""
    n, total = len(numerators), math.fsum(denominators)
    value = math.fsum(numerators) / total
    if n < 2:
        return Estimate(value, 0.0, n)
    residuals = (a - value * b for a, b in zip(numerators, denominators, strict=True))
    variance = math.fsum(r * r for r in residuals) * n / (n - 1)
    return Estimate(value, math.sqrt(variance) / total, n)


def grouped(items: Iterable[Mapping[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """Return an estimate of `score` for each value of a key, in order of first appearance."""
    groups: dict[str, list[float]] = defaultdict(list)
    for item in items:
        if item.get(key) is not None:
            groups[str(item[key])].append(item["score"])
    return {name: mean(values).to_json() for name, values in groups.items()}
