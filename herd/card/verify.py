"""Check a card against the ledger: every figure must be found again, at its place, from its records."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from herd.base.ledger import Record
from herd.card.book import RECIPE, Book, look_up
from herd.card.build import build
from herd.card.document import Card
from herd.card.figures import Figure
from herd.card.markdown import to_markdown


def verify(
    markdown: str,
    records: Sequence[Record],
    *,
    recipe: Mapping[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[str]:
    """Return what in a Markdown card the ledger doesn't bear out, one line each; empty when all holds."""
    book = Book(records, recipe=recipe, curves=curves)
    card = build(records, recipe=recipe, curves=curves)
    found = check_figures(card, book)
    mine, theirs = _rows(markdown), _rows(to_markdown(card))
    for tag, a, b, c, d in difflib.SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        if tag != "equal":
            found += _differences(mine[a:b], theirs[c:d])
    return found


def check_figures(card: Card, book: Book) -> list[str]:
    """Return the figures that don't stand in the record they name, or name neither record nor derivation."""
    found = []
    for where, figure in card.figures():
        unknown = [source for source in figure.sources if source != RECIPE and source not in book.by_id]
        if unknown:
            found.append(f"{where}: the ledger has no record {', '.join(unknown)}")
        elif figure.value is not None and not _stands(figure, book):
            found.append(f"{where}: {figure} does not stand in {' '.join(figure.sources) or 'any record'}")
    return found


def _stands(figure: Figure, book: Book) -> bool:
    if not figure.path:
        return bool(figure.how)
    if figure.sources == (RECIPE,):
        found = book.setting(*figure.path).value
        # Defaults of a section that the recipe left out stand in no recipe, and aren't claimed to.
        return found is None or found == figure.value
    record = book.by_id[figure.sources[0]]
    error = look_up(record, (*figure.path[:-1], "stderr"))
    return look_up(record, figure.path) == figure.value and figure.stderr in (None, error)


def _rows(markdown: str) -> list[tuple[str, str]]:
    """Return (section and table it stands in, line) for every line that isn't blank."""
    rows, section, table = [], "", ""
    for line in markdown.splitlines():
        if line.startswith("## "):
            section, table = line[3:], ""
        elif line.startswith("**") and line.endswith("**"):
            table = line.strip("*")
        if line.strip():
            rows.append((" / ".join(part for part in (section, table) if part), line))
    return rows


def _differences(mine: Sequence[tuple[str, str]], theirs: Sequence[tuple[str, str]]) -> list[str]:
    found = []
    for i in range(max(len(mine), len(theirs))):
        where = (mine[i] if i < len(mine) else theirs[i])[0]
        said = mine[i][1] if i < len(mine) else "(nothing)"
        true = theirs[i][1] if i < len(theirs) else "(nothing)"
        found.append(f"{where}: the card says {said!r}, the ledger gives {true!r}")
    return found
