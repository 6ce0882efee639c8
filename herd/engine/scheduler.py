"""Which request sits in which slot of the cache: waiting requests enter as soon as a slot is free."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from herd.engine.request import Completion, FinishReason, Request, Token


@dataclass
class Sequence:
    """A request in flight."""

    number: int
    request: Request
    slot: int = -1
    tokens: list[Token] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        self.generator.manual_seed(self.request.sampling.seed)

    def finish_reason(self, capacity: int) -> FinishReason | None:
        """Say whether the newest token ended the request."""
        if self.tokens and self.tokens[-1].id in self.request.stop_ids:
            return "stop"
        used = len(self.request.prompt) + len(self.tokens)
        if len(self.tokens) >= self.request.sampling.max_tokens or used >= capacity:
            return "length"
        return None

    def completion(self, reason: FinishReason) -> Completion:
        """Return what was generated."""
        return Completion(tuple(self.tokens), reason)


class Scheduler:
    """First come, first served over a fixed number of slots."""

    def __init__(self, requests: Iterable[Request], *, slots: int) -> None:
        self.waiting = deque(Sequence(number, request) for number, request in enumerate(requests))
        self.running: list[Sequence] = []
        self._free = list(range(slots))

    def admit(self) -> list[Sequence]:
        """Move waiting requests into free slots; returns those that need their prompt run."""
        admitted = []
        while self.waiting and self._free:
            sequence = self.waiting.popleft()
            sequence.slot = self._free.pop()
            admitted.append(sequence)
        self.running += admitted
        return admitted

    def release(self, sequence: Sequence) -> None:
        """Take a finished request out and free its slot."""
        self.running.remove(sequence)
        self._free.append(sequence.slot)
