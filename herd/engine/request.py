"""What is asked of the engine and what comes back, as plain values."""

from dataclasses import dataclass, field
from typing import Literal

from herd.base.errors import HerdError

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 are off; `seed` is this request's own."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_tokens < 1:
            raise HerdError(
                f"sampling out of range: {self}; temperature >= 0, 0 < top_p <= 1, top_k >= 0, max_tokens >= 1"
            )


@dataclass(frozen=True)
class Request:
    """A prompt as ids, and the ids that end the answer."""

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Token:
    """One generated id and its log-probability under the model (before temperature and filters)."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Completion:
    """All generated tokens, the stop token included, and why generation ended."""

    tokens: tuple[Token, ...]
    finish_reason: FinishReason

    @property
    def ids(self) -> list[int]:
        """The generated ids."""
        return [token.id for token in self.tokens]
