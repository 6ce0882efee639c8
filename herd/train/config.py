"""What a recipe says of training: rows, tokens and the optimizer. No torch."""

import math
from typing import Literal

from pydantic import Field, model_validator

from herd.base.config import Section


class OptimConfig(Section):
    """Peak rate, schedule and AdamW's constants.

    The schedule falls to `final_share` of the peak. With `average_every`, the weights of every so many steps in the
    last `average_share` of the training are averaged (Polyak; section 3.4.3) and the mean is what is kept.
    """

    learning_rate: float
    warmup_steps: int = 20
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_share: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    average_every: int = 0
    average_share: float = 0.5


class TrainConfig(Section):
    """Rows of `context` tokens, `batch_tokens` of them a step, `tokens` in all; `repeats` by language or kind.

    With 0 tokens a stage passes its weights on as they are.
    """

    context: int
    batch_tokens: int
    tokens: int
    optim: OptimConfig
    accumulate: int = 1
    repeats: dict[str, float] = Field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of one micro-batch."""
        return self.batch_tokens // self.context // self.accumulate

    @property
    def steps(self) -> int:
        """Updates in all."""
        return math.ceil(self.tokens / self.batch_tokens)

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.rows < 1:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is less than one row of context {self.context} "
                f"for each of {self.accumulate} micro-batches"
            )
        return self


class CheckpointConfig(Section):
    """When training state is written, and how much of it is kept.

    seconds, steps: after so many of either since the last one; None leaves it out. keep: the newest so many, at least
    one. keep_every: each so-manieth checkpoint for good, also after the stage has ended; None for none.
    """

    seconds: float | None = Field(15.0, ge=0)
    steps: int | None = Field(None, ge=1)
    keep: int = Field(2, ge=1)
    keep_every: int | None = Field(None, ge=1)


class FaultsConfig(Section):
    """What is a fault, and what becomes of a run that meets one.

    on_spike: stop, or skip: go back to the newest checkpoint and leave out the batches since, at most `most_skips`
    times. A loss or gradient that isn't finite is a spike always; others are where a limit is given: a loss
    `spike_deviations` above the median of the last `spike_window`, or a gradient norm above `spike_norm`.

    grace_seconds: what a process takes at most to save and end when it is told to (SIGTERM, SIGUSR1). hang_seconds:
    what a step, a checkpoint or a look at held-out text may take before the run counts as hung; hang_factor: the same
    for a step as a multiple of the median step, never under 10 seconds. straggler_factor: a rank that takes so many
    times the median rank's time is named. None leaves any of them out.
    """

    on_spike: Literal["stop", "skip"] = "stop"
    spike_deviations: float | None = Field(None, gt=0)
    spike_window: int = Field(100, ge=8)
    spike_norm: float | None = Field(None, gt=0)
    most_skips: int = Field(3, ge=1)
    grace_seconds: float = Field(60.0, gt=0)
    hang_seconds: float | None = Field(1800.0, gt=0)
    hang_factor: float | None = Field(None, gt=1)
    straggler_factor: float | None = Field(1.5, gt=1)
