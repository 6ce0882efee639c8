"""Being told to stop: SIGTERM from whoever preempts a job, SIGUSR1 as Slurm's warning (`--signal=USR1@120`).

    first signal      outside training: Stopped is raised at once; in training: `asked` is set, the loop saves and ends
    second SIGTERM    the process ends at once, whatever it is doing
    grace over        the same
A thread of its own listens, so that a process that is stuck in a collective still ends.
"""

import math
import os
import selectors
import signal
import socket
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Self

# EX_TEMPFAIL of sysexits.h, 'try again later': what a launcher or a queue takes for 'start the same command again'
EXIT_STOPPED = 75
# EX_SOFTWARE: a run that hangs
EXIT_HUNG = 70
_WATCHED = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(SystemExit):
    """The process was told to stop and did; the same command goes on from here. Its exit status is 75."""

    status = EXIT_STOPPED

    def __init__(self, why: str) -> None:
        super().__init__(self.status)
        self.why = why

    def __str__(self) -> str:
        return self.why


class Hung(SystemExit):
    """The run hung and its watchdog has said so; the same command goes on from the last checkpoint."""

    def __init__(self) -> None:
        super().__init__(EXIT_HUNG)


class StopSignals:
    """Listens for signals to stop while it is entered; does nothing outside the main thread of a process.

    grace: seconds to save and end. together: a SIGTERM within so many seconds of another is the same one, which a
    queue sends to every process and a launcher passes on as well.
    """

    def __init__(self, *, grace: float = 60.0, together: float = 3.0) -> None:
        self.grace, self._together = grace, together
        self.asked = ""  # the first signal's name
        self._deferred = False
        self._before: dict[signal.Signals, object] = {}
        self._wakeup = -1

    def defer(self) -> None:
        """Leave it to the caller to look at `asked` and to end."""
        self._deferred = True

    def obey(self) -> None:
        """Stop deferring. Raises Stopped where a signal came meanwhile."""
        self._deferred = False
        if self.asked:
            raise Stopped(f"stopped by {self.asked}")

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._heard, self._told = socket.socketpair()
            self._told.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._handle) for number in _WATCHED}
            self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
            self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]
        self._before = {}
        self._told.close()
        self._listener.join()
        self._heard.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # the listener may not have had its turn yet
        self.asked = self.asked or signal.Signals(number).name
        if not self._deferred:
            self.obey()

    def _listen(self) -> None:
        deadline, terminated = math.inf, math.inf
        with selectors.DefaultSelector() as selector:
            selector.register(self._heard, selectors.EVENT_READ)
            while True:
                left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
                if not selector.select(left):
                    status = 128 + signal.Signals[self.asked]
                    end_now(status, f"{self.asked}: not saved within {self.grace:g} s; the last checkpoint stands")
                heard = self._heard.recv(64)
                if not heard:
                    return
                for number in (n for n in heard if n in _WATCHED):
                    now = time.monotonic()
                    if number == signal.SIGTERM and now - terminated > self._together:
                        end_now(128 + number, "SIGTERM a second time: ended at once; the last checkpoint stands")
                    if number == signal.SIGTERM:
                        terminated = min(terminated, now)
                    deadline = min(deadline, now + self.grace)
                    self.asked = self.asked or signal.Signals(number).name


def end_now(status: int, message: str = "") -> None:
    """End the process without another word from it; from any thread."""
    if message:
        sys.stderr.write(f"herd: {message}\n")
        sys.stderr.flush()
    os._exit(status)
