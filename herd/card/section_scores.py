"""The card's scores: benchmarks of the whole family, distilled against alone, each language."""

import math
from collections.abc import Iterator

from herd.base.languages import LANGUAGES
from herd.card.book import Book, model_label
from herd.card.document import Block, Cell, Prose, Section, Table
from herd.card.figures import Figure
from herd.card.plots import score_chart

TASKS = (
    "knowledge", "knowledge_crosslingual", "reasoning", "arithmetic", "code", "tools", "language", "needle",
    "bits_per_byte",
)  # fmt: skip
SAFETY_TASKS = ("violation_rate", "false_refusal_rate")
LOWER_IS_BETTER = ("bits_per_byte", *SAFETY_TASKS)
_LABELS = {
    "knowledge_crosslingual": "knowledge, cross-lingual",
    "tools": "tool use",
    "language": "answers in the asked language",
    "needle": "long context (needle)",
    "bits_per_byte": "bits per byte ↓",
    "violation_rate": "violation rate ↓",
    "false_refusal_rate": "false-refusal rate ↓",
}


def task_label(task: str) -> str:
    """Return how the card calls a task; an arrow down says that lower is better."""
    return _LABELS.get(task, task.replace("_", " "))


def benchmark_tasks(book: Book) -> tuple[str, ...]:
    """Return the tasks of the benchmark table: the usual ones, then whatever else was scored."""
    return TASKS + tuple(t for t in book.tasks() if t not in TASKS and t not in SAFETY_TASKS)


def benchmark_models(book: Book) -> tuple[str, ...]:
    """Return the columns of the benchmark table: the flagship always, siblings where they exist."""
    names = {"flagship/base", "flagship/instruct", *book.scored_models(*benchmark_tasks(book))}
    names |= {f"siblings/{name}/{kind}" for name in book.siblings() for kind in ("base", "alone")}
    return tuple(sorted(names, key=book.order))


def benchmarks(book: Book) -> Section:
    """Return the table of tasks against models, and the same drawn."""
    tasks, columns = benchmark_tasks(book), benchmark_models(book)
    rows = [(task_label(t), _chance(book, t), *(book.score(t, m) for m in columns)) for t in tasks]
    drawn = {
        (task_label(t), model_label(m)): book.score(t, m) for t in tasks if t not in LOWER_IS_BETTER for m in columns
    }
    known = {task_label(t): _chance(book, t) for t in tasks}
    chance = {label: f.value for label, f in known.items() if isinstance(f, Figure)}
    chart = score_chart("Scores with their standard errors", drawn, chance=chance)
    blocks: list[Block] = [
        Prose(
            "Each score stands with its standard error over the items of the task. Chance is what guessing "
            "gives. An arrow ↓ means that lower is better."
        ),
        Table("Benchmarks", ("Task", "Chance", *(model_label(m) for m in columns)), tuple(rows)),
        *([chart] if chart else []),
    ]
    return Section("benchmarks", "Benchmarks", tuple(blocks))


def _chance(book: Book, task: str) -> Cell:
    for model in book.scored_models(task):
        figure = book.figure(book.score_record(task, model), "facts", "chance", unit="share")
        if figure.value is not None:
            return figure
    return "none"


def distilled_or_alone(book: Book) -> Section:
    """Return, for each sibling, what distillation changed against the same model trained alone."""
    blocks: list[Block] = []
    for name in book.siblings():
        rows = []
        for task in benchmark_tasks(book):
            ours, control = (
                book.score(task, f"siblings/{name}/base"),
                book.score(task, f"siblings/{name}/alone"),
            )
            if ours.value is not None or control.value is not None:
                rows.append((task_label(task), ours, control, *_difference(ours, control)))
        if rows:
            header = ("Task", "Distilled", "Alone", "Distilled − alone", "In standard errors")
            blocks.append(Table(f"Sibling {name}", header, tuple(rows)))
    if not blocks:
        return Section("distilled", "Distilled or alone", (Prose("Distilled against alone: not measured."),))
    text = (
        "The same shape on the same tokens, with and without the flagship as teacher, from one seed. The "
        "standard error takes the two scores as independent; both answer the same items, so it is on the "
        "careful side. A difference of less than two standard errors may well be chance."
    )
    return Section("distilled", "Distilled or alone", (Prose(text), *blocks))


def _difference(ours: Figure, control: Figure) -> tuple[Figure, Figure]:
    if not isinstance(ours.value, (int, float)) or not isinstance(control.value, (int, float)):
        return Figure(None), Figure(None)
    delta, sources = ours.value - control.value, (*ours.sources, *control.sources)
    error = None
    if ours.stderr is not None and control.stderr is not None:
        error = math.hypot(ours.stderr, control.stderr)
    unit = "difference" if ours.unit == "share" else "signed"
    z = (
        Figure(delta / error, "deviations", sources=sources, how="difference / its standard error")
        if error
        else Figure(None)
    )
    return Figure(delta, unit, error, sources, how="distilled − alone"), z


def languages(book: Book) -> Section:
    """Return knowledge, bits per byte, fertility and safety for each language."""
    blocks: list[Block] = []
    for task in (*TASKS, *SAFETY_TASKS):
        blocks += _by_language(book, task)
    blocks.append(_fertility(book))
    intro = "What one language pays for another's share of the corpus shows here first."
    return Section("languages", "Languages", (Prose(intro), *blocks))


def _by_language(book: Book, task: str) -> Iterator[Block]:
    columns = [m for m in book.scored_models(task) if book.breakdown(task, m, "lang")]
    if not columns:
        if task in ("knowledge", "bits_per_byte", *SAFETY_TASKS):
            yield Prose(f"**{task_label(task).capitalize()}, by language**: not measured.")
        return
    found = {code for m in columns for code in book.breakdown(task, m, "lang")}
    codes = [c for c in LANGUAGES if c in found] + sorted(found - set(LANGUAGES))
    rows = [(language_name(c), *(book.score(task, m, "lang", c) for m in columns)) for c in codes]
    yield Table(
        f"{task_label(task).capitalize()}, by language",
        ("Language", *(model_label(m) for m in columns)),
        tuple(rows),
    )
    if task == "bits_per_byte":
        drawn = {(language_name(c), model_label(m)): book.score(task, m, "lang", c) for c in codes for m in columns}
        chart = score_chart(
            "Bits per byte on held-out text", drawn, axis="bits per byte (lower is better)", percent=False
        )
        yield from [chart] if chart else []


def _fertility(book: Book) -> Block:
    record = book.stages.get("tokenizer")
    found = (record.facts.get("fertility") or {}) if record else {}
    if not found:
        return Prose("**Fertility of the tokenizer**: not measured.")
    rows = []
    for code in [c for c in LANGUAGES if c in found] + [c for c in found if c not in LANGUAGES]:
        figures = [
            book.figure(record, "facts", "fertility", code, k, unit="fertility")
            for k in ("characters_per_token", "bytes_per_token")
        ]
        rows.append((language_name(code), *figures))
    return Table("Fertility of the tokenizer", ("Language", "Characters per token", "Bytes per token"), tuple(rows))


def language_name(code: str) -> str:
    """Return a language's English name, or its code where herd has none."""
    return LANGUAGES[code].name if code in LANGUAGES else code
