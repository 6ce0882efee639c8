"""What a recipe says of training: rows, tokens and the optimizer. No torch."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

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


class RampConfig(Section):
    """A phase of a training before its last: `context` and `batch_tokens` until so many tokens have been shown.

    accumulate: its micro-batches a step, where they are not as many as the section's.
    """

    until: PositiveInt
    context: PositiveInt
    batch_tokens: PositiveInt
    accumulate: PositiveInt | None = None


class MixturePoint(Section):
    """Shares of the tokens, by name, when the part `at` of the training's tokens has been shown.

    A name is a language, a kind, `language/kind`, or `rest` for whatever no other name takes. What several names
    could take goes to `language/kind` before a kind, and to a kind before a language. Shares sum to 1.
    """

    at: float = Field(0.0, ge=0, le=1)
    shares: dict[str, Annotated[float, Field(ge=0, le=1)]]


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one shape: `steps` updates of `accumulate` batches of `rows` x `context` places."""

    steps: int
    rows: int
    context: int
    accumulate: int


class WatchConfig(Section):
    """What is measured while a section trains, through the engine with the trainer's own weights.

    every: steps between two measurements, or below 1 a share of the training; the last step is always measured.
    tasks: names as on the card, of which the first `items` are asked. heldout: bits per byte of every language, on its
    first `documents` held-out documents.
    """

    every: int | float = Field(0.25, gt=0)
    heldout: bool = True
    documents: int = Field(12, ge=1)
    tasks: tuple[str, ...] = ()
    items: int = Field(40, ge=1)

    def moments(self, steps: int) -> frozenset[int]:
        """Return the steps after which to measure."""
        between = max(1.0, self.every if self.every >= 1 else self.every * steps)
        return frozenset(int(between * n) for n in range(1, math.floor(steps / between) + 1)) | {steps}


class TrainConfig(Section):
    """Rows of `context` tokens, `batch_tokens` of them a step, `tokens` in all; `repeats` by language or kind.

    With 0 tokens a stage passes its weights on as they are. `ramp` lists earlier phases of shorter rows or smaller
    batches (arXiv:2407.21783, section 3.4.1: 4M tokens in rows of 4,096, 8M in rows of 8,192 after 252M tokens, 16M
    after 2.87T). `mixture` asks for shares of the tokens, as one mapping or as points between which shares move in
    a line or in steps; `repeats` then weighs what is within a name, and `mixture_absent` says whether a name that the
    corpus doesn't have is refused or its share spread over the others. A corpus of up to `window_tokens` without either
    is shuffled whole, a larger one by windows of so many tokens.
    """

    context: PositiveInt
    batch_tokens: PositiveInt
    tokens: int = Field(ge=0)
    optim: OptimConfig
    accumulate: PositiveInt = 1
    repeats: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    ramp: tuple[RampConfig, ...] = ()
    mixture: tuple[MixturePoint, ...] = ()
    mixture_between: Literal["linear", "steps"] = "linear"
    mixture_absent: Literal["refuse", "spread"] = "refuse"
    window_tokens: PositiveInt = 1 << 26
    watch: WatchConfig | None = WatchConfig()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return what the ramp and its end come to, in steps."""
        phases, done = [], 0
        for until, context, batch_tokens, micro in self._parts:
            steps = max(0, math.ceil((until - done) / batch_tokens))
            done += steps * batch_tokens
            phases.append(Phase(steps, batch_tokens // context // micro, context, micro))
        return tuple(phases)

    @property
    def _parts(self) -> list[tuple[int, int, int, int]]:
        ramp = self.ramp if self.tokens else ()
        ends = [(part.until, part.context, part.batch_tokens, part.accumulate or self.accumulate) for part in ramp]
        return [*ends, (self.tokens, self.context, self.batch_tokens, self.accumulate)]

    def micro_batches(self, step: int) -> int:
        """Return how many make the update after `step` updates; the last phase never ends."""
        for phase in self.phases:
            if (step := step - phase.steps) < 0:
                return phase.accumulate
        return self.accumulate

    @property
    def rows(self) -> int:
        """Rows of one micro-batch, of the last phase where there are several."""
        return self.phases[-1].rows

    @property
    def steps(self) -> int:
        """Updates in all."""
        return sum(phase.steps for phase in self.phases)

    @field_validator("mixture", mode="before")
    @classmethod
    def _one_point(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, dict | list | tuple):
            raise ValueError("give shares by name, or a list of points, each with `at` and `shares`")
        return ({"shares": value},) if isinstance(value, dict) and value else value or ()

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        parts, phases = self._parts, self.phases
        for (_, context, batch_tokens, micro), phase in zip(parts, phases, strict=True):
            if phase.rows < 1:
                raise ValueError(
                    f"batch_tokens {batch_tokens} is less than one row of context {context} "
                    f"for each of {micro} micro-batches"
                )
        if len(parts) > 1 and not all(phase.steps for phase in phases):
            raise ValueError(
                f"ramp: its phases end at {[until for until, *_ in parts[:-1]]} of {self.tokens} tokens; "
                "each must end a step or more after the one before, and before the training does"
            )
        contexts = [context for _, context, *_ in parts]
        if sorted(contexts) != contexts:
            raise ValueError(f"ramp: rows may grow but not shrink, and `context` is {contexts} in turn")
        return self

    @model_validator(mode="after")
    def _check_mixture(self) -> "TrainConfig":
        places = [point.at for point in self.mixture]
        if sorted(set(places)) != places:
            raise ValueError(f"mixture: its points lie at {places}; each `at` must be above the one before")
        for point in self.mixture:
            if abs(sum(point.shares.values()) - 1) > 1e-3:
                raise ValueError(f"mixture: the shares at {point.at:g} sum to {sum(point.shares.values()):g}, not 1")
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
