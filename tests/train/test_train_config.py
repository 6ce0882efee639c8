"""What a recipe may say of rows, ramps and mixtures, and the one line that tells what it may not."""

from typing import Any

import pytest

from herd.base.config import validate
from herd.base.errors import ConfigError
from herd.train.config import Phase, TrainConfig

BASE = {"context": 64, "batch_tokens": 256, "tokens": 10_000, "optim": {"learning_rate": 1e-3}}
FIRST = {"until": 1000, "context": 32, "batch_tokens": 128}


def section(**changes: Any) -> TrainConfig:
    """Read a training section as a recipe's."""
    return validate(TrainConfig, BASE | changes, where="pretrain")


def test_without_a_ramp_there_is_one_phase() -> None:
    config = section(accumulate=2)
    assert config.phases == (Phase(40, 2, 64, 2),)
    assert (config.steps, config.rows) == (40, 2)
    assert section(tokens=0).steps == section(tokens=0, ramp=[FIRST]).steps == 0


def test_the_papers_ramp() -> None:
    """Section 3.4.1: 4M tokens in rows of 4,096, 8M in rows of 8,192 after 252M tokens, 16M after 2.87T."""
    ramp = [
        {"until": 252_000_000, "context": 4096, "batch_tokens": 4 << 20},
        {"until": 2_870_000_000_000, "context": 8192, "batch_tokens": 8 << 20},
    ]
    config = section(context=8192, batch_tokens=16 << 20, tokens=15_600_000_000_000, ramp=ramp)
    first, second, third = config.phases
    assert [(p.rows, p.context) for p in config.phases] == [(1024, 4096), (1024, 8192), (2048, 8192)]
    assert first.steps == 61  # the first at or after 252M: 60 steps are 251.7M
    tokens = [p.steps * p.rows * p.context for p in config.phases]
    assert 2_870_000_000_000 <= sum(tokens[:2]) < 2_870_000_000_000 + (8 << 20)
    assert 15_600_000_000_000 <= sum(tokens) < 15_600_000_000_000 + (16 << 20)
    assert config.steps == first.steps + second.steps + third.steps


def test_a_phase_may_have_micro_batches_of_its_own_so_that_these_keep_their_size() -> None:
    ramp = [
        {"until": 640, "context": 32, "batch_tokens": 64, "accumulate": 1},
        {"until": 1280, "context": 64, "batch_tokens": 128, "accumulate": 2},
    ]
    config = section(context=64, batch_tokens=256, tokens=2304, ramp=ramp, accumulate=4)
    assert config.phases == (Phase(10, 2, 32, 1), Phase(5, 1, 64, 2), Phase(4, 1, 64, 4))
    assert [config.micro_batches(step) for step in range(21)] == [1] * 10 + [2] * 5 + [4] * 6
    assert section(accumulate=3, batch_tokens=192).micro_batches(10**9) == 3


def test_shares_may_be_one_mapping_or_points() -> None:
    shares = {"en": 0.4, "rest": 0.6}
    assert section(mixture=shares).mixture == section(mixture=[{"shares": shares}]).mixture
    assert section(mixture={}).mixture == section(mixture=None).mixture == ()
    points = section(mixture=[{"shares": shares}, {"at": 0.5, "shares": {"de": 1}}]).mixture
    assert [point.at for point in points] == [0, 0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 63}, "batch_tokens 63 is less than one row of context 64 for each of 1 micro-batches"),
        (
            {"ramp": [FIRST | {"accumulate": 5}]},
            "batch_tokens 128 is less than one row of context 32 for each of 5 micro-batches",
        ),
        ({"ramp": [FIRST | {"batch_tokens": 31}]}, "batch_tokens 31 is less than one row of context 32"),
        ({"ramp": [FIRST | {"context": 128}]}, "rows may grow but not shrink, and `context` is [128, 64] in turn"),
        ({"ramp": [FIRST, FIRST]}, "its phases end at [1000, 1000] of 10000 tokens; each must end a step or more"),
        ({"ramp": [FIRST | {"until": 10_000}]}, "its phases end at [10000] of 10000 tokens; each must end a step"),
        ({"ramp": [FIRST | {"until": 0}]}, "ramp.0.until: Input should be greater than 0 (got 0)"),
        ({"ramp": [FIRST | {"til": 3}]}, "unknown key 'til' at ramp.0; did you mean 'until'?"),
        ({"context": 0}, "context: Input should be greater than 0 (got 0)"),
        ({"accumulate": 0}, "accumulate: Input should be greater than 0 (got 0)"),
        ({"tokens": -1}, "tokens: Input should be greater than or equal to 0 (got -1)"),
        ({"window_tokens": 0}, "window_tokens: Input should be greater than 0 (got 0)"),
        ({"repeats": {"en": -1}}, "repeats.en: Input should be greater than or equal to 0 (got -1)"),
        ({"repeats": {"en": float("inf")}}, "repeats.en: Input should be a finite number (got inf)"),
        ({"mixture": {"en": 0.5, "de": 0.4}}, "the shares at 0 sum to 0.9, not 1"),
        ({"mixture": {"en": 1.5, "de": -0.5}}, "mixture.0.shares.en: Input should be less than or equal to 1"),
        ({"mixture": {"en": float("nan")}}, "mixture.0.shares.en: Input should be"),
        ({"mixture": "en"}, "mixture: give shares by name, or a list of points, each with `at` and `shares`"),
        ({"mixture": [{"at": 2, "shares": {"en": 1}}]}, "mixture.0.at: Input should be less than or equal to 1"),
        (
            {"mixture": [{"at": 0.5, "shares": {"en": 1}}, {"at": 0.5, "shares": {"en": 1}}]},
            "its points lie at [0.5, 0.5]; each `at` must be above the one before",
        ),
        ({"mixture": [{"at": 0.5, "share": {"en": 1}}]}, "unknown key 'share' at mixture.0; did you mean 'shares'?"),
        ({"mixture_between": "cubic"}, "mixture_between: Input should be 'linear' or 'steps' (got 'cubic')"),
    ],
)
def test_what_cant_be_is_told_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        section(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
