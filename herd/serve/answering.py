"""One choice of an answer, from the engine's events to what the client may see; and several choices at once.

events --reader--> text, calls --guard, in windows--> deltas
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from herd.base.messages import ToolCall
from herd.engine.request import Completion, Token
from herd.guard.classifier import Verdict
from herd.guard.shield import REFUSAL
from herd.serve.metrics import Metrics
from herd.serve.reading import Reader
from herd.serve.worker import Ticket

Finish = Literal["stop", "length", "tool_calls", "content_filter"]
Judge = Callable[[str], Awaitable[Verdict]]


@dataclass(frozen=True)
class Delta:
    """What one choice says next; the last one has the finish reason. `verdict`: the guard's newest word on it."""

    index: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    finish: Finish | None = None
    verdict: Verdict | None = None


@dataclass
class Answer:
    """Reads one ticket. `window`: how many tokens are judged together; None judges the whole answer once.

    `tokens` counts what was generated, `completion` is there when the engine ended the answer itself.
    """

    index: int
    ticket: Ticket
    reader: Reader
    judge: Judge | None
    window: int | None
    model: str
    metrics: Metrics
    arrived: float
    tokens: int = 0
    completion: Completion | None = None
    _text: str = ""  # all of it
    _sent: int = 0  # characters of it that the client has
    _unsent: list[Token] = field(default_factory=list)
    _since: float | None = None  # when the first of those came
    _first: float | None = None

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yield the answer. Raises what the engine or the guard raised."""
        finish: Finish | None = None
        while finish is None:
            event = await self.ticket.next()
            if event.token is not None:
                self._note(event.token)
            self._text += self.reader.push(event)
            if event.finish_reason is not None:
                self.completion = event.completion
                finish = "stop" if event.finish_reason == "stop" else "length"
            elif self._ready():
                delta = await self._judged()
                yield delta
                if delta.finish is not None:
                    return
        rest, calls = self.reader.finish()
        self._text += rest
        self._timed()
        yield await self._judged(calls, finish="tool_calls" if calls else finish)

    def _note(self, token: Token) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self.metrics.first_token(self.model, now - self.arrived)
        self._since = self._since or now
        self._unsent.append(token)
        self.tokens += 1

    def _timed(self) -> None:
        if self._first is not None and self.tokens > 1:
            self.metrics.per_token(self.model, (time.monotonic() - self._first) / (self.tokens - 1))

    def _ready(self) -> bool:
        if len(self._text) == self._sent:
            return False
        return self.judge is None or (self.window is not None and len(self._unsent) >= self.window)

    async def _judged(self, calls: tuple[ToolCall, ...] = (), finish: Finish | None = None) -> Delta:
        """Return what is there, or the end of the answer where the guard forbids it."""
        verdict = None
        called = [json.dumps(dict(call.arguments), ensure_ascii=False) for call in calls]
        said = "\n".join(filter(None, [self._text, *called]))
        if self.judge is not None and said.strip():
            verdict = await self.judge(said)
            if self.window is not None and self._since is not None:
                self.metrics.held(time.monotonic() - self._since)
        if verdict is not None and not verdict.safe:
            self.ticket.close()
            self._timed()
            return Delta(self.index, "" if self._sent else REFUSAL, finish="content_filter", verdict=verdict)
        text, tokens = self._text[self._sent :], tuple(self._unsent)
        self._sent, self._unsent, self._since = len(self._text), [], None
        return Delta(self.index, text, tokens, calls, finish, verdict)


async def together(answers: Sequence[Answer]) -> AsyncGenerator[Delta, None]:
    """Yield the deltas of all answers as they come. Raises the first error of any of them."""
    queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue()

    async def run(answer: Answer) -> None:
        try:
            async for delta in answer.deltas():
                queue.put_nowait(delta)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(run(answer)) for answer in answers]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
