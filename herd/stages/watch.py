"""Evaluation inside a run: bits per byte and named tasks through the engine, with the trainer's own weights.

metrics/watch-STEP.jsonl   {"step", "tokens", "bits_per_byte": {"all": ..., "en": ...}, "tasks": {...}} a line
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from herd.base.files import read_jsonl, write_jsonl
from herd.base.run import RunFolder
from herd.engine.engine import Engine
from herd.eval.runner import bits_per_byte, run_task
from herd.eval.scorers import Item
from herd.eval.subject import Subject
from herd.model.transformer import Transformer
from herd.stages.evaluate import task_items
from herd.stages.step import Context
from herd.train.config import WatchConfig
from herd.train.loop import State


class Examiner:
    """Scores one model as it is at the moment on `documents` held-out texts a language and `items` of each task.

    `chat` says whether tasks are asked as dialogs or as text that goes on.
    """

    def __init__(
        self,
        context: Context,
        model: Transformer,
        name: str,
        *,
        documents: int,
        tasks: Sequence[str] = (),
        items: int = 0,
        chat: bool = False,
    ) -> None:
        self.engine = Engine(model)
        self.subject = Subject(name, self.engine, context.codec, chat=chat)
        corpus = context.run / "corpus"
        self._documents = first_of_each(read_jsonl(corpus / "heldout.jsonl"), documents)
        if tasks and not (corpus / "bench").is_dir():
            context.progress.note(f"{name}: this corpus has no tasks, so {', '.join(tasks)} will not be measured")
            tasks = ()
        self._tasks = {task: spread(task_items(corpus, task), items) for task in tasks}

    def __call__(self, more: Mapping[str, Sequence[Item]] | None = None) -> dict[str, Any]:
        """Return bits per byte by language and each task's share with its standard error.

        more: further items by task, of which shares by length, depth and language are returned too.
        """
        self.engine.refresh()
        measured: dict[str, Any] = {}
        if self._documents:
            facts = bits_per_byte(self.subject, self._documents).facts
            rows = {"all": facts} | facts["by"]["lang"]
            measured["bits_per_byte"] = {lang: round(row["value"], 4) for lang, row in rows.items()}
        for task, items in {**self._tasks, **(more or {})}.items():
            # a task that makes no sense of this kind of model isn't measured
            if (score := run_task(self.subject, task, items)) is not None:
                kept = ("value", "stderr", "n", *(["by"] if task not in self._tasks else []))
                measured.setdefault("tasks", {})[task] = {name: score.facts[name] for name in kept}
        return measured


class Rows:
    """Measurements of one step of the ledger by training step, in a file that resuming cuts."""

    def __init__(self, run: RunFolder, kind: str, key: str) -> None:
        self._path = run / f"metrics/{kind}-{key.replace('/', '-')}.jsonl"

    def begin(self, step: int) -> None:
        """Keep what was measured up to this step, where training begins or goes on; what comes later comes again."""
        write_jsonl(self._path, [row for row in self.all() if step and row["step"] <= step])

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one measurement; training that went back measures anew."""
        write_jsonl(self._path, [*(other for other in self.all() if other["step"] < row["step"]), row])

    def all(self) -> list[dict[str, Any]]:
        """Return them in order."""
        return list(read_jsonl(self._path)) if self._path.exists() else []


class Watch:
    """Measures at the moments that a recipe names."""

    def __init__(
        self,
        context: Context,
        key: str,
        model: Transformer,
        *,
        config: WatchConfig,
        steps: int,
        chat: bool = False,
    ) -> None:
        self._context, self._key, self._model, self._config, self._chat = context, key, model, config, chat
        self._moments = config.moments(steps)
        self._rows = Rows(context.run, "watch", key)

    @cached_property
    def _examiner(self) -> Examiner:
        # made where it is first asked: of several processes only one measures
        config = self._config
        documents = config.documents if config.heldout else 0
        what = {"documents": documents, "tasks": config.tasks, "items": config.items}
        return Examiner(self._context, self._model, self._key, chat=self._chat, **what)

    def begin(self, step: int) -> None:
        """Take note that training begins at this step."""
        self._rows.begin(step)

    def due(self, step: int) -> bool:
        """Say whether this step is one to measure at."""
        return step in self._moments

    def __call__(self, state: State) -> None:
        self._rows.add({"step": state.step, "tokens": state.tokens, **self._examiner()})

    def facts(self) -> dict[str, Any]:
        """Return what was measured, by step."""
        return by_step(self._rows.all())


def watch_of(
    context: Context, key: str, model: Transformer, config: WatchConfig | None, *, steps: int, chat: bool = False
) -> Watch | None:
    """Return the watch that a training section asks for, if it asks for one."""
    if config is None or not (config.heldout or config.tasks):
        return None
    return Watch(context, key, model, config=config, steps=steps, chat=chat)


def by_step(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return measurements as facts: {step: what was measured}."""
    return {str(row["step"]): {name: value for name, value in row.items() if name != "step"} for row in rows}


def first_of_each(rows: Any, count: int) -> list[Mapping[str, Any]]:
    """Return the first `count` documents of each language: a few thousand bytes tell how a curve goes."""
    taken: dict[str, int] = {}
    chosen = []
    for row in rows:
        taken[row["lang"]] = taken.get(row["lang"], 0) + 1
        if taken[row["lang"]] <= count:
            chosen.append(row)
    return chosen


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` items, evenly over all: some tasks keep their languages one after the other."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]
