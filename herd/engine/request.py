"""What is asked of the engine and what comes back, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from herd.base.errors import HerdError
from herd.engine.constraint import Constraint
from herd.tokenizer.bpe import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length", "cancelled", "deadline"]
_RANGES = (
    "temperature >= 0, 0 < top_p <= 1, top_k >= 0, 0 <= min_p <= 1, repetition_penalty > 0, max_tokens >= 1, "
    "top_logprobs >= 0, penalties and biases finite"
)
_LARGEST = 1e6  # of a penalty or bias: beyond all scores, and far from overflow


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. Temperature 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off.

    repetition_penalty divides positive scores of ids in the prompt or answer and multiplies negative ones
    (arXiv:1909.05858); frequency_penalty times an id's count in the answer, and presence_penalty for any, are
    subtracted; logit_bias is added. `seed` is this request's own. `top_logprobs` alternatives come with each token;
    `prompt_logprobs` asks for log p of every prompt id but the first.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_tokens: int = 128
    seed: int = 0
    top_logprobs: int = 0
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        shifts = (self.frequency_penalty, self.presence_penalty, *self.logit_bias.values())
        # written so that NaN is refused too
        fine = (
            0 <= self.temperature <= _LARGEST
            and 0 < self.top_p <= 1
            and self.top_k >= 0
            and 0 <= self.min_p <= 1
            and 0 < self.repetition_penalty <= _LARGEST
            and all(abs(shift) <= _LARGEST for shift in shifts)
            and self.max_tokens >= 1
            and self.top_logprobs >= 0
        )
        if not fine:
            raise HerdError(f"sampling out of range: {self}; {_RANGES}")


@dataclass(frozen=True)
class Request:
    """A prompt as ids, and what ends the answer: ids, strings (they may cross token borders), or a time.

    deadline: a value of time.monotonic(). priority: higher goes first; equal ones in order of arrival.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    constraint: Constraint | None = None
    deadline: float | None = None
    priority: int = 0


@dataclass(frozen=True)
class Token:
    """One generated id and its log-probability under the model (before temperature, penalties and filters).

    top: the likeliest ids with their log-probabilities, best first, as many as were asked for.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """All generated tokens, the stop token included, and why generation ended.

    cut: how many characters at the end of the text are a stop string and what came with its last token.
    reused: how many ids of the prompt were found in the cache. drafted, accepted: ids that were proposed, and those of
    them that became tokens, in so many `rounds`.
    """

    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    cut: int = 0
    prompt_logprobs: tuple[float, ...] | None = None
    reused: int = 0
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0

    @property
    def acceptance_length(self) -> float:
        """Tokens a round in which something was drafted; 1 where nothing was."""
        return 1 + self.accepted / max(1, self.rounds)

    @property
    def ids(self) -> list[int]:
        """The generated ids."""
        return [token.id for token in self.tokens]

    def text(self, tokenizer: Tokenizer) -> str:
        """Return the answer as text, without the stop token or stop string that ended it."""
        ids = self.ids
        if self.finish_reason == "stop" and not self.cut and ids and ids[-1] in tokenizer.stop_ids:
            ids.pop()
        decoder = StreamDecoder(tokenizer)
        text = "".join(map(decoder.push, ids))
        return text[: -self.cut] if self.cut else text + decoder.flush()


@dataclass(frozen=True)
class Event:
    """One token of the request `handle`, or its end; the last event carries the reason and the whole completion.

    cut: how many characters at the end of the text so far (what a StreamDecoder gave for all ids but a stop id)
    are a stop string, or may become one: whoever streams shows the text without them.
    """

    handle: int
    token: Token | None
    finish_reason: FinishReason | None = None
    cut: int = 0
    completion: Completion | None = None


@dataclass(frozen=True)
class Stats:
    """The engine at one moment, and its counts since it was made. A block in use is one that a request holds.

    prompt_tokens counts what requests brought, reused_tokens what of it (and of preempted work) was found in the
    cache; `tokens` were generated; of `drafted` ids in `rounds` of single requests so many were `accepted`.
    """

    waiting: int
    running: int
    blocks_used: int
    blocks_total: int
    prompt_tokens: int
    reused_tokens: int
    tokens: int
    preemptions: int
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
