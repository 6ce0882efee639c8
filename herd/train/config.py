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

    With 0 tokens a stage passes its weights on as they are.
    """

    context: int
    batch_tokens: int
    tokens: int
    optim: OptimConfig
    accumulate: int = 1
    repeats: dict[str, float] = Field(default_factory=dict)
    watch: WatchConfig | None = WatchConfig()

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
