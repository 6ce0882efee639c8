"""Scaling laws from small runs: how many tokens a compute budget is best spent on, and which score it will buy.

    runs of one budget      loss over log tokens: a parabola, its lowest point is the best split         (section 3.2.1)
    budgets                 best tokens = A x compute^alpha: a straight line in logarithms
    best runs               loss of the right answers over log compute: a straight line
    all runs                score over that loss: a sigmoid between chance and a ceiling
Plain least squares; errors are standard deviations over runs drawn anew (bootstrap). numpy, no torch.
"""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from herd.base.errors import DataError

_SAME = 0.05  # budgets that differ by less are one
_STEPS = 200
Array = np.ndarray


@dataclass(frozen=True)
class Trial:
    """One small run. compute: training FLOPs, 6 x parameters x tokens unless given; nll: of right answers, a character;
    score: of the task, 0 to 1."""

    parameters: float
    tokens: float
    loss: float
    compute: float
    nll: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Best:
    """The lowest point of one budget's parabola."""

    compute: float
    tokens: float
    loss: float
    trials: int

    @property
    def parameters(self) -> float:
        """The size that spends the rest."""
        return self.compute / (6 * self.tokens)


@dataclass(frozen=True)
class PowerLaw:
    """tokens = scale x compute^exponent (the paper's A and alpha)."""

    exponent: float
    scale: float

    def tokens(self, compute: float) -> float:
        """Return the best number of tokens for a budget."""
        return self.scale * compute**self.exponent

    def parameters(self, compute: float) -> float:
        """Return the size that goes with it, by compute = 6 x parameters x tokens."""
        return compute / (6 * self.tokens(compute))


# As printed in section 3.2.1, both rounded: with them 3.8e25 FLOPs come to 10.5 T tokens, while the text has 402 B
# parameters on 16.55 T, which A = 0.29 gives for an exponent of 0.5378. Not for use; a check of what was understood.
PRINTED = PowerLaw(0.53, 0.29)


@dataclass(frozen=True)
class Sigmoid:
    """score = low + (high - low) / (1 + exp(slope x (loss - middle)))."""

    low: float
    high: float
    slope: float
    middle: float

    def __call__(self, loss: Array | float) -> Array:
        """Return the score at a loss."""
        return self.low + (self.high - self.low) / (1 + np.exp(self.slope * (np.asarray(loss) - self.middle)))


@dataclass(frozen=True)
class Forecast:
    """What a budget is best spent on and brings; each with its bootstrap error. None: the runs have no such column."""

    compute: float
    tokens: tuple[float, float]
    parameters: tuple[float, float]
    nll: tuple[float, float] | None
    score: tuple[float, float] | None


@dataclass(frozen=True)
class Law:
    """All fits of some trials."""

    best: tuple[Best, ...]
    power: PowerLaw
    line: tuple[float, float] | None  # nll = line[0] + line[1] x log10 compute
    sigmoid: Sigmoid | None


def read_trials(path: Path) -> list[Trial]:
    """Read runs from CSV or JSONL with parameters, tokens, loss and, as far as known, compute, nll, score.

    Raises DataError with the line that can't be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({error})") from None
    if path.suffix == ".csv":
        rows = enumerate(csv.DictReader(text.splitlines()), 2)
    else:
        rows = ((number, _json(line, path, number)) for number, line in enumerate(text.splitlines(), 1) if line.strip())
    return [_trial(row, path, number) for number, row in rows]


def _json(line: str, path: Path, number: int) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: a run is an object with parameters, tokens, loss")
    return row


def _trial(row: dict[str, object], path: Path, number: int) -> Trial:
    found: dict[str, float] = {}
    for name in ("parameters", "tokens", "loss", "compute", "nll", "score"):
        value = row.get(name)
        if value is None or value == "":
            continue
        try:
            found[name] = float(str(value))
        except ValueError:
            found[name] = math.nan
        if not math.isfinite(found[name]) or (found[name] <= 0 and name != "score"):
            raise DataError(f"{path}, line {number}: {name} {value!r} is not a number above 0")
    if missing := [name for name in ("parameters", "tokens", "loss") if name not in found]:
        raise DataError(f"{path}, line {number}: {', '.join(missing)} is missing")
    found.setdefault("compute", 6 * found["parameters"] * found["tokens"])
    return Trial(**found)


def fit(trials: Sequence[Trial], *, chance: float | None = None) -> Law:
    """Fit the four laws. chance: the score of guessing, where it isn't to be fitted too. Raises DataError."""
    groups = _budgets(trials)
    best = [found for group in groups if (found := _lowest(group)) is not None]
    if len(best) < 2:
        raise DataError(
            f"{len(trials)} runs of {len(groups)} budgets have {len(best)} with a lowest loss inside; a law needs two "
            "budgets of three runs, the best of which is neither the shortest nor the longest"
        )
    alpha, log_scale = np.polyfit(np.log([b.compute for b in best]), np.log([b.tokens for b in best]), 1)
    power = PowerLaw(float(alpha), float(np.exp(log_scale)))
    line, sigmoid = None, None
    # the run of each budget nearest to the best split stands for it
    chosen = [min(group, key=lambda t: abs(math.log(t.tokens / power.tokens(t.compute)))) for group in groups]
    known = [(trial.compute, trial.nll) for trial in chosen if trial.nll is not None]
    if len(known) >= 2:
        slope, start = np.polyfit(np.log10([c for c, _ in known]), [nll for _, nll in known], 1)
        line = (float(start), float(slope))
    scored = [(t.nll, t.score) for t in trials if t.nll is not None and t.score is not None]
    if len(scored) >= 4:
        sigmoid = _sigmoid(np.array([x for x, _ in scored]), np.array([y for _, y in scored]), chance)
    return Law(tuple(best), power, line, sigmoid)


