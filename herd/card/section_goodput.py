"""Goodput on the card: where the device-hours went, which attempts came to nothing, and what happened on the way."""

from collections.abc import Sequence

from herd.base.goodput import KINDS, account, attempts
from herd.base.ledger import Record
from herd.card.book import Book
from herd.card.document import Block, Cell, Prose, Section, Table, escape
from herd.card.figures import Figure
from herd.card.section_training import groups

_TEXT = (
    "Of all device-hours (devices times the time that a step held them, every attempt counted): **useful** made "
    "what stands above; **lost to restart** had to be done again, because an attempt ended after its last checkpoint "
    "or went back to an earlier one; **checkpoint** waited for training state or a model folder to be written; "
    "**evaluation** scored held-out text while training; **data wait** waited for batches; **start-up** loaded, built "
    "and warmed up; **idle** hung, or waited for a restart or for the one process that a step needs. A killed attempt "
    "counts up to its last heartbeat, at most about a second before its end. With several devices each part is their "
    "mean, so that nothing counts twice."
)


def goodput(book: Book) -> Section:
    """Return the split of device-hours for each model and the whole, failed attempts, and events."""
    found = {label: records for label, records in groups(book).items() if records}
    rows = [_row(label, records) for label, records in found.items()]
    if found:
        rows.append(_row("Total", [record for records in found.values() for record in records]))
    header = ("Models", "Device-hours", *(name.capitalize() for name in KINDS.values()))
    blocks: list[Block] = [Prose(_TEXT), Table("Goodput", header, tuple(rows))]
    if book.ends:
        header = ("Attempt", "Step of training", "Device-hours", "Why it ended")
        blocks.append(Table("Attempts without a result", header, tuple(_ended(book, end) for end in book.ends)))
    if book.events:
        header = ("In", "Step of training", "What", "What was done")
        blocks.append(Table("Events", header, tuple(_event(book, event) for event in book.events)))
    return Section("goodput", "Goodput", tuple(blocks))


def _row(label: str, records: Sequence[Record]) -> tuple[Cell, ...]:
    split = dict.fromkeys(KINDS, 0.0)
    for _, tries in attempts(records):
        for kind, seconds in account(tries).items():
            split[kind] += seconds
    whole, sources = sum(split.values()), tuple(record.id for record in records)
    if not whole:
        return (label, *(Figure(None) for _ in range(len(KINDS) + 1)))
    hours = Figure(whole / 3600, "hours", sources=sources, how="sum over attempts of devices × time")
    return (
        label,
        hours,
        *(Figure(s / whole, "share", sources=sources, how=f"{KINDS[k]} / device-hours") for k, s in split.items()),
    )


def _ended(book: Book, record: Record) -> tuple[Cell, ...]:
    return (
        record.step,
        book.figure(record, "facts", "reached", unit="count"),
        book.figure(record, "cost", "device_hours", unit="hours"),
        escape(str(record.facts.get("why", ""))),
    )


def _event(book: Book, record: Record) -> tuple[Cell, ...]:
    what = ": ".join(str(record.facts[key]) for key in ("event", "why") if record.facts.get(key))
    return (
        record.step,
        book.figure(record, "facts", "at", unit="count"),
        escape(what),
        escape(str(record.facts.get("did", ""))),
    )
