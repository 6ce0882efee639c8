"""Scaling laws fitted to runs whose laws are known, and the paper's own constants."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from herd.base.errors import DataError
from herd.plan.scaling import PRINTED, PowerLaw, Sigmoid, Trial, fit, forecast, read_trials

ROOT = Path(__file__).parents[2]
KNOWN = PowerLaw(0.5378, 0.29)  # the best split of the made-up runs
SCORE = Sigmoid(0.25, 0.97, 6.0, 0.8)


def runs(noise: float = 0.0) -> list[Trial]:
    """Make isoFLOP runs: loss is a parabola in log tokens around the known split; nll a line; score the sigmoid."""
    generator = np.random.default_rng(1)
    found = []
    for compute in (6e18, 3e19, 1e20, 3e20, 1e21, 3e21, 1e22):
        for away in (-1.2, -0.7, -0.2, 0.3, 0.8, 1.3):
            tokens = KNOWN.tokens(compute) * math.exp(away)
            loss = 12 * compute**-0.04 + 0.05 * away**2 + noise * generator.normal()
            nll = 3.9 - 0.14 * math.log10(compute) + 0.01 * away**2
            found.append(Trial(compute / (6 * tokens), tokens, loss, compute, nll, float(SCORE(nll))))
    return found


def test_known_laws_are_found() -> None:
    law = fit(runs())
    assert law.power.exponent == pytest.approx(KNOWN.exponent, rel=1e-6)
    assert law.power.scale == pytest.approx(KNOWN.scale, rel=1e-4)
    assert law.sigmoid is not None
    for name in ("low", "high", "slope", "middle"):
        assert getattr(law.sigmoid, name) == pytest.approx(getattr(SCORE, name), rel=2e-3)


def test_what_is_known_of_a_small_model_of_losses_comes_out() -> None:
    """loss = E + a N^-x + b D^-y has its best tokens at compute^(x / (x + y)) (arXiv:2203.15556, approach 3)."""
    x, y, found = 0.34, 0.28, []
    for compute in np.logspace(18, 22, 7):
        middle = (compute / 6) ** (x / (x + y))
        for away in np.linspace(-0.8, 0.8, 9):
            tokens = middle * math.exp(away)
            size = compute / (6 * tokens)
            found.append(Trial(size, tokens, 1.7 + 400 * size**-x + 400 * (y / x) ** -1 * tokens**-y, compute))
    assert fit(found).power.exponent == pytest.approx(x / (x + y), abs=0.01)


def test_the_papers_402b_on_16_55t_tokens() -> None:
    budget = 3.8e25
    # the exponent behind the text; the printed one is cut to two digits and comes to 10.5 T
    exponent = math.log(16.55e12 / PRINTED.scale) / math.log(budget)
    assert exponent == pytest.approx(0.5378, abs=5e-5)
    assert KNOWN.tokens(budget) == pytest.approx(16.55e12, rel=0.005)
    assert KNOWN.parameters(budget) == pytest.approx(402e9, rel=0.055)  # 6 N D leaves attention out
    assert PRINTED.tokens(budget) == pytest.approx(10.5e12, rel=0.01)
    ahead = forecast(runs(), budget, draws=20)
    assert ahead.tokens[0] == pytest.approx(16.55e12, rel=0.005)
    assert ahead.parameters[0] == pytest.approx(383e9, rel=0.005)


def test_errors_grow_with_noise_and_hold_the_truth() -> None:
    calm, loud = (forecast(runs(noise), 3.8e25, draws=100) for noise in (0.0005, 0.005))
    assert calm.tokens[1] < loud.tokens[1]
    for ahead in (calm, loud):
        assert abs(ahead.tokens[0] - KNOWN.tokens(3.8e25)) < 4 * ahead.tokens[1]
    assert loud == forecast(runs(0.005), 3.8e25, draws=100)  # one seed, one answer


def test_the_score_is_forecast_through_the_loss() -> None:
    ahead = forecast(runs(), 3.8e25, chance=0.25, draws=20)
    nll = 3.9 - 0.14 * math.log10(3.8e25)
    assert ahead.nll is not None
    assert ahead.nll[0] == pytest.approx(nll, abs=0.01)
    assert ahead.score is not None
    assert ahead.score[0] == pytest.approx(float(SCORE(nll)), abs=0.01)
    bare = [Trial(t.parameters, t.tokens, t.loss, t.compute) for t in runs()]
    assert forecast(bare, 3.8e25, draws=5).score is None


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.csv", "parameters,tokens,loss\n1e6,1e7,3.0\n1e6,x,3.0\n", "line 3: tokens 'x' is not a number above 0"),
    ("a.jsonl", '{"parameters": 1e6, "tokens": 1e7}\n', "line 1: loss is missing"),
    ("a.jsonl", "{\n", "line 1: not JSON"),
])  # fmt: skip
def test_bad_rows_are_told_by_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_trials(tmp_path / name)


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(DataError, match="a law needs two budgets of three runs"):
        fit(runs()[:6])


def test_the_command_prints_the_fit_and_draws_it(tmp_path: Path) -> None:
    file, plot = tmp_path / "runs.jsonl", tmp_path / "fit.svg"
    file.write_text("\n".join(json.dumps(vars(trial)) for trial in runs()))
    pytest.importorskip("altair")
    command = [sys.executable, "-m", "herd", "scaling", str(file), "--chance", "0.25", "--plot", str(plot)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "best tokens = 0.29 x compute^0.5378" in done.stdout
    assert "382 ± " in done.stdout
    assert plot.read_text().startswith("<svg")
