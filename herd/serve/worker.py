"""An engine in a thread of its own, asked from the server's event loop.

event loop  --submit, cancel-->  inbox  -->  thread: engine.step()  --events-->  the request's ticket
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch

from herd.engine.engine import Engine
from herd.engine.request import Event, Request, Stats
from herd.serve.errors import ApiError

log = logging.getLogger("herd.serve")
_RATE_SECONDS = 10.0


class Ticket:
    """One request in the engine, as its asker sees it. Whoever stops asking closes it."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.handle: int | None = None  # the engine thread's to set and to read
        self.closed = False  # the event loop's
        self.began = time.monotonic()

    async def next(self) -> Event:
        """Return the next event. Raises what the engine raised."""
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    def close(self) -> None:
        """Cancel the request unless it has ended."""
        if not self.closed:
            self.closed = True
            self._worker.cancel(self)

    def take(self, event: Event | Exception) -> None:
        """Receive an event, on the event loop."""
        self._events.put_nowait(event)
        if isinstance(event, Exception) or event.finish_reason is not None:
            self.closed = True
            self._worker.ended(self)

    def hand(self, event: Event | Exception) -> None:
        """Pass an event on to the event loop, from the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self.take, event)
        except RuntimeError:  # that loop is closed: nobody waits any more
            log.debug("an event of a closed loop was dropped")


class Worker:
    """Runs one engine. `most_open` requests may be in it at once, waiting ones included."""

    def __init__(self, engine: Engine, *, name: str, most_open: int) -> None:
        self.name = name
        self._engine = engine
        self._most_open = most_open
        self._open: set[Ticket] = set()
        self._tickets: dict[int, Ticket] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._seconds = 1.0  # a request's usual duration
        self._recent: deque[tuple[float, int]] = deque()
        self._broken = False
        self._threads = torch.get_num_threads()  # a new thread would take as many as there are cores
        self._thread = threading.Thread(target=self._serve, name=f"engine {name}", daemon=True)
        self._thread.start()

    @property
    def capacity(self) -> int:
        """Positions that a prompt and its answer may have together."""
        return self._engine.capacity

    @property
    def alive(self) -> bool:
        """Whether requests are still answered."""
        return self._thread.is_alive() and not self._broken

    def stats(self) -> Stats:
        """Return the engine's counts of this moment."""
        return self._engine.stats()

    def rate(self) -> float:
        """Return tokens a second over the last ten seconds."""
        since = time.monotonic() - _RATE_SECONDS
        return sum(count for when, count in list(self._recent) if when >= since) / _RATE_SECONDS

    def check(self, answers: int) -> None:
        """Refuse a request for more answers than ever fit. Raises ApiError."""
        if answers > self._most_open:
            raise ApiError(f"{answers} answers in one request; at most {self._most_open} fit here", param="n")

    async def submit(self, requests: Sequence[Request]) -> list[Ticket]:
        """Put requests into the engine, all or none. Raises ApiError when it is full, HerdError on a bad request."""
        if not self.alive:
            raise ApiError(f"the engine of {self.name!r} has stopped; the log says why", status=503)
        self.check(len(requests))
        if len(self._open) + len(requests) > self._most_open:
            wait = min(60, max(1, round(self._seconds)))
            message = f"the queue of {self.name!r} is full; try again in {wait} s"
            raise ApiError(message, status=429, code="queue_full", retry_after=wait)
        tickets = [Ticket(self) for _ in requests]
        self._open.update(tickets)
        asked = asyncio.get_running_loop().create_future()
        self._inbox.put(lambda: self._submit(list(zip(tickets, requests, strict=True)), asked))
        try:
            await asked
        except BaseException:
            for ticket in tickets:
                ticket.close()
            raise
        return tickets

    def cancel(self, ticket: Ticket) -> None:
        """End a request."""
        self._open.discard(ticket)
        self._inbox.put(lambda: self._cancel(ticket))

    def ended(self, ticket: Ticket) -> None:
        """Take note that a request has ended."""
        self._open.discard(ticket)
        self._seconds += 0.1 * (time.monotonic() - ticket.began - self._seconds)

    def stop(self) -> None:
        """Let the thread end after its round; requests in it get no more."""
        self._inbox.put(None)
        self._thread.join(timeout=5)

    # from here on: the engine's thread

    def _serve(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            while self._drain():
                try:
                    self._deliver(self._engine.step())
                except Exception as error:
                    log.exception("the engine failed", extra={"facts": {"model": self.name}})
                    self._fail(error)
        except Exception as error:
            self._broken = True
            log.exception("the engine can't go on", extra={"facts": {"model": self.name}})
            for ticket in self._tickets.values():
                ticket.hand(error)

    def _drain(self) -> bool:
        """Do what was asked for, and wait for it where there is nothing else to do; False: stop."""
        while True:
            try:
                ask = self._inbox.get(block=not self._engine.busy)
            except queue.Empty:
                return True
            if ask is None:
                return False
            ask()

    def _submit(self, pairs: list[tuple[Ticket, Request]], asked: "asyncio.Future[None]") -> None:
        error: Exception | None = None
        try:
            for ticket, request in pairs:
                ticket.handle = self._engine.submit(request)
                self._tickets[ticket.handle] = ticket
        except Exception as raised:
            error = raised
            for ticket, _ in pairs:
                self._cancel(ticket)
        asked.get_loop().call_soon_threadsafe(_settle, asked, error)

    def _cancel(self, ticket: Ticket) -> None:
        if ticket.handle is not None and self._tickets.pop(ticket.handle, None) is not None:
            self._engine.cancel(ticket.handle)

    def _deliver(self, events: list[Event]) -> None:
        now = time.monotonic()
        self._recent.append((now, sum(event.token is not None for event in events)))
        while self._recent[0][0] < now - _RATE_SECONDS:
            self._recent.popleft()
        for event in events:
            ticket = self._tickets.get(event.handle)
            if ticket is None:
                continue  # cancelled
            if event.finish_reason is not None:
                del self._tickets[event.handle]
            ticket.hand(event)

    def _fail(self, error: Exception) -> None:
        """Tell all askers, and free what their requests held; raises where the engine can't even do that."""
        tickets, self._tickets = self._tickets, {}
        for ticket in tickets.values():
            ticket.hand(error)
        for handle in tickets:
            self._engine.cancel(handle)


def _settle(asked: "asyncio.Future[None]", error: Exception | None) -> None:
    if asked.done():
        return  # the asker is gone
    if error is None:
        asked.set_result(None)
    else:
        asked.set_exception(error)
