"""Heartbeats: what each rank is doing, told to the others and to the next attempt by small files. No torch.

attempts/STEP/r0012-00003.json   attempt r0012 (its start's id in the ledger), rank 3: a Beat, written every second

A thread looks at what the main thread is doing many times a second, so a rank that makes the others wait is told from
those that wait.
"""

import json
import os
import sys
import sysconfig
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from herd.train.clock import STEP, Clock

_LOOKS = 20  # a second
_LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<")
_COLLECTIVES, _WAITING = f"torch{os.sep}distributed", f"herd{os.sep}runtime{os.sep}process.py"
_HERD = str(Path(__file__).parents[1])
_WINDOW = 200  # looks that a share is taken of


@dataclass(frozen=True)
class Beat:
    """What one rank was doing: training steps done, what it spends time on, and where its main thread stands.

    count    beats so far: of a rank without life it stays the same
    waiting  whether the main thread stands in a collective, or waits for the first rank: it waits for others
    busy     share of the looks of window `window` in which it didn't; a window is some 10 s of training steps
    why      how the attempt ended, where its watchdog ended it
    """

    rank: int
    count: int = 0
    step: int = 0
    kind: str = "startup"
    waiting: bool = False
    at: str = ""
    busy: float = 1.0
    window: int = 0
    attempt: dict[str, Any] = field(default_factory=dict)
    joules: float | None = None
    why: str = ""


def no_watch(beat: Beat) -> None:
    """Look at a beat and do nothing."""


class Heart:
    """Writes this rank's beats while it is entered, and tells `watch` of each (train/watchdog.py).

    seconds: between beats. window: looks at the main thread that a share of work is taken of.
    """

    def __init__(
        self,
        folder: Path,
        attempt: str,
        clock: Clock,
        *,
        rank: int = 0,
        seconds: float = 1.0,
        window: int = _WINDOW,
        joules: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.folder, self.attempt, self.clock, self.rank, self.seconds = folder, attempt, clock, rank, seconds
        self.joules, self._size = joules, window
        self.watch: Callable[[Beat], None] = no_watch
        self.ending = threading.Event()  # set while the watchdog ends the process
        self._main = threading.main_thread().ident
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._count, self._window, self._share = 0, 0, 1.0
        self._looks: list[bool] = []
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def __enter__(self) -> "Heart":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.beat()

    def wait_for_the_end(self) -> None:
        """Leave the process to its watchdog, where that is about to end it."""
        if self.ending.is_set():
            self._thread.join()

    def beat(self, why: str = "") -> Beat:
        """Write a beat now."""
        with self._lock:
            self._count += 1
            waiting, at = _stands(self._main)
            beat = Beat(
                self.rank,
                self._count,
                self.clock.step,
                self.clock.kind,
                waiting,
                at,
                busy=self._share,
                window=self._window,
                attempt=self.clock.attempt(),
                joules=self.joules(),
                why=why,
            )
            path = self.folder / f"{self.attempt}-{self.rank:05d}.json"
            # not flushed to disk: what a killed process wrote is there all the same, and this is every second
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(asdict(beat)), encoding="utf-8")
            temporary.replace(path)
        return beat

    def _run(self) -> None:
        since = 0
        while not self._stop.wait(1 / _LOOKS):
            if self.clock.steps >= 2 and self.clock.kind in STEP:
                self._look()
            since += 1
            if since >= self.seconds * _LOOKS:
                since = 0
                self.watch(self.beat())

    def _look(self) -> None:
        self._looks.append(not _stands(self._main)[0])
        if len(self._looks) == self._size:
            self._share, self._window = sum(self._looks) / self._size, self._window + 1
            self._looks.clear()


def read_beats(folder: Path, attempt: str) -> list[Beat]:
    """Return the newest beat of each rank of an attempt, by rank."""
    beats = []
    for path in sorted(folder.glob(f"{attempt}-*.json")):
        try:
            beats.append(Beat(**json.loads(path.read_text(encoding="utf-8"))))
        except (json.JSONDecodeError, TypeError, FileNotFoundError):
            continue  # torn by a power cut
    return beats


def last_beat(folder: Path, attempt: str) -> float:
    """Return when an attempt's last beat was, in seconds since the epoch."""
    return max(path.stat().st_mtime for path in folder.glob(f"{attempt}-*.json"))


def _stands(thread: int | None) -> tuple[bool, str]:
    """Return whether a thread waits for other ranks, and the line that it stands at, outside of all libraries."""
    frame = sys._current_frames().get(thread or 0)
    if frame is None:
        return False, ""
    innermost = frame
    while frame.f_back is not None and _of_a_library(frame.f_code.co_filename):
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    at = f"{path.parent.name}/{path.name}:{frame.f_lineno} {frame.f_code.co_name}"
    return innermost.f_code.co_filename.endswith(_WAITING) or _COLLECTIVES in innermost.f_code.co_filename, at


def _of_a_library(path: str) -> bool:
    return path.startswith(_LIBRARIES) and not path.startswith(_HERD)
