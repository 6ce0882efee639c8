"""What happens after each step of the loop: metrics lines, progress. A tuple of these, run in order."""

import json
from collections.abc import Callable
from pathlib import Path

from herd.base.files import write_atomic
from herd.base.progress import Progress, rounded
from herd.train.loop import State


class Metrics:
    """One JSON line a step: step, tokens and the figures. `write`: one rank does, the others keep nothing."""

    def __init__(self, path: Path, *, write: bool = True) -> None:
        self._path, self._write = path, write
        self._waiting: list[str] = []

    def __call__(self, state: State) -> None:
        row = {"step": state.step, "tokens": state.tokens} | rounded(state.figures)
        self._waiting.append(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Write the lines gathered so far; called before a checkpoint so that the file is never behind it."""
        if self._write:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
        self._waiting.clear()

    def cut(self, step: int) -> None:
        """Keep the lines of the first `step` steps: those after it will run again."""
        self._waiting = []
        if self._write:
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
            write_atomic(self._path, "".join(lines[:step]))


def reporter(progress: Progress, steps: int) -> Callable[[State], None]:
    """Return a hook that tells the listener how far the loop is."""

    def report(state: State) -> None:
        shown = {key: state.figures[key] for key in ("loss", "tokens_per_s") if key in state.figures}
        progress.advance(state.step, steps, **shown)

    return report
