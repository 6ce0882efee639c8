"""Turns: each contestant lives in a process of its own and works only when it is asked, so that none slows another.

    arena -- turn --> worker 1    the others block on their pipes
          <- seconds

A round gives every contestant one turn; ratios are taken within a round. A round in which other programs took
more than a quarter of a core is dropped: with as many threads as cores, one stolen core makes all others wait.
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import statistics
import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LIMIT = 0.25  # cores that others may take
WINDOW = 1024  # positions a sequence, more than any comparison needs
CHUNK = 512  # prompt tokens that go through a model at once
Prompts = Sequence[Sequence[int]]
_LOOK = 0.5  # seconds
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Facts:
    """What is stored: the format of the layers' matrices, that of the output matrix, and the bytes read for a token."""

    body: str
    head: str
    n_bytes: int
    cache: str


def timed(step: Callable[[], object], count: int = 1) -> float:
    """Return the seconds of so many calls."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    return time.perf_counter() - start


class Contestant(Protocol):
    """An engine with a model. All times are in seconds and include the choice of the likeliest token."""

    def facts(self) -> Facts:
        """Return what it stores."""

    def decode(self, prompts: Prompts, steps: int) -> float:
        """Run the prompts, then time so many steps, each with a token for every prompt."""

    def prefill(self, prompt: Sequence[int]) -> float:
        """Time a prompt until its first token is chosen."""

    def logits(self, prompt: Sequence[int]) -> np.ndarray:
        """Return the scores [vocab] after a prompt."""


@dataclass(frozen=True)
class Turn:
    """What a method returned, and the cores that others took meanwhile."""

    value: Any
    foreign: float


class Worker:
    """A contestant in its process."""

    def __init__(self, name: str, make: Callable[..., Contestant], *args: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make, args), daemon=True)
        self._process.start()
        theirs.close()
        self.missing: str | None = self._answer()[0]

    def turn(self, method: str, *args: Any) -> Turn:
        """Let it work. Raises RuntimeError with its own words where it failed."""
        busy, start = busy_seconds(), time.perf_counter()
        self._pipe.send((method, args))
        value, used, error = self._answer()
        if error:
            raise RuntimeError(f"{self.name}: {error}")
        foreign = (busy_seconds() - busy - used) / (time.perf_counter() - start)
        return Turn(value, max(0.0, foreign))

    def _answer(self) -> tuple[Any, float, str | None]:
        try:
            return self._pipe.recv()
        except EOFError:
            return f"{self.name}: its process died", 0.0, "its process died"

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def _work(pipe: Connection, make: Callable[..., Contestant], args: tuple[Any, ...]) -> None:
    try:
        contestant = make(*args)
    except ModuleNotFoundError as error:
        pipe.send((f"no module {error.name}: install the `bench` and `reference` extras", 0.0, None))
        return
    except Exception as error:  # a peer that can't open a model is left out, with its own words
        traceback.print_exc()
        pipe.send((f"{type(error).__name__}: {error}", 0.0, None))
        return
    pipe.send((None, 0.0, None))
    while True:
        try:
            method, values = pipe.recv()
        except EOFError:
            return
        start = _own()
        try:
            value = getattr(contestant, method)(*values)
        except Exception as error:
            if not isinstance(error, NotImplementedError):
                traceback.print_exc()
            pipe.send((None, 0.0, f"{type(error).__name__}: {error}"))
            continue
        pipe.send((value, _own() - start, None))


def busy_seconds() -> float:
    """Return the processor seconds that all programs have taken since the machine started."""
    fields = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS


def _own() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class Rounds:
    """Rates by contestant, a value a round; `dropped` rounds were disturbed, and `disturbed` says that all were."""

    rates: Mapping[str, Sequence[float]]
    dropped: int
    disturbed: bool

    def ratio(self, ours: str, theirs: str) -> list[float]:
        """Return ours over theirs in each round."""
        return [a / b for a, b in zip(self.rates[ours], self.rates[theirs], strict=True)]


def wait_until_quiet(patience: float) -> None:
    """Wait until others take less than LIMIT cores, at most so many seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(_LOOK)
        if busy_seconds() - before <= LIMIT * _LOOK:
            return


def play(
    workers: Sequence[Worker],
    method: str,
    args: tuple[Any, ...],
    *,
    rate: Callable[[Any], float],
    chosen: Namespace,
) -> Rounds:
    """Give every worker one turn to warm up, then as many as make `chosen.rounds` quiet rounds, at most `.limit`.

    rate: tokens a second from what a turn returned. A worker that fails is left out.
    """
    able = []
    for worker in workers:
        wait_until_quiet(chosen.patience)
        try:
            worker.turn(method, *args)
        except RuntimeError as error:
            print(f"left out: {error}", flush=True)
        else:
            able.append(worker)
    quiet: list[dict[str, float]] = []
    loud: list[dict[str, float]] = []
    while able and len(quiet) < chosen.rounds and len(quiet) + len(loud) < chosen.limit:
        row, foreign = {}, 0.0
        for worker in able:
            wait_until_quiet(chosen.patience)
            turn = worker.turn(method, *args)
            row[worker.name] = rate(turn.value)
            foreign = max(foreign, turn.foreign)
        (quiet if foreign <= LIMIT else loud).append(row)
        print(f"rounds: {len(quiet)} quiet, {len(loud)} not (others took up to {foreign:.2f} cores)", flush=True)
    kept = quiet or loud
    rates = {worker.name: [row[worker.name] for row in kept] for worker in able}
    return Rounds(rates, len(loud) if quiet else 0, disturbed=not quiet)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return median (lowest–highest)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def rival(name: str, ours: Iterable[str]) -> str | None:
    """Return which of herd's contestants a peer is held against: the one of as many bits, else the first."""
    ours = list(ours)
    return next((one for one in ours if _bits(one) == _bits(name)), ours[0] if ours else None)


def _bits(name: str) -> int:
    found = re.search(r":\w*?(?:int|q|fp|f)(\d+)", name)
    return int(found[1]) if found else 16


def print_table(found: Rounds, facts: Mapping[str, Facts], errors: Mapping[str, float]) -> None:
    """Print a row a contestant."""
    ours = [name for name in found.rates if name.startswith("herd:")]
    if found.disturbed:
        print("\nno round was quiet: read ratios as rough")
    elif found.dropped:
        print(f"\n{found.dropped} rounds dropped, in which others took more than {LIMIT} cores")
    print("\n| engine | layers | output matrix | cache | MB a token | error of scores | tokens/s | herd is faster by |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | --- |")
    for name, rates in found.rates.items():
        fact, rate = facts[name], spread(rates, ".1f" if min(rates) < 1000 else ".0f")
        against = None if name in ours else rival(name, ours)
        ratio = f"{spread(found.ratio(against, name))} ({against})" if against else ""
        error = f"{errors[name]:.1%}" if name in errors else "–"
        megabytes = f"{fact.n_bytes / 1e6:,.0f}"
        print(f"| {name} | {fact.body} | {fact.head} | {fact.cache} | {megabytes} | {error} | {rate} | {ratio} |")


def write_json(path: Path, **values: Any) -> None:
    """Add one line to a file of results."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def options(description: str, *, model: str = "S, T, or a model folder") -> argparse.ArgumentParser:
    """Return the arguments that all comparisons take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", help=model)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "herd-bench", help="kept models")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=15, help="the most rounds, quiet or not")
    parser.add_argument("--patience", type=float, default=20, help="seconds to wait for a quiet machine before a turn")
    parser.add_argument("--json", type=Path, help="add results to this file, a line a table")
    return parser
