"""Long context on the card: the gates of its stages, and the needle test by length and depth."""

import math
from collections.abc import Iterator, Mapping, Sequence

from herd.base.ledger import Record
from herd.card.book import Book, model_label
from herd.card.document import Block, Cell, Prose, Section, Table, escape
from herd.card.figures import Figure
from herd.card.plots import heat_chart
from herd.card.section_scores import task_label
from herd.card.section_watch import measured


def long_context(book: Book) -> Section:
    """Return the gates that the long-context stages passed or didn't, then each model's needles."""
    return Section("long-context", "Long context", (*_gates(book), *_needles(book)))


def _gates(book: Book) -> Iterator[Block]:
    records = [record for record in book.training() if record.facts.get("gate")]
    if not records:
        return
    yield Prose(
        "After each stage of longer rows a gate asks two things, through the engine with the trainer's own weights. "
        "Have the short scores recovered: bits per byte and tasks beside those of the model before the stage, on the "
        "same texts and items. Is the needle found at every length up to the stage's: a number told once at some depth "
        "of a long text and asked for after its end, for a base model as text that goes on; length is in tokens. A "
        "stage that doesn't pass trains on, stops the run or goes on all the same, as the recipe says. 'Asked' is the "
        "most that bits per byte may rise, as a share, and a task fall, and the least share of needles at each length; "
        "under 'Needle', where any were hidden, how many other people's numbers stood in the same text."
    )
    tasks = list(dict.fromkeys(task for record in records for task in record.facts["gate"]["asked"]["tasks"]))
    header = ("Stage", "When", "Bits per byte ↓", *(task_label(task) for task in tasks), "Needle", "Least at a length")
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        rows += _gate_rows(book, record, tasks)
    yield Table("Gates of the long-context stages", (*header, "Decision"), tuple(rows))
    for record in records:
        *_, last = record.facts["gate"]["after"]
        grid = record.facts["gate"]["after"][last]["tasks"]["needle"]["by"].get("length_depth") or {}
        cells = {
            _split(key): measured(record, "gate", "after", last, "tasks", "needle", "by", "length_depth", key)
            for key in grid
        }
        yield from _grid(f"Needle after {record.step}", cells, unit="tokens")


def _gate_rows(book: Book, record: Record, tasks: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    """Yield the model before the stage, each portion of training, and what was asked for."""
    gate = record.facts["gate"]
    stage = record.step.partition("/")[2]
    yield (
        stage,
        "before",
        book.figure(record, "facts", "gate", "before", "bits_per_byte", "all", unit="bits"),
        *(measured(record, "gate", "before", "tasks", task) for task in tasks),
        "",
        "",
        "",
    )
    for step, row in gate["after"].items():
        at = ("gate", "after", step)
        lengths: Mapping[str, Mapping[str, float]] = row["tasks"]["needle"]["by"].get("length") or {}
        least = min(lengths, key=lambda length: lengths[length]["value"]) if lengths else None
        yield (
            stage,
            f"after {step} steps",
            book.figure(record, "facts", *at, "bits_per_byte", "all", unit="bits"),
            *(measured(record, *at, "tasks", task) for task in tasks),
            measured(record, *at, "tasks", "needle"),
            measured(record, *at, "tasks", "needle", *(("by", "length", least) if least else ())),
            "passed" if row["passed"] else escape("; ".join(row["failed"])),
        )
    asked = ("facts", "gate", "asked")
    yield (
        stage,
        "asked",
        book.figure(record, *asked, "bits", unit="share"),
        *(
            book.figure(record, *asked, "score", unit="share") if task in gate["asked"]["tasks"] else ""
            for task in tasks
        ),
        book.figure(record, *asked, "others", unit="count") if gate["asked"].get("others") else "",
        book.figure(record, *asked, "needle", unit="share"),
        str(gate["decision"]),
    )


def _needles(book: Book) -> Iterator[Block]:
    models = [m for m in book.scored_models("needle") if book.breakdown("needle", m, "length_depth")]
    text = (
        "A number is told once in a long text, at some depth of it (0 the start, 1 the end), and asked for "
        "after the end. Length is in characters."
    )
    if not models:
        scored = [(model_label(m), book.score("needle", m)) for m in book.scored_models("needle")]
        figures = {f"m{i}": figure for i, (_, figure) in enumerate(scored)}
        listed = "; ".join(f"{escape(name)} {{m{i}}}" for i, (name, _) in enumerate(scored)) or "not measured"
        yield Prose(f"{text}\n\nNeedle by length and depth: {listed}.", figures)
        return
    yield Prose(text)
    for model in models:
        keys = [key for key in book.breakdown("needle", model, "length_depth") if "|" in key]
        cells = {_split(key): book.score("needle", model, "length_depth", key) for key in keys}
        yield from _grid(f"Needle: {model_label(model)}", cells, unit="characters")


def _split(key: str) -> tuple[str, str]:
    length, _, depth = key.partition("|")
    return length, depth


def _grid(title: str, cells: Mapping[tuple[str, str], Figure], *, unit: str) -> Iterator[Block]:
    """Yield shares by length and depth as a table and as a heat map."""
    lengths, depths = _sorted({k[0] for k in cells}), _sorted({k[1] for k in cells})
    rows: list[tuple[Cell, ...]] = [
        (depth, *(cells.get((length, depth), Figure(None, "share")) for length in lengths)) for depth in depths
    ]
    if not rows:
        return
    yield Table(title, ("Depth", *(f"{length} {unit}" for length in lengths)), tuple(rows))
    if chart := heat_chart(f"{title}, drawn", cells, lengths=lengths, depths=depths, unit=unit):
        yield chart


def _sorted(values: set[str]) -> Sequence[str]:
    def key(text: str) -> tuple[float, str]:
        try:
            return float(text), text
        except ValueError:
            return math.inf, text

    return sorted(values, key=key)
