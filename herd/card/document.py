"""A card before it is Markdown or HTML: sections of prose, tables, charts, quotes and code."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from herd.card.figures import Figure

Cell = Figure | str
_PRIVATE_USE = re.compile("[\ue000-\uf8ff]")  # the HTML writer marks places with these
_SLOT = re.compile(r"(?<!\\){(\w+)}")
_MARKUP = re.compile(r"[\\`*\[\]<>|&~{}]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True)
class Prose:
    """Markdown paragraphs; `{name}` stands for a figure. Words of others go in through `escape`."""

    text: str
    figures: Mapping[str, Figure] = field(default_factory=dict)

    def fill(self, write: Callable[[Figure], str]) -> str:
        """Return the text with every `{name}` replaced, in one pass, by what `write` makes of its figure."""
        return _SLOT.sub(lambda m: write(self.figures[m[1]]) if m[1] in self.figures else m[0], self.text)


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; a row starts with its name. `anchors` are link targets, one a row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    anchors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A drawing: a Vega-Lite specification for HTML, a few words in its place for Markdown.

    `legend` names the series in the order of their colours; a page can wrap it, which an SVG cannot.
    """

    title: str
    spec: Mapping[str, Any]
    caption: str
    sources: tuple[str, ...] = ()
    plain: str = ""
    legend: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quotes:
    """Text that others wrote, shown as it is and never read as markup: (what it is, the text)."""

    title: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Commands or configuration, word for word."""

    text: str


Block = Prose | Table | Chart | Quotes | Code


@dataclass(frozen=True)
class Section:
    """One heading of the card and what stands under it."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Card:
    """A model card whose every figure knows the ledger record it came from."""

    title: str
    tiles: tuple[tuple[str, Figure], ...]
    sections: tuple[Section, ...]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield (where it stands, figure) for every figure of the card."""
        for label, figure in self.tiles:
            yield f"summary / {label}", figure
        for section in self.sections:
            for block in section.blocks:
                yield from _figures(section.title, block)


def _figures(where: str, block: Block) -> Iterator[tuple[str, Figure]]:
    if isinstance(block, Prose):
        for name, figure in block.figures.items():
            yield f"{where} / {name}", figure
    elif isinstance(block, Table):
        for row in block.rows:
            for head, cell in zip(block.header, row, strict=True):
                if isinstance(cell, Figure):
                    yield f"{where} / {block.title} / {row[0]} / {head}", cell


def escape(text: str) -> str:
    """Return text of unknown origin as Markdown that shows it word for word, on one line."""
    plain = _PRIVATE_USE.sub("", " ".join(text.split()))
    return _MARKUP.sub(lambda match: "\\" + match[0], plain)
