"""A card as Markdown: each figure is followed by the id of its record, a link to the evidence table."""

from collections.abc import Iterator, Mapping, Sequence

from herd.card.document import Block, Card, Cell, Chart, Code, Prose, Quotes, Section, Table, escape
from herd.card.figures import NOT_MEASURED, Figure, write

CITED = 3


def to_markdown(card: Card) -> str:
    """Write the card as Markdown (CommonMark with tables)."""
    lines = [f"# {escape(card.title)}", ""]
    lines += [f"- **{label}**: {cite(figure)}" for label, figure in card.tiles] + [""]
    for section in card.sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    # Link definitions make a bare [r0007] in the text a link, and are themselves not shown.
    lines += [f"[{target}]: #{target}" for target in _anchors(card.sections)]
    return "\n".join(lines).rstrip() + "\n"


def cite(figure: Figure) -> str:
    """Write a figure with the ids of its records, such as '81.3 % ± 3.9 [r0012]'."""
    text = escape(write(figure))
    shown = [f"[{source}]" for source in figure.sources[:CITED]]
    if len(figure.sources) > CITED:
        shown.append(f"+{len(figure.sources) - CITED}")
    return " ".join([text, *shown])


def notes(table: Table) -> list[tuple[str, list[str]]]:
    """Return each reason why something wasn't measured, with what it holds for: 'row (under column)'."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in table.rows:
        for head, cell in zip(table.header, row, strict=True):
            if isinstance(cell, Figure) and cell.note and write(cell) == NOT_MEASURED:
                found.setdefault(cell.note, {}).setdefault(head, []).append(str(row[0]))
    return [(note, list(_shared(columns, len(table.rows)))) for note, columns in found.items()]


def _shared(columns: Mapping[str, list[str]], height: int) -> Iterator[str]:
    """Yield 'rows (under columns)', with columns that miss the same rows said together."""
    same: dict[tuple[str, ...], list[str]] = {}
    for head, rows in columns.items():
        same.setdefault(tuple(rows), []).append(head)
    for rows, heads in same.items():
        which = "every row" if len(rows) == height and height > 1 else "; ".join(rows)
        yield f"{which} (under {'; '.join(heads)})"


def _block(block: Block) -> Iterator[str]:
    match block:
        case Prose():
            yield block.fill(cite)
        case Table():
            yield from _table(block)
        case Chart():
            yield f"*{escape(block.title)}*{': ' + block.plain if block.plain else ''} (drawn in `card.html`)"
        case Quotes():
            yield f"*{block.title}*"
            yield ""
            yield from (f"- {escape(what)}: “{escape(text)}”" for what, text in block.items)
        case Code():
            fence = "```"
            while fence in block.text:
                fence += "`"
            yield from (fence + "sh", block.text, fence)


def _table(table: Table) -> Iterator[str]:
    yield f"**{escape(table.title)}**"
    yield ""
    yield "| " + " | ".join(escape(head) for head in table.header) + " |"
    yield "| " + " | ".join("---" if i == 0 else "---:" for i in range(len(table.header))) + " |"
    for i, row in enumerate(table.rows):
        mark = f'<a id="{table.anchors[i]}"></a>' if table.anchors else ""
        yield "| " + mark + " | ".join(_cell(cell) for cell in row) + " |"
    for reason, cells in notes(table):
        yield ""
        yield f"Not measured, {escape(reason)}: {escape('; '.join(cells))}."


def _cell(cell: Cell) -> str:
    return cite(cell) if isinstance(cell, Figure) else escape(cell)


def _anchors(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Table):
                yield from block.anchors
