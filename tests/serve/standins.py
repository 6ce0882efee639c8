"""An engine that says what it is told to, and a guard that looks for one word: a server's other side in tests."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from toys import byte_tokenizer

from herd.base.messages import Message
from herd.engine.request import Completion, Event, FinishReason, Request, Stats, Token
from herd.guard.classifier import Verdict

TOKENIZER = byte_tokenizer()
BAD = "kill"


@dataclass
class ScriptedEngine:
    """Answers with `script(prompt text)`, a byte a step; `hold` set lets it go on. Ends as the real one does."""

    script: Callable[[str], str] = lambda prompt: "Hello."
    capacity: int = 4000
    hold: threading.Event = field(default_factory=threading.Event)
    asked: list[Request] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    failing: bool = False

    def __post_init__(self) -> None:
        self.hold.set()
        self._left: dict[int, tuple[Request, deque[int], list[Token]]] = {}
        self._events: list[Event] = []

    def submit(self, request: Request) -> int:
        self.asked.append(request)
        text = self.script(TOKENIZER.decode(list(request.prompt)))
        ids = deque([*TOKENIZER.encode(text, allowed_special="all"), TOKENIZER.eot_id])
        self._left[len(self.asked)] = (request, ids, [])
        return len(self.asked)

    def cancel(self, handle: int) -> None:
        if handle in self._left:
            self.cancelled.append(handle)
            self._events.append(self._end(handle, "cancelled"))

    @property
    def busy(self) -> bool:
        return bool(self._left or self._events)

    def step(self) -> list[Event]:
        self.hold.wait(0.01)
        if self.failing:
            raise RuntimeError("out of memory")
        events, self._events = self._events, []
        if self.hold.is_set():
            events += [self._next(handle) for handle in list(self._left)]
        return events

    def stats(self) -> Stats:
        return Stats(0, len(self._left), len(self._left), 100, 0, 0, 0, 0)

    def _next(self, handle: int) -> Event:
        request, ids, tokens = self._left[handle]
        token = Token(ids.popleft(), -0.5, ((65, -0.5), (66, -1.5))[: request.sampling.top_logprobs])
        tokens.append(token)
        if token.id in request.stop_ids:
            return self._end(handle, "stop", token)
        if len(tokens) >= request.sampling.max_tokens:
            return self._end(handle, "length", token)
        return Event(handle, token)

    def _end(self, handle: int, reason: FinishReason, token: Token | None = None) -> Event:
        completion = Completion(tuple(self._left.pop(handle)[2]), reason)
        return Event(handle, token, reason, 0, completion)


@dataclass
class WordGuard:
    """Calls unsafe whatever ends in a message with `BAD` in it."""

    judged: list[tuple[Message, ...]] = field(default_factory=list)

    def classify(self, conversations: Sequence[Sequence[Message]]) -> list[Verdict]:
        self.judged += map(tuple, conversations)
        bad = [BAD in conversation[-1].content for conversation in conversations]
        return [Verdict(False, ("S1",), 0.9) if each else Verdict(True, (), 0.1) for each in bad]
