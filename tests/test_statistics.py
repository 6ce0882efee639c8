"""Standard errors, hand-worked, and against the spread of repeated draws."""

import math

import numpy as np
import pytest

from herd.eval.statistics import Estimate, grouped, mean, ratio


def test_a_mean_and_its_standard_error() -> None:
    # 2, 4, 9: mean 5, squared deviations 9 + 1 + 16 over 2 = 13, and sqrt(13 / 3)
    assert mean([2, 4, 9]) == Estimate(5.0, pytest.approx(math.sqrt(13 / 3)), 3)
    # three of four right: variance (3/16 + 9/16) / 3 = 1/4, and sqrt(1/4 / 4)
    assert mean([1, 0, 1, 1]) == Estimate(0.75, pytest.approx(0.25), 4)
    assert mean([0.5]) == Estimate(0.5, 0.0, 1)


@pytest.mark.parametrize(
    ("values", "stderr"),
    [
        ([1, 1, 1, 1], math.sqrt(0.75 * 0.25 / 8)),  # (4 + 2) / (4 + 4)
        ([0] * 16, math.sqrt(0.1 * 0.9 / 20)),  # (0 + 2) / (16 + 4)
        ([1], math.sqrt(0.6 * 0.4 / 5)),  # (1 + 2) / (1 + 4)
    ],
)
def test_items_that_all_agree_still_leave_doubt(values: list[float], stderr: float) -> None:
    assert mean(values) == Estimate(float(values[0]), pytest.approx(stderr), len(values))


def test_a_ratio_and_its_standard_error() -> None:
    # 8 / 3; residuals 2 - 8/3 and 6 - 16/3 are -2/3 and 2/3; sqrt(2 (4/9 + 4/9) / 1) / 3 = 4/9
    assert ratio([2, 6], [1, 2]) == Estimate(pytest.approx(8 / 3), pytest.approx(4 / 9), 2)
    assert ratio([3, 6, 9], [1, 2, 3]) == Estimate(3.0, 0.0, 3)
    assert ratio([5], [2]) == Estimate(2.5, 0.0, 1)
    # equal denominators make it a mean
    values = [1.0, 4.0, 2.0, 2.0]
    assert ratio(values, [2.0] * 4).stderr == pytest.approx(mean([v / 2 for v in values]).stderr)


def test_the_standard_error_is_the_spread_of_repeated_draws() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1500):
        sizes = rng.integers(50, 500, 40).astype(float)
        found.append(ratio((sizes * rng.normal(1.5, 0.3, 40)).tolist(), sizes.tolist()))
    spread = np.std([estimate.value for estimate in found])
    assert np.mean([estimate.stderr for estimate in found]) == pytest.approx(spread, rel=0.08)


def test_groups_come_in_order_of_appearance_and_without_the_unlabelled() -> None:
    items = [
        {"lang": "th", "score": 1.0},
        {"lang": "de", "score": 0.0},
        {"lang": None, "score": 0.0},
        {"score": 0.0},
        {"lang": "th", "score": 0.0},
        {"lang": "de", "score": 1.0},
        {"lang": "de", "score": 1.0},
    ]
    found = grouped(items, "lang")
    assert list(found) == ["th", "de"]
    assert found["th"] == {"value": 0.5, "stderr": 0.5, "n": 2}
    assert found["de"]["value"] == 0.666667


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a mean of no items"):
        mean([])
