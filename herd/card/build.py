"""Ledger records, recipe and curves in, a card out: the one place that knows the order of the sections."""

from collections.abc import Mapping, Sequence
from typing import Any

from herd.base.ledger import Record
from herd.card.book import RECIPE, Book
from herd.card.document import Card, Chart, Section
from herd.card.section_data import training_data
from herd.card.section_evidence import evidence, reproduce
from herd.card.section_goodput import goodput
from herd.card.section_long import long_context
from herd.card.section_models import intended_use, models, summary, tiles, title
from herd.card.section_safety import safety
from herd.card.section_scores import benchmarks, distilled_or_alone, languages
from herd.card.section_training import energy, training


def build(
    records: Sequence[Record],
    *,
    recipe: Mapping[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Card:
    """Build the card of a run.

    recipe  the full resolved recipe as plain data; read here: name, seed, energy (see EnergyConfig), mixture
    curves  step -> rows of its metrics file, with at least "loss" and "tokens" or "step"
    """
    book = Book(records, recipe=recipe, curves=curves)
    sections: list[Section] = [
        summary(book),
        models(book),
        intended_use(book),
        training_data(book),
        training(book),
        goodput(book),
        energy(book),
        benchmarks(book),
        distilled_or_alone(book),
        languages(book),
        long_context(book),
        safety(book),
        reproduce(book),
    ]
    card = Card(title(book), tiles(book), tuple(sections))
    cited = {source for _, figure in card.figures() for source in figure.sources}
    cited |= {s for part in sections for block in part.blocks if isinstance(block, Chart) for s in block.sources}
    return Card(card.title, card.tiles, (*sections, evidence(book, cited - {RECIPE})))
