"""Progress for a person: a live list of steps on a terminal, plain lines when piped."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from herd.base.progress import Progress

_MARKS = {"waiting": "·", "running": "▸", "done": "✓", "kept": "=", "skipped": "–"}
_STYLES = {"waiting": "dim", "running": "bold", "done": "green", "kept": "dim green", "skipped": "yellow"}
_PLAIN_SECONDS = 10.0


@contextmanager
def display(keys: Sequence[str]) -> Generator[Progress]:
    """Yield a listener fit for where the output goes."""
    console = Console()
    if not console.is_terminal:
        yield Plain(console)
        return
    shown = Shown(keys)
    with Live(shown, console=console, refresh_per_second=4, transient=False):
        yield shown


class Figures:
    """How far the running step is, in one line."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def line(self, done: int, total: int, figures: dict[str, float]) -> str:
        """Return 'done/total, loss, tokens/s, time left'."""
        parts = [f"{done}/{total}"]
        if "loss" in figures:
            parts.append(f"loss {figures['loss']:.3f}")
        if "tokens_per_s" in figures:
            parts.append(f"{figures['tokens_per_s']:,.0f} tokens/s")
        spent = time.monotonic() - self.began
        if 0 < done < total:
            parts.append(f"{_clock(spent / done * (total - done))} left")
        return ", ".join(parts)


class Plain:
    """Lines for a pipe or a log file."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._key, self._figures, self._last = "", Figures(), 0.0

    def stage(self, key: str, state: str, detail: str = "") -> None:
        """Print a line when a step begins or ends."""
        if state == "running":
            self._key, self._figures, self._last = key, Figures(), time.monotonic()
        self._say(f"{key}: {state}{f' ({detail})' if detail else ''}")

    def advance(self, done: int, total: int, **figures: float) -> None:
        """Print a line now and then."""
        if time.monotonic() - self._last >= _PLAIN_SECONDS:
            self._last = time.monotonic()
            self._say(f"{self._key}: {self._figures.line(done, total, figures)}")

    def note(self, text: str) -> None:
        """Print a line."""
        self._say(text)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class Shown:
    """A live list of steps, the running one with its figures."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._states = dict.fromkeys(keys, ("waiting", ""))
        self._began = time.monotonic()
        self._figures = Figures()
        self._running, self._line, self._note = "", "", ""

    def stage(self, key: str, state: str, detail: str = "") -> None:
        """Mark a step."""
        self._states[key] = (state, detail)
        if state == "running":
            self._running, self._figures, self._line, self._note = key, Figures(), "", ""

    def advance(self, done: int, total: int, **figures: float) -> None:
        """Update the running step's line."""
        self._line = self._figures.line(done, total, figures)

    def note(self, text: str) -> None:
        """Show the newest note under the list."""
        self._note = text

    def __rich__(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for key, (state, detail) in self._states.items():
            text = self._line if key == self._running and state == "running" else detail
            style = _STYLES[state]
            table.add_row(Text(_MARKS[state], style), Text(key, style), Text(text, "" if state == "running" else "dim"))
        spent = Text(
            f"{_clock(time.monotonic() - self._began)}  {self._note}",
            "dim",
            overflow="ellipsis",
            no_wrap=True,
        )
        return Group(table, spent)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
