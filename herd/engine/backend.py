"""What evaluation, the guard, chat and sampled data ask of whatever runs a model: herd's own engine, or vLLM."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

from herd.engine.request import Completion, Request, Stats, Token

BackendName = Literal["herd", "vllm"]


class Backend(Protocol):
    """Generates and scores with one model. What trains a model while it samples needs the `Engine` itself."""

    @property
    def capacity(self) -> int:
        """How many positions a prompt and its answer may have together."""
        ...

    def generate(
        self, requests: Sequence[Request], *, on_done: Callable[[int], None] = lambda done: None
    ) -> list[Completion]:
        """Complete all requests, in their order. Raises HerdError on one that can't be answered."""
        ...

    def stream(self, request: Request) -> Iterator[Token]:
        """Yield the tokens of one request as they are chosen; who stops asking cancels it."""
        ...

    def score(
        self, sequences: Sequence[Sequence[int]], *, on_done: Callable[[int], None] = lambda done: None
    ) -> list[list[float]]:
        """Return log p(id | ids before it) for every id but the first of each sequence."""
        ...

    def stats(self) -> Stats:
        """Return the counts of this moment; what a backend doesn't tell is 0."""
        ...
