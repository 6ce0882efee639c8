"""How a stage tells what it is doing, without knowing who listens. The command line draws it."""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """What stages call. Every method returns at once and never raises."""

    def stage(self, key: str, state: str, detail: str = "") -> None:
        """Say that step `key` is now 'running', 'done', 'kept' (already in the ledger) or 'skipped'."""

    def advance(self, done: int, total: int, **figures: float) -> None:
        """Report work done within the running step, with live figures such as loss and tokens_per_s."""

    def note(self, text: str) -> None:
        """Say one line worth reading."""


class Silent:
    """A listener that ignores everything: for tests and library use."""

    def stage(self, key: str, state: str, detail: str = "") -> None:
        pass

    def advance(self, done: int, total: int, **figures: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def rounded(figures: Mapping[str, float], digits: int = 6) -> dict[str, float]:
    """Round figures for a ledger line, so that a line stays readable."""
    return {key: round(value, digits) if isinstance(value, float) else value for key, value in figures.items()}
