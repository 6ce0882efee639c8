"""What `herd raise` ends with: the benchmark table, a short conversation, and where the cards are."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from herd.base.ledger import Ledger
    from herd.stages.step import Context


def print_report(context: "Context") -> None:
    """Print the table, three exchanges with the flagship, and paths."""
    console = Console()
    print_table(context, console)
    run = context.run.path
    if (run / "flagship/instruct/config.json").exists() and (run / "corpus/bench").is_dir():
        _sample(context, console)
    for name in ("MODEL_CARD.md", "card.html"):
        console.print(f"{name}: {run / name}", highlight=False, soft_wrap=True)
    console.print(f"talk to it: herd chat {run}", highlight=False, soft_wrap=True)


def print_table(context: "Context", console: Console) -> None:
    """Print every score with its standard error, in as many tables as the terminal's width asks for."""
    from herd.card import safety_summary, summary

    records = [r for r in context.run.ledger.records if r.kind != "start"]
    for title, rows in (("Benchmarks", summary(records)), ("Safety", safety_summary(records))):
        at_once = max(2, (console.width - 20) // 12)
        columns = len(rows[0]) if rows else 0
        for start in range(1, columns, at_once):
            chosen = [0, *range(start, min(start + at_once, columns))]
            _print_columns([[row[i] for i in chosen] for row in rows], title, console)


def print_scores(ledger: "Ledger") -> None:
    """Print the scores of one model, a line a task."""
    drafted = any("acceptance_length" in record.cost for record in ledger.scores())
    columns = ["task", "score", "± standard error", "items", *["tokens a drafted round"] * drafted]
    table = Table(*columns, box=None, pad_edge=False)
    for record in ledger.scores():
        facts = record.facts
        unit, scale = ("", 1) if facts["metric"] == "bits per byte" else (" %", 100)
        digits = 3 if scale == 1 else 1
        value, error = (f"{facts[key] * scale:.{digits}f}{unit}" for key in ("value", "stderr"))
        length = [str(record.cost.get("acceptance_length", "–"))] * drafted
        table.add_row(str(facts["task"]), value, error, str(facts["n"]), *length)
    Console().print(table)


def _print_columns(rows: list[list[str]], title: str, console: Console) -> None:
    header, *body = rows
    table = Table(title=f"{title} (± standard error)", title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=number > 0 and len(name) < 12)
    for row in body:
        table.add_row(
            *("–" if cell == "not measured" else cell.replace(" % ± ", "±").replace(" ± ", "±") for cell in row)
        )
    console.print(table)
    console.print()


def _sample(context: "Context", console: Console) -> None:
    from herd.base.files import read_jsonl
    from herd.base.messages import Dialog, parse_messages
    from herd.eval.subject import answers
    from herd.stages.models import open_engine

    engine = open_engine(context.run / "flagship/instruct", context.machine, slots=4)
    dialogs = []
    for task in ("knowledge", "arithmetic", "language"):
        path = context.run / f"corpus/bench/{task}.jsonl"
        if path.exists():
            dialogs.append(Dialog(parse_messages(next(iter(read_jsonl(path)))["messages"])))
    console.print("A short conversation with flagship/instruct:", highlight=False)
    for dialog, said in zip(dialogs, answers(engine, context.codec, dialogs, max_tokens=64), strict=True):
        console.print(f"  you   {dialog.messages[-1].content}", highlight=False, markup=False)
        console.print(f"  herd  {said.content}", highlight=False, markup=False)
    console.print()
