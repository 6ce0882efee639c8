"""What a recipe says of long context: stages of ever longer rows, each with a gate (arXiv:2407.21783, section 3.4.2).

No torch.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from herd.base.config import Section
from herd.model.config import RopeScaling
from herd.train.config import TrainConfig

_ROUND = 1024


class GateConfig(Section):
    """When a long-context stage has succeeded: short scores have recovered, and needles are found up to its length.

    bits: by what share held-out bits per byte may lie above those of the model before the stage, over its first
    `documents` documents a language. tasks, items, score: named short tasks (as on the card), how many of their items
    are asked, and how much lower the share of right ones may be. needle: the least share of needles to find at each
    length, where `lengths` are shares of the stage's context; `repeats` needles for each length and depth. others: how
    many people's numbers stand beside the one asked for; with none, who copies the only number there is passes too.
    When it isn't passed, the stage trains on for up to `extend` further portions of its own number of tokens; after
    these `on_fail` says whether the run ends there or goes on, which the ledger and the card then say.
    """

    bits: float = Field(0.01, ge=0)
    documents: int = Field(12, ge=1)
    tasks: tuple[str, ...] = ()
    items: int = Field(100, ge=1)
    score: float = Field(0.05, ge=0)
    needle: float = Field(1.0, ge=0, le=1)
    lengths: tuple[float, ...] = (0.25, 0.5, 1.0)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    repeats: int = Field(4, ge=1)
    others: int = Field(0, ge=0, le=40)
    extend: int = Field(0, ge=0)
    on_fail: Literal["stop", "go_on"] = "stop"

    @field_validator("lengths", "depths")
    @classmethod
    def _check_shares(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or min(values) < 0 or max(values) > 1 or list(values) != sorted(set(values)):
            raise ValueError("shares between 0 and 1, rising")
        return values


class LongStageConfig(TrainConfig):
    """One stage: rows of `context` under scaled RoPE. Without a gate it is taken to have succeeded."""

    rope_scaling: RopeScaling = RopeScaling()
    gate: GateConfig | None = None

    @model_validator(mode="after")
    def _check_extension(self) -> "LongStageConfig":
        if self.gate and self.optim.average_every:
            raise ValueError("a gate measures the weights as they are trained: leave optim.average_every to annealing")
        falls_to_zero = self.optim.schedule != "constant" and self.optim.final_share == 0
        if self.gate and self.gate.extend and falls_to_zero:
            raise ValueError("gate.extend trains on at the last learning rate, which this schedule brings to 0")
        return self

    @property
    def key(self) -> str:
        """The stage's step in the ledger."""
        return f"long-context/{self.context}"

    @property
    def folder(self) -> str:
        """The model folder that the stage writes."""
        return f"flagship/long/{self.context}"


class LongContextConfig(Section):
    """The stages in order. In a recipe what they share stands beside `stages`, and each says what is its own:

    long_context: {batch_tokens: 4096, optim: {...}, stages: [{context: 1024, tokens: 2e5}, {context: 4096, ...}]}
    long_context: {batch_tokens: 4096, optim: {...}, context: 1024, tokens: 2e5}         one stage
    long_context: {..., tokens: 8e11, stages: {start: 8192, end: 131072, count: 6}}      see `lengthening`
    long_context: {stages: []}                                                           none
    """

    stages: tuple[LongStageConfig, ...]

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        shared = {name: value for name, value in values.items() if name != "stages"}
        stages = values.get("stages", [{}])
        if isinstance(stages, Mapping):
            if set(stages) != {"start", "end", "count"}:
                raise ValueError(
                    f"stages: a list of sections, or start, end and count (not {', '.join(map(str, stages))})"
                )
            contexts = lengthening(**{name: int(value) for name, value in stages.items()})
            tokens = math.ceil(shared.pop("tokens", 0) / len(contexts))
            stages = [{"context": context, "tokens": tokens} for context in contexts]
        if not isinstance(stages, list | tuple):
            raise ValueError("stages: a list of sections, or {start, end, count}")
        return {"stages": [_merged(shared, own) if isinstance(own, Mapping) else own for own in stages]}

    @model_validator(mode="after")
    def _check(self) -> "LongContextConfig":
        contexts = [stage.context for stage in self.stages]
        if contexts != sorted(set(contexts)):
            raise ValueError(f"stages: contexts {contexts} must rise")
        return self


def lengthening(*, start: int, end: int, count: int) -> tuple[int, ...]:
    """Return the row lengths of `count` stages that lead from `start` (already supported) to `end` in equal ratios.

    Rounded to multiples of 1,024 from there on. Llama 3.1 went from 8,192 to 131,072 in six stages of about 8e11
    tokens in all (section 3.4.2); which lengths lay between is not published. With a count of 4 each doubles.
    """
    if not (0 < start < end and count >= 1):
        raise ValueError(f"stages: start {start} must be below end {end}, and count {count} at least 1")
    exact = [start * (end / start) ** (n / count) for n in range(1, count + 1)]
    return (*(round(x / _ROUND) * _ROUND if x > _ROUND else round(x) for x in exact[:-1]), end)


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, a section's keys one by one; the own ones win."""
    both = dict(shared)
    for name, value in own.items():
        old = both.get(name)
        both[name] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both
