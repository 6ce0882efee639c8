"""The benchmark and safety tables as rows of text, for a terminal."""

from collections.abc import Sequence

from herd.base.ledger import Record
from herd.card.book import Book, model_label
from herd.card.section_scores import SAFETY_TASKS, benchmark_models, benchmark_tasks, task_label


def summary(records: Sequence[Record]) -> list[list[str]]:
    """Return the header row, then one row a task: its name and each model's 'value ± standard error'.

    What has no record reads 'not measured'; a task that no model was scored on is left out.
    """
    book = Book(records, recipe={}, curves={})
    return _rows(book, [m for m in benchmark_models(book) if "+" not in m], benchmark_tasks(book))


def safety_summary(records: Sequence[Record]) -> list[list[str]]:
    """Return the same for violations and false refusals, each model with and without its guard; empty if unscored."""
    book = Book(records, recipe={}, curves={})
    models = sorted(book.scored_models(*SAFETY_TASKS), key=book.order)
    return _rows(book, models, SAFETY_TASKS) if models else []


def _rows(book: Book, models: Sequence[str], tasks: Sequence[str]) -> list[list[str]]:
    rows = [["task", *(model_label(model) for model in models)]]
    for task in tasks:
        if any(book.score_record(task, model) for model in models):
            rows.append([task_label(task), *(str(book.score(task, model)) for model in models)])
    return rows
