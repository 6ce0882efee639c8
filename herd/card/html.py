"""A card as one HTML page: everything inline, no scripts, light and dark, for screens, phones and paper."""

import html
import re
from importlib import resources
from typing import Any

from herd.base.errors import HerdError
from herd.card.document import Card, Chart, Prose, Table
from herd.card.figures import NOT_MEASURED, Figure, write
from herd.card.markdown import notes
from herd.card.plots import CHANCE, FAINT, INK, SERIES

_COLOURS = {INK: "var(--ink-2)", FAINT: "var(--line)", CHANCE: "var(--muted)"} | {
    colour: f"var(--c{i})" for i, colour in enumerate(SERIES, 1)
}
_IDS = re.compile(r'(\bid="|url\(#|href="#)([^")]+)')
# Where a figure will stand, in characters that no text has a use for.
_MARK, _MARKED = "\ue000{}\ue001", re.compile("\ue000(\\d+)\ue001")
_MISSING = "the HTML card needs the `report` extra: pip install 'herd[report]'"


def to_html(card: Card) -> str:
    """Write the card as one self-contained page. Raises HerdError without the `report` extra."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise HerdError(_MISSING) from error
    files = resources.files("herd.card")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files / "card.html").read_text(encoding="utf-8"))
    writer = _Writer(card)
    return template.render(
        card=card,
        css=(files / "card.css").read_text(encoding="utf-8"),
        figure=writer.figure,
        kind=lambda block: type(block).__name__.lower(),
        is_figure=lambda cell: isinstance(cell, Figure),
        text_columns=text_columns,
        prose=writer.prose,
        chart=writer.chart,
        notes=notes,
        safe=writer.safe,
    )


def text_columns(table: Table) -> list[bool]:
    """Tell of each column whether it holds words only, so that it reads from the left."""
    return [all(isinstance(row[i], str) for row in table.rows) for i in range(len(table.header))]


class _Writer:
    """Turns the parts of one card into markup that is already escaped."""

    def __init__(self, card: Card) -> None:
        try:
            import vl_convert
            from markdown_it import MarkdownIt
            from markupsafe import Markup
        except ImportError as error:
            raise HerdError(_MISSING) from error
        self.safe = Markup
        self._markdown = MarkdownIt("commonmark", {"html": False})
        self._draw = vl_convert.vegalite_to_svg
        self._charts = 0
        self._records: dict[str, str] = {}
        for section in card.sections:
            for block in section.blocks:
                if isinstance(block, Table) and block.anchors:
                    rows = zip(block.anchors, block.rows, strict=True)
                    self._records |= {anchor: f"{row[0]}, {row[1]}" for anchor, row in rows}

    def figure(self, figure: Figure) -> Any:
        """Return a figure as a link to its record, with what it is in the tooltip."""
        text = write(figure)
        value, _, error = text.partition(" ± ")
        shown = html.escape(value) + (f' <span class="error">± {html.escape(error)}</span>' if error else "")
        classes = "figure missing" if text == NOT_MEASURED else "figure"
        tooltip = html.escape(self._tooltip(figure), quote=True)
        if not figure.sources:
            return self.safe(f'<span class="{classes}" title="{tooltip}">{shown}</span>')
        target = html.escape(figure.sources[0], quote=True)
        return self.safe(f'<a class="{classes}" href="#{target}" title="{tooltip}">{shown}</a>')

    def _tooltip(self, figure: Figure) -> str:
        sources = [self._records.get(source, source) for source in figure.sources[:4]]
        if len(figure.sources) > 4:
            sources.append(f"and {len(figure.sources) - 4} more")
        said = figure.how
        if figure.path and isinstance(figure.value, (int, float)):
            said = f"{'.'.join(figure.path)} = {figure.value!r}" + (f" ({figure.how})" if figure.how else "")
        elif figure.path:
            said = ".".join(figure.path)
        return " · ".join(part for part in (figure.note, said, "; ".join(sources)) if part)

    def prose(self, block: Prose) -> Any:
        """Return paragraphs; figures go in after Markdown was read, so that no figure is read as markup."""
        figures: list[Figure] = []

        def keep(figure: Figure) -> str:
            figures.append(figure)
            return _MARK.format(len(figures) - 1)

        text = self._markdown.render(block.fill(keep))
        return self.safe(_MARKED.sub(lambda match: str(self.figure(figures[int(match[1])])), text))

    def chart(self, block: Chart) -> Any:
        """Return an SVG whose colours are variables of the page, and whose ids are the page's only ones."""
        self._charts += 1
        svg = self._draw(dict(block.spec), allowed_base_urls=[])
        return self.safe(themed(svg, prefix=f"chart{self._charts}-", label=block.title))


def themed(svg: str, *, prefix: str, label: str) -> str:
    """Return an SVG that takes its colours from the style sheet, scales, and keeps its ids to itself."""
    svg = svg[svg.index("<svg") :]
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    svg = _IDS.sub(lambda match: f"{match[1]}{prefix}{match[2]}", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height|class|style)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{html.escape(label, quote=True)}">{rest}'
