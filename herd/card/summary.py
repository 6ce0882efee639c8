"""The benchmark table as rows of text, for a terminal."""

from collections.abc import Sequence

from herd.base.ledger import Record
from herd.card.book import Book, model_label
from herd.card.section_scores import SAFETY_TASKS, benchmark_models, benchmark_tasks, task_label


def summary(records: Sequence[Record]) -> list[list[str]]:
    """Return the header row, then one row a task: its name and each model's 'value ± standard error'.

    Models with a guard have columns only where they were scored; what has no record reads 'not measured'.
    """
    book = Book(records, recipe={}, curves={})
    names = {*benchmark_models(book), *book.scored_models(*SAFETY_TASKS)}
    columns = sorted(names, key=book.order)
    rows = [["task", *(model_label(model) for model in columns)]]
    for task in (*benchmark_tasks(book), *SAFETY_TASKS):
        rows.append([task_label(task), *(str(book.score(task, model)) for model in columns)])
    return rows