def forecast(
    trials: Sequence[Trial], compute: float, *, chance: float | None = None, draws: int = 200, seed: int = 0
) -> Forecast:
    """Return what a budget is best spent on, with errors from fits to runs drawn anew within each budget."""
    law = fit(trials, chance=chance)
    generator = np.random.default_rng(seed)
    again: list[tuple[float, float, float, float]] = []
    for _ in range(draws):
        drawn = [group[i] for group in _budgets(trials) for i in generator.integers(0, len(group), len(group))]
        try:
            again.append(_values(fit(drawn, chance=chance), compute))
        except DataError:
            continue  # a draw without a lowest point in two budgets
    values = _values(law, compute)
    errors = np.nanstd(np.array(again), axis=0) if len(again) > 1 else np.full(4, math.nan)
    pairs = [(value, float(error)) for value, error in zip(values, errors, strict=True)]
    return Forecast(
        compute,
        pairs[0],
        pairs[1],
        pairs[2] if law.line else None,
        pairs[3] if law.line and law.sigmoid else None,
    )


def _values(law: Law, compute: float) -> tuple[float, float, float, float]:
    nll = law.line[0] + law.line[1] * math.log10(compute) if law.line else 0.0
    score = float(law.sigmoid(nll)) if law.sigmoid and law.line else 0.0
    return law.power.tokens(compute), law.power.parameters(compute), nll, score


def _budgets(trials: Iterable[Trial]) -> list[list[Trial]]:
    groups: dict[int, list[Trial]] = defaultdict(list)
    last, number = 0.0, -1
    for trial in sorted(trials, key=lambda trial: trial.compute):
        if trial.compute > last * (1 + _SAME):
            last, number = trial.compute, number + 1
        groups[number].append(trial)
    return list(groups.values())


def _lowest(group: Sequence[Trial]) -> Best | None:
    """Return the lowest point of a parabola through log tokens, None where it lies outside of the runs."""
    x, y = np.log([trial.tokens for trial in group]), np.array([trial.loss for trial in group])
    if len(set(x.tolist())) < 3:
        return None
    a, b, c = np.polyfit(x - x.mean(), y, 2)
    if a <= 0:
        return None
    place = -b / (2 * a)
    if not x.min() - x.mean() < place < x.max() - x.mean():
        return None
    compute = math.exp(float(np.mean([math.log(trial.compute) for trial in group])))
    return Best(compute, math.exp(place + x.mean()), float(c - b * b / (4 * a)), len(group))


def _sigmoid(x: Array, y: Array, chance: float | None) -> Sigmoid:
    """Fit a sigmoid by damped least squares, from the line that the middle of one is."""
    low, high = (y.min() if chance is None else chance), y.max()
    slope = 4 / max(1e-9, float(np.ptp(x)))
    start = np.array([float(high), math.log(slope), float(np.median(x)), float(low)])
    free = slice(0, 4 if chance is None else 3)

    def curve(parameters: Array) -> Sigmoid:
        whole = start.copy()
        whole[free] = parameters
        return Sigmoid(float(whole[3]), float(whole[0]), float(np.exp(np.clip(whole[1], -20, 20))), float(whole[2]))

    return curve(_least_squares(lambda parameters: curve(parameters)(x) - y, start[free]))


def _least_squares(residuals: Callable[[Array], Array], start: Array) -> Array:
    """Minimise a sum of squares (Levenberg-Marquardt), with differences for derivatives."""
    place, damping = start.astype(float), 1e-3
    value = residuals(place)
    for _ in range(_STEPS):
        moves = 1e-6 * np.maximum(1.0, np.abs(place))
        columns = [
            (residuals(place + move * unit) - value) / move
            for move, unit in zip(moves, np.eye(len(place)), strict=True)
        ]
        jacobian = np.stack(columns, axis=1)
        normal = jacobian.T @ jacobian
        step = np.linalg.lstsq(normal + damping * np.diag(np.diag(normal) + 1e-12), -jacobian.T @ value, rcond=None)[0]
        tried = residuals(place + step)
        if tried @ tried < value @ value:
            place, value, damping = place + step, tried, damping / 3
            if np.abs(step).max() < 1e-10:
                break
        else:
            damping *= 4
            if damping > 1e12:
                break
    return place
