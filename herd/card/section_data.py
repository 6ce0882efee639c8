"""Training data on the card: sources, languages, what curation dropped, freshness and mixture."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from herd.base.languages import LANGUAGES
from herd.base.ledger import Record
from herd.card.book import RECIPE, Book
from herd.card.document import Block, Cell, Prose, Quotes, Section, Table
from herd.card.figures import Figure
from herd.card.section_models import cutoff, documents

EXAMPLES_PER_RULE = 3
EXAMPLE_CHARACTERS = 160
# Examples are shown to the world, so what looks like a person's address or number is blotted out once more.
_PRIVATE = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?:\+?\d[\d ()./-]{7,}\d)")


def training_data(book: Book) -> Section:
    """Return sources, languages, curation and mixture."""
    curate = book.stages.get("curate")
    if curate is None or "skipped" in curate.facts:
        figure = book.figure(curate, "facts", "documents")
        return Section("data", "Training data", (Prose("Curation: {documents}.", {"documents": figure}),))
    blocks: list[Block] = [
        _overview(book, curate),
        _sources(book, curate),
        _languages(book, curate),
        *_kinds(book, curate),
        *_rules(book, curate),
        *_mixture(book),
    ]
    return Section("data", "Training data", tuple(blocks))


def _overview(book: Book, curate: Record) -> Prose:
    text = (
        "**Overview.** {documents} documents, {bytes} of text, were kept after curation.\n\n"
        "**Freshness.** Documents dated after {cutoff} were dropped. The newest document kept is dated "
        "{newest}: {proof}. {undated} documents ({share}) carry no date and were kept, so the cut-off is "
        "not proven for these."
    )
    undated = book.first(curate, ("facts", "undated"), ("facts", "undated", "documents"), unit="count")
    whole = documents(book)
    share = _share(undated, whole, how="undated / documents")
    figures = {
        "documents": whole,
        "bytes": _bytes(book, curate),
        "cutoff": cutoff(book),
        "newest": book.figure(curate, "facts", "newest_date", unit="text"),
        "undated": undated,
        "share": share,
    }
    return Prose(text.replace("{proof}", _proof(figures["newest"], figures["cutoff"])), figures)


def _bytes(book: Book, curate: Record) -> Figure:
    return book.first(curate, ("facts", "bytes"), ("facts", "kept", "bytes"), unit="bytes")


def _share(part: Figure, whole: Figure, *, how: str) -> Figure:
    if isinstance(part.value, (int, float)) and isinstance(whole.value, (int, float)) and whole.value:
        return Figure(part.value / whole.value, "share", sources=whole.sources, how=how)
    return Figure(None, "share")


def _proof(newest: Figure, cutoff: Figure) -> str:
    if newest.value is None or cutoff.value is None:
        return "whether the cut-off holds was not measured"
    last = str(cutoff.value)
    # A bare year or month counts to its last day, so that ISO dates compare as text.
    last = {4: f"{last}-12-31", 7: f"{last}-31"}.get(len(last), last)
    return "the cut-off holds" if str(newest.value) <= last else "**the cut-off does not hold**"


def _sources(book: Book, curate: Record) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name in curate.facts.get("sources") or {}:
        rows.append(
            (
                str(name),
                book.figure(curate, "facts", "sources", name, "documents", unit="count"),
                book.figure(curate, "facts", "sources", name, "license", unit="text", note="no licence stated"),
            )
        )
    return Table("Sources", ("Source", "Documents", "Licence"), tuple(rows))


def _languages(book: Book, curate: Record) -> Table:
    found: Mapping[str, Any] = curate.facts.get("languages") or {}
    rows: list[tuple[Cell, ...]] = []
    for code in [c for c in LANGUAGES if c in found] + [c for c in found if c not in LANGUAGES]:
        at = ("facts", "languages", code)
        size = book.first(curate, (*at, "bytes"), (*at, "kept", "bytes"), unit="bytes")
        whole = _bytes(book, curate)
        share = _share(size, whole, how="bytes / all bytes")
        rows.append(
            (
                LANGUAGES[code].name if code in LANGUAGES else code,
                book.first(curate, (*at, "documents"), (*at, "kept", "documents"), unit="count"),
                size,
                share,
                book.first(curate, ("facts", "heldout", code), (*at, "heldout", "bytes"), unit="bytes"),
            )
        )
    return Table("Languages", ("Language", "Documents", "Text", "Share", "Held out"), tuple(rows))


def _kinds(book: Book, curate: Record) -> Iterator[Block]:
    kinds: Any = curate.facts.get("kinds")
    if isinstance(kinds, Mapping) and len(kinds) > 1:
        rows = []
        for kind in kinds:
            at = ("facts", "kinds", kind)
            count = book.figure(curate, *at, "documents", unit="count")
            rows.append((str(kind), count, book.figure(curate, *at, "bytes", unit="bytes")))
        yield Table("Kinds of text", ("Kind", "Documents", "Text"), tuple(rows))


def _rules(book: Book, curate: Record) -> Iterator[Block]:
    rules: Mapping[str, Any] = curate.facts.get("rules") or {}
    changed = any(isinstance(rule.get("changed"), (int, float)) for rule in rules.values())
    rows = []
    for name in rules:
        row: tuple[Cell, ...] = (
            rule_label(name),
            book.figure(curate, "facts", "rules", name, "dropped", unit="count"),
            book.figure(curate, "facts", "rules", name, "bytes", unit="bytes"),
        )
        if changed:
            row += (book.figure(curate, "facts", "rules", name, "changed", unit="count", note=""),)
        rows.append(row)
    if not rows:
        yield Prose("What each curation rule dropped: not measured.")
        return
    header = ("Rule", "Documents dropped", "Text dropped", *(("Documents changed",) if changed else ()))
    yield Table("What curation dropped, rule by rule", header, tuple(rows))
    quotes = [quote for name, rule in rules.items() for quote in _examples(name, rule.get("examples") or ())]
    if quotes:
        yield Quotes("Examples of what was dropped", tuple(quotes))


def _examples(rule: str, examples: Any) -> Iterator[tuple[str, str]]:
    for example in list(examples)[:EXAMPLES_PER_RULE]:
        text, why = str(example), ""
        if isinstance(example, Mapping):
            text, why = str(example.get("text", "")), str(example.get("why", ""))
        text = _PRIVATE.sub("▒▒▒", " ".join(text.split()))
        if len(text) > EXAMPLE_CHARACTERS:
            text = text[:EXAMPLE_CHARACTERS].rstrip() + "…"
        yield (f"{rule_label(rule)}: {why}" if why else rule_label(rule)), text


def rule_label(name: str) -> str:
    """Return a rule's name as words."""
    return name.replace("_", " ")


def _mixture(book: Book) -> Iterator[Block]:
    """Yield the sampling weights, from the pretraining record's facts or else from the recipe."""
    pretrain = book.stages.get("pretrain")
    facts: Any = pretrain.facts.get("mixture") if pretrain else None
    stated: Any = book.recipe.get("mixture")
    found = facts if isinstance(facts, Mapping) else stated if isinstance(stated, Mapping) else {}
    weights = {str(k): v for k, v in found.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if not weights or not sum(weights.values()):
        yield Prose("**Mixture.** No sampling weights were stated: text is drawn in proportion to its size.")
        return
    rows: list[tuple[Cell, ...]] = []
    whole = sum(weights.values())
    source = pretrain.id if pretrain and found is facts else RECIPE
    for name, weight in weights.items():
        rows.append(
            (
                name,
                Figure(weight / whole, "share", sources=(source,), how=f"mixture weight {weight:g} / {whole:g}"),
            )
        )
    yield Table("Mixture of the pretraining stage", ("Part", "Share of tokens"), tuple(rows))
