"""Batches laid out ahead of the loop, in a thread of their own, so that the loop doesn't wait for data."""

import time
from collections import deque
from collections.abc import Mapping
from threading import Condition, Thread
from typing import Any

from herd.train.batch import Batch
from herd.train.feed import Feed


class Prefetched:
    """A feed whose next `ahead` batches are prepared while the loop works; `waited` is what it waited, in seconds.

    `state` is that of the next batch to be taken, whatever was prepared already. An error of the feed is raised where
    its batch would have been taken. `close` ends the thread; so does leaving a `with` block.
    """

    def __init__(self, feed: Feed, *, ahead: int = 2) -> None:
        assert ahead > 0
        self.feed, self.waited = feed, 0.0
        self._ahead, self._state = ahead, feed.state()
        self._ready: deque[tuple[Batch, dict[str, Any]] | BaseException] = deque()
        self._changed = Condition()
        self._thread: Thread | None = None
        self._closing = self._ahead_of_state = False

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Batch:
        began = time.perf_counter()
        if self._thread is None:
            self._rewind()
            self._thread = Thread(target=self._prepare, name="feed", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ready)
            first = self._ready[0]
            if isinstance(first, BaseException):  # stays: whoever asks again is told again
                raise first
            self._ready.popleft()
            self._changed.notify_all()
        batch, self._state = first
        self.waited += time.perf_counter() - began
        return batch

    def _prepare(self) -> None:
        while True:
            made: tuple[Batch, dict[str, Any]] | BaseException
            try:
                made = (next(self.feed), self.feed.state())
            except BaseException as error:
                made = error
            with self._changed:
                self._changed.wait_for(lambda: len(self._ready) < self._ahead or self._closing)
                if self._closing:
                    return
                self._ready.append(made)
                self._changed.notify_all()
            if isinstance(made, BaseException):
                return

    def close(self) -> None:
        """End the thread and forget what it prepared; asking for a batch starts anew."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._thread, self._closing, self._ahead_of_state = None, False, True
        self._ready.clear()

    def _rewind(self) -> None:
        # not in `close`, which may be on the way out with this feed's own error
        if self._ahead_of_state:
            self.feed.restore(self._state)
            self._ahead_of_state = False

    def state(self) -> dict[str, Any]:
        """Return where the next batch is taken from."""
        return self._state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved place."""
        self.close()
        self.feed.restore(state)
        self._state, self._ahead_of_state = self.feed.state(), False

    def facts(self) -> dict[str, Any]:
        """Return what the ledger says of the batches that were taken."""
        self.close()
        self._rewind()
        return self.feed.facts()
