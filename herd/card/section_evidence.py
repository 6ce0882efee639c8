"""The end of the card: how to make the run again, and the ledger records that its figures came from."""

import re
from collections.abc import Iterable, Mapping

from herd.card.book import RECIPE, Book
from herd.card.document import Code, Prose, Section, Table
from herd.card.figures import Figure

HASH = 12
FILES = 6
_ID = re.compile(r"[A-Za-z0-9_-]+")


def reproduce(book: Book) -> Section:
    """Return the command, and what it depends on: recipe, version, seed."""
    first = book.records[0] if book.records else None
    started = Figure(None, "text")
    if first and first.time:
        started = Figure(first.time, "text", sources=(first.id,), how="time of the record")
    rows = (
        ("Recipe", book.setting("name")),
        (
            "Recipe hash (SHA-256)",
            Figure(book.recipe_hash, "text", sources=(RECIPE,), how="hash of the resolved recipe"),
        ),
        ("Seed", book.setting("seed")),
        ("herd version", _version(book)),
        ("Earliest record", started),
    )
    text = (
        "The complete recipe, every default filled in, is `recipe.yaml` in the run folder; with the same "
        "recipe, version and kind of machine the facts of the ledger come out the same. Times and energy "
        "do not."
    )
    table = Table("What the run depends on", ("What", "Value"), rows)
    return Section("reproduce", "How to reproduce", (Prose(text), Code("herd raise recipe.yaml"), table))


def _version(book: Book) -> Figure:
    for record in reversed(book.records):
        for part in ("facts", "cost"):
            figure = book.figure(record, part, "herd_version", unit="text")
            if figure.value is not None:
                return figure
    return book.setting("herd_version")


def evidence(book: Book, cited: Iterable[str]) -> Section:
    """Return the cited records, and the newest record of every step, in ledger order."""
    wanted = {*cited, *(r.id for r in book.stages.values()), *(r.id for r in book.score_records.values())}
    records = [r for r in book.records if r.id in wanted]
    rows = [(RECIPE, "recipe", "", book.recipe_hash[:HASH], "", "recipe.yaml")]
    rows += [
        (r.id, f"{r.kind} {r.step}", r.time, r.fingerprint[:HASH], _files(r.reads), _files(r.writes)) for r in records
    ]
    text = (
        "One row a ledger record (`ledger.jsonl` in the run folder). Fingerprint: configuration, code "
        "version and inputs "
        f"in one hash. All hashes are SHA-256, their first {HASH} digits."
    )
    header = ("Record", "Step", "Time", "Fingerprint", "Read", "Wrote")
    anchors = (RECIPE, *(anchor(r.id) for r in records))
    return Section("evidence", "Evidence", (Prose(text), Table("Ledger records", header, tuple(rows), anchors)))


def anchor(record_id: str) -> str:
    """Return a record id as a link target; ids that herd didn't write lose what doesn't belong in one."""
    return "".join(_ID.findall(record_id)) or "unnamed"


def _files(files: Mapping[str, str]) -> str:
    shown = [f"{path} {digest[:HASH]}" for path, digest in list(files.items())[:FILES]]
    if len(files) > FILES:
        shown.append(f"and {len(files) - FILES} more")
    return "; ".join(shown)
