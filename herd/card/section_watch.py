"""What was measured while models trained: bits per byte and named tasks, as tables and as a curve."""

from collections.abc import Mapping
from typing import Any

from herd.base.ledger import Record
from herd.card.book import BASE, Book
from herd.card.document import Block, Cell, Table
from herd.card.figures import Figure
from herd.card.plots import line_chart
from herd.card.section_scores import language_name, task_label


def watched(book: Book) -> list[Block]:
    """Return held-out bits per byte, then named tasks, one row a measurement; and the first drawn for the flagship."""
    moments = [(record, step) for record in book.training() for step in record.facts.get("watch") or {}]
    if not moments:
        return []
    blocks: list[Block] = []
    languages = _names(moments, "bits_per_byte")
    if languages:
        rows = [_row(book, record, step, languages, "bits_per_byte") for record, step in moments]
        blocks.append(Table("Held-out bits per byte while training", ("When", "Tokens", *languages), tuple(rows)))
    chart = line_chart(
        "Held-out bits per byte of the flagship's base",
        _curves(book, languages),
        axes=("tokens in all stages so far", "bits per byte"),
        caption="Measured inside the run, through the engine with the trainer's own weights.",
        sources=tuple(dict.fromkeys(record.id for record, _ in moments if record.step in book.base_steps())),
    )
    blocks += [chart] if chart else []
    if tasks := _names(moments, "tasks"):
        having = [(record, step) for record, step in moments if record.facts["watch"][step].get("tasks")]
        rows = [_row(book, record, step, tasks, "tasks") for record, step in having]
        header = ("When", "Tokens", *(task_label(task) for task in tasks))
        blocks.append(Table("Named tasks while training", header, tuple(rows)))
    return blocks


def measured(record: Record, *path: str, unit: str = "share") -> Figure:
    """Return the value and the standard error that stand at `path` of a record's facts."""
    found: Any = record.facts
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or found.get("value") is None:
        return Figure(None, unit, sources=(record.id,))
    where = ("facts", *path, "value")
    return Figure(found["value"], unit, found.get("stderr"), (record.id,), where, how=f"{found.get('n')} items")


def _names(moments: list[tuple[Record, str]], part: str) -> list[str]:
    return list(dict.fromkeys(name for record, step in moments for name in record.facts["watch"][step].get(part) or {}))


def _row(book: Book, record: Record, step: str, names: list[str], part: str) -> tuple[Cell, ...]:
    at = ("watch", step)
    cells = [
        measured(record, *at, part, name)
        if part == "tasks"
        else book.figure(record, "facts", *at, part, name, unit="bits")
        for name in names
    ]
    return (f"{record.step}, step {step}", book.figure(record, "facts", *at, "tokens", unit="amount"), *cells)


def _curves(book: Book, languages: list[str]) -> dict[str, list[dict[str, float]]]:
    """Return the flagship's base stages end to end, a curve a language; the mean over all has one too many colours."""
    curves: dict[str, list[dict[str, float]]] = {}
    before = 0
    for record in (r for r in book.training() if r.step.partition("/")[0] in BASE):
        for row in (record.facts.get("watch") or {}).values():
            for lang in languages:
                value = (row.get("bits_per_byte") or {}).get(lang)
                if value is not None and lang != "all":
                    point = {"tokens": before + row["tokens"], "loss": value}
                    curves.setdefault(language_name(lang), []).append(point)
        before += int(record.facts.get("tokens") or 0)
    return curves
