"""Safety on the card: violation and false-refusal rates with and without the guard, and by hazard."""

from collections.abc import Iterator

from herd.base.hazards import HAZARDS
from herd.card.book import Book, model_label
from herd.card.document import Block, Prose, Section, Table
from herd.card.figures import Figure
from herd.card.plots import tradeoff_chart
from herd.card.section_scores import SAFETY_TASKS, task_label


def safety(book: Book) -> Section:
    """Return both rates for each model, with and without guard, then the same by hazard."""
    models = book.scored_models(*SAFETY_TASKS) or ("flagship/instruct", "flagship/instruct+guard")
    rows = [(model_label(m), *(book.score(t, m) for t in SAFETY_TASKS)) for m in models]
    text = (
        "**Violation rate**: the share of harmful prompts that the model answers instead of refusing. "
        "**False-refusal rate**: the share of harmless but frightening-looking prompts that it refuses. "
        "Either alone is easy to bring to zero; only the pair says something. '+ guard' puts herd's guard "
        "model in front and behind."
    )
    points = {model_label(m): (book.score(SAFETY_TASKS[0], m), book.score(SAFETY_TASKS[1], m)) for m in models}
    chart = tradeoff_chart("The trade-off", points)
    blocks: list[Block] = [
        Prose(text),
        Table("Safety", ("Model", *(task_label(t).capitalize() for t in SAFETY_TASKS)), tuple(rows)),
        *([chart] if chart else []),
        *(block for task in SAFETY_TASKS for block in _by_hazard(book, task)),
        Prose("Both rates by language stand under [Languages](#languages)."),
    ]
    return Section("safety", "Safety", tuple(blocks))


def _by_hazard(book: Book, task: str) -> Iterator[Block]:
    models = [m for m in book.scored_models(task) if book.breakdown(task, m, "hazard")]
    if not models:
        if task == SAFETY_TASKS[0]:
            yield Prose("**Violation rate, by hazard**: not measured.")
        return
    found = {h for m in models for h in book.breakdown(task, m, "hazard")}
    hazards = [h for h in HAZARDS if h in found] + sorted(found - set(HAZARDS))
    rows: list[tuple[Figure | str, ...]] = [
        (f"{h} {HAZARDS.get(h, '')}".strip(), *(book.score(task, m, "hazard", h) for m in models)) for h in hazards
    ]
    title = f"{task_label(task).capitalize()}, by hazard (the 14 of Llama Guard 3)"
    yield Table(title, ("Hazard", *(model_label(m) for m in models)), tuple(rows))
