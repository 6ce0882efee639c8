"""A request in flight: its ids, how many of them the cache holds and where, and what its next choice depends on.

ids      prompt ids, then generated ids
stored   how many of them have keys and values in the blocks of `table`; those after it are pending
"""

import time

from herd.engine.blocks import chain_key
from herd.engine.request import Completion, FinishReason, Request, Token
from herd.engine.sampler import Picker
from herd.engine.stops import StopFinder
from herd.tokenizer.bpe import Tokenizer


class Sequence:
    """One request. Preemption empties `table` and sets `stored` to 0; nothing else changes."""

    def __init__(self, handle: int, request: Request, *, tokenizer: Tokenizer | None = None) -> None:
        self.handle = handle
        self.request = request
        self.rank = (-request.priority, handle)  # lower goes first
        self.ids = list(request.prompt)
        self.tokens: list[Token] = []
        self.prompt_logprobs: list[float] = []
        self.table: list[int] = []
        self.stored = 0
        self.reused = 0
        self.running = False
        self.drafted = self.accepted = self.rounds = 0
        self.picker = Picker(request)
        strings = request.stop_strings
        self._stops = StopFinder(tokenizer, strings) if strings and tokenizer is not None else None
        self._stop_found = False
        self._keys: list[bytes] = []

    @property
    def pending(self) -> int:
        """How many ids the cache lacks; with the last of them comes the next token."""
        return len(self.ids) - self.stored

    @property
    def reusable(self) -> int:
        """How many positions may come from the cache: not the last id, nor any whose log-probability is due."""
        return len(self.prompt_logprobs) if self.logprobs_due else len(self.ids) - 1

    @property
    def logprobs_due(self) -> bool:
        """Whether log-probabilities of prompt ids are asked for and still missing."""
        wanted = len(self.request.prompt) - 1
        return self.request.sampling.prompt_logprobs and len(self.prompt_logprobs) < wanted

    def keys(self, blocks: int, block_size: int) -> list[bytes]:
        """Return the keys of the first `blocks` blocks, which must be full of ids."""
        while len(self._keys) < blocks:
            start = len(self._keys) * block_size
            before = self._keys[-1] if self._keys else b""
            self._keys.append(chain_key(before, self.ids[start : start + block_size]))
        return self._keys[:blocks]

    def append(self, token: Token) -> None:
        """Take the chosen token."""
        self.tokens.append(token)
        self.ids.append(token.id)
        if token.id not in self.request.stop_ids:
            self.picker.accept(token.id)
            self._stop_found = self._stops is not None and self._stops.push(token.id)

    def finish_reason(self, capacity: int) -> FinishReason | None:
        """Say whether the newest token ended the request; `capacity` positions are the most it may have."""
        if self._stop_found or (self.tokens and self.tokens[-1].id in self.request.stop_ids):
            return "stop"
        if len(self.tokens) >= self.request.sampling.max_tokens or len(self.ids) >= capacity:
            return "length"
        return None

    def late(self) -> bool:
        """Say whether the deadline has passed."""
        return self.request.deadline is not None and time.monotonic() >= self.request.deadline

    def cut(self, reason: FinishReason | None) -> int:
        """Return how many characters at the end of the text so far are not to be shown."""
        # an answer that ended otherwise may end in what looked like the beginning of a stop string
        return self._stops.cut if self._stops and (reason is None or self._stop_found) else 0

    def completion(self, reason: FinishReason) -> Completion:
        """Return what was generated."""
        logprobs = tuple(self.prompt_logprobs) if self.request.sampling.prompt_logprobs else None
        counts = self.reused, self.drafted, self.accepted, self.rounds
        return Completion(tuple(self.tokens), reason, self.cut(reason), logprobs, *counts)
