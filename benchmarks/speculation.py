"""Speculative decoding on a run's own tasks: tokens a second with a sibling, with n-gram lookup, and without.

Prompts are the run's benchmark items, pages that its needle prompts are to copy, and held-out text to continue. Each
task has engines of its own and times every way on the same requests, in turn; a gain is the median of the rounds'
ratios to the plain engine, with their range.
    tokens/s   of the plain engine, median
    first      the gain in the first round, all trials in it, which the others leave out
    length     tokens a round in which something was drafted (`Completion.acceptance_length`, over all requests)
    drafted    of the tokens that came, the share that had been drafted and accepted

Run `python benchmarks/speculation.py RUN`; `--temperature 0.8` samples, `--length 4` drafts always so many ids, and
`--draft resting` is a drafter of which nothing is ever expected. `made_pair.py` has models on which a sibling can win.
"""

import argparse
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from herd.base.files import read_jsonl
from herd.base.messages import Dialog, Message, parse_dialog
from herd.engine.drafter import NgramDrafter
from herd.engine.engine import Engine
from herd.engine.request import Completion, Request, Sampling
from herd.engine.sequence import Sequence as InFlight
from herd.engine.speculation import Speculation
from herd.model.weights import load_model
from herd.runtime.config import RuntimeConfig
from herd.runtime.device import Machine, set_up
from herd.stages.models import ModelFolder, open_draft, open_folder

TASKS = ("arithmetic", "reasoning", "knowledge", "tools", "needle")


@dataclass(frozen=True)
class Timed:
    """One run of all requests of a task."""

    seconds: float
    done: list[Completion]

    @property
    def speed(self) -> float:
        return sum(len(each.tokens) for each in self.done) / self.seconds


def prompts(model: ModelFolder, run: Path, count: int) -> dict[str, list[tuple[int, ...]]]:
    """Return prompts of each task."""
    found = {}
    bench = run / "corpus/bench"
    for task in (task for task in TASKS if (bench / f"{task}.jsonl").is_file()):
        rows = [row for row, _ in zip(read_jsonl(bench / f"{task}.jsonl"), range(count), strict=False)]
        found[task] = [tuple(model.codec.prompt(parse_dialog(row))) for row in rows]
    texts = [row["text"] for row, _ in zip(read_jsonl(run / "corpus/heldout.jsonl"), range(count), strict=False)]
    found["continue text"] = [tuple(model.tokenizer.encode(text[:120], bos=True)) for text in texts]
    found["copy"] = [
        tuple(model.codec.prompt(Dialog((Message("user", f"{text[:300]}\n{text[:300]}\n{text[:300]}"),))))[:-8]
        for text in texts
    ]
    return found


def timed(engine: Engine, requests: list[Request]) -> Timed:
    """Answer all requests."""
    began = time.perf_counter()
    done = engine.generate(requests)
    return Timed(time.perf_counter() - began, done)


def play(ways: dict[str, Engine], requests: list[Request], *, rounds: int, realtime: bool) -> list[dict[str, Timed]]:
    """Answer all requests every way, in turn, in so many rounds.

    realtime: before all other programs on a core; needs root. Linux stops who does so for 950 ms of a second, hence the
    pauses: a run should be shorter than that.
    """

    def turn(engine: Engine) -> Timed:
        if not realtime:
            return timed(engine, requests)
        time.sleep(0.3)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
        try:
            return timed(engine, requests)
        finally:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

    return [{name: turn(engine) for name, engine in ways.items()} for _ in range(rounds)]


def warm(engine: Engine, requests: list[Request]) -> None:
    """Have weights packed, a drafter's too, and the cache's memory touched, with nothing known of how drafts do."""
    speculation, engine._speculation = engine._speculation, None
    engine.generate(requests)
    engine._speculation = speculation
    if speculation is not None:
        sequence = InFlight(0, requests[0])
        speculation._drafter.prepare([sequence])
        speculation._drafter.forget(sequence)


def engines(folder: Path, machine: Machine, names: list[str], batch: int, length: int | None) -> dict[str, Engine]:
    """Return the plain engine and one for each draft; nothing is kept of prompts, so that every round works as much."""
    model = load_model(folder, dtype=machine.dtype, device=machine.device)
    made = {"plain": Engine(model, max_running=batch, prefix_reuse=False)}
    for name in names:
        draft = None if name == "resting" else open_draft(name, folder, machine)
        made[name] = Engine(model, max_running=batch, prefix_reuse=False, draft=draft, draft_length=length)
        if name == "resting":
            made[name]._speculation = Speculation(NgramDrafter(), share=9.0)
    return made


def median_range(values: list[float]) -> str:
    """Return the median of ratios, with their range."""
    return f"{statistics.median(values):.2f} × ({min(values):.2f}–{max(values):.2f})"


def row(task: str, batch: int, rounds: list[dict[str, Timed]]) -> str:
    """Return the line of one task and batch."""
    first, *rounds = rounds
    cells = [task, str(batch), f"{statistics.median(each['plain'].speed for each in rounds):,.0f}"]
    for name in [name for name in first if name != "plain"]:
        done = [completion for each in rounds for completion in each[name].done]
        tries, accepted, tokens = (
            sum(values) for values in zip(*((c.rounds, c.accepted, len(c.tokens)) for c in done), strict=True)
        )
        cells += [
            f"{first[name].speed / first['plain'].speed:.2f} ×",
            median_range([each[name].speed / each["plain"].speed for each in rounds]),
            f"{1 + accepted / tries:.2f}" if tries else "–",
            f"{accepted / tokens:.0%}",
        ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--draft", nargs="+", default=["small", "ngram"], help="who drafts")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--tasks", nargs="+", help="only these")
    parser.add_argument("--items", type=int, default=16, help="prompts a task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, help="ids drafted at once; unless given, as many as pay")
    parser.add_argument("--tokens", type=int, default=64, help="the longest answer")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--realtime", action="store_true", help="at a real-time priority, for machines that others use")
    options = parser.parse_args()
    model, machine = open_folder(options.run), set_up(RuntimeConfig())
    stops = frozenset(model.tokenizer.stop_ids)
    print(f"{model.slug}, {machine.dtype}, {torch.get_num_threads()} threads\n")
    heads = [f"{name}, first | gain | length | drafted" for name in options.draft]
    print(f"| task | batch | plain tokens/s | {' | '.join(heads)} |")
    print(f"| --- | ---: | ---: |{' ---: |' * 4 * len(heads)}")
    for batch in options.batch:
        for task, ids in prompts(model, options.run, options.items).items():
            if options.tasks and task not in options.tasks:
                continue
            made = engines(model.path, machine, options.draft, batch, options.length)
            requests = [
                Request(prompt, Sampling(options.temperature, max_tokens=options.tokens, seed=i), stops)
                for i, prompt in enumerate(ids)
                if len(prompt) + options.tokens <= made["plain"].capacity
            ]
            for engine in made.values():
                warm(engine, requests)
            rounds = play(made, requests, rounds=options.rounds + 1, realtime=options.realtime)
            print(row(task, batch, rounds), flush=True)


if __name__ == "__main__":
    main()
