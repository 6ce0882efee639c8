"""The guard in a thread of its own: verdicts for many conversations at once, each counted and timed."""

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Literal, Protocol

import torch

from herd.base.messages import Message
from herd.guard.classifier import Verdict
from herd.serve.metrics import Metrics

Where = Literal["input", "output"]
_TOGETHER = 32


class Classifier(Protocol):
    """What judges conversations by their last message: a Guard."""

    def classify(self, conversations: Sequence[Sequence[Message]]) -> list[Verdict]:
        """Return one verdict for each conversation, in order."""
        ...


class Sentry:
    """Asks the guard `name`; conversations that wait at the same time are judged in one batch."""

    def __init__(self, guard: Classifier, *, name: str, metrics: Metrics) -> None:
        self.name = name
        self._guard, self._metrics = guard, metrics
        self._inbox: queue.SimpleQueue[tuple[Sequence[Message], Future[Verdict]] | None] = queue.SimpleQueue()
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._serve, name=f"guard {name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether verdicts are still given."""
        return self._thread.is_alive()

    async def judge(self, conversation: Sequence[Message], where: Where) -> Verdict:
        """Return the verdict on the last message. Raises what the guard raised: nothing unjudged may pass."""
        began, future = time.monotonic(), Future()
        self._inbox.put((conversation, future))
        verdict = await asyncio.wrap_future(future)
        self._metrics.judged(where, safe=verdict.safe, seconds=time.monotonic() - began)
        return verdict

    def stop(self) -> None:
        """Let the thread end after its batch."""
        self._inbox.put(None)
        self._thread.join(timeout=5)

    def _serve(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            batch = [self._inbox.get()]
            while len(batch) < _TOGETHER and not self._inbox.empty():
                batch.append(self._inbox.get())
            asked = [pair for pair in batch if pair is not None and pair[1].set_running_or_notify_cancel()]
            try:
                verdicts = self._guard.classify([conversation for conversation, _ in asked])
                for (_, future), verdict in zip(asked, verdicts, strict=True):
                    future.set_result(verdict)
            except Exception as error:
                for _, future in asked:
                    future.set_exception(error)
            if None in batch:
                return


def judged_prompt(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return what is judged before an answer: the conversation up to its last user message.

    A guard sees users and assistants only: without a user, all that was said is judged as if one had said it.
    """
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        return (Message("user", "\n\n".join(message.content for message in messages)),)
    return tuple(messages[: last + 1])
