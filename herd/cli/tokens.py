"""`herd tokens`: a dialog drawn token by token: what each token is, which are control, which carry loss."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from herd.tokenizer.codec import DialogCodec
    from herd.tokenizer.drawing import Block, Cell, Drawing
    from herd.tokenizer.layout import Layout

DEFAULT_RUN = Path("runs/meadow")
LONGEST = 300  # tokens of a message that are shown on a terminal in full; beyond, its first and last half
_MARKS = {"space": "·", "newline": "↵", "tab": "⇥"}
# Ink and ground together, so that they are read on a light and on a dark terminal; neighbours take turns.
_CONTROL, _HEADER = "bold #ffffff on #5f3691", "#ffffff on #7a55a8"
_LOSS = ("#ffffff on #1b5a2f underline", "#ffffff on #2f8449 underline")
_PLAIN = ("#ffffff on #3d444b", "#ffffff on #5f6872")


def tokens(
    file: Annotated[Path, typer.Argument(help="A dialog as JSON, or a .jsonl of dialogs; - is stdin.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A run, a model folder, or a rank file; runs/meadow unless given.", show_default=False),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="official (Meta's code), template (the published chat template), compact, or a FILE such as a model's "
            "dialog.json; the model's own unless given, official for a bare tokenizer.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write one HTML page here instead.", show_default=False)] = None,
    train: Annotated[bool, typer.Option("--train/--prompt", help="As a training example, or as a prompt.")] = True,
    ids: Annotated[bool, typer.Option("--ids", help="Ids under the tokens.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Long messages in full.")] = False,
    row: Annotated[int, typer.Option(min=0, help="Which dialog of several, counted from 0.")] = 0,
) -> None:
    """Draw a dialog token by token: control tokens, ids, what carries loss. Piped, it prints one line a token."""
    from herd.base.errors import DataError
    from herd.base.messages import parse_dialog
    from herd.tokenizer.drawing import draw

    where = "standard input" if file == Path("-") else str(file)
    tree = _pick(_text(file), row, where)
    codec, setting = open_codec(tokenizer, layout)
    try:
        drawing = draw(codec, parse_dialog(tree), prompt=not train)
    except RecursionError:
        raise DataError(f"{where}: nested too deep for a dialog") from None
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    _show(drawing, html, where, setting, ids=ids, longest=sys.maxsize if everything else LONGEST)
    for warning in drawing.warnings:
        print(f"herd: warning: {warning}", file=sys.stderr)


def open_codec(path: Path | None, layout: str | None) -> "tuple[DialogCodec, str]":
    """Return the codec of a run, a model folder or a bare tokenizer, and a line that names both its parts.

    Raises HerdError.
    """
    from herd.base.errors import DataError
    from herd.tokenizer.codec import DialogCodec
    from herd.tokenizer.hf_files import TOKENIZER_FILE, load_tokenizer

    if path is None and not DEFAULT_RUN.is_dir():
        raise DataError(f"no {DEFAULT_RUN} here to take a tokenizer from: name a run, model or rank file: --tokenizer")
    path = path or DEFAULT_RUN
    chosen = _layout(layout) if layout is not None else None
    if not path.exists():
        raise DataError(f"{path}: no such file or folder to take a tokenizer from")
    bare = path.is_dir() and not (path / "config.json").is_file() and not (path / "params.json").is_file()
    if (path / "recipe.yaml").is_file():
        codec = _run_codec(path)
    elif path.is_file() or (bare and any((path / name).is_file() for name in ("tokenizer.model", TOKENIZER_FILE))):
        codec, layout = DialogCodec(load_tokenizer(path)), layout or "official"
    else:
        from herd.stages.models import open_folder

        codec = open_folder(path).codec
    codec = codec if chosen is None else DialogCodec(codec.tokenizer, chosen)
    return codec, f"tokenizer {path} · layout {layout or 'its own'}"


def _run_codec(path: Path) -> "DialogCodec":
    from herd.base.config import validate
    from herd.base.progress import Silent
    from herd.base.run import RunFolder
    from herd.stages.recipe import Recipe
    from herd.stages.step import Context

    run = RunFolder(path)
    return Context(validate(Recipe, run.read_recipe(), where=str(run.recipe_path)), run, Silent()).codec


def _layout(name: str) -> "Layout":
    from herd.base.errors import ConfigError
    from herd.tokenizer.layout import PUBLISHED_TEMPLATE, Layout, layout_from_json

    named = {"official": Layout(), "template": PUBLISHED_TEMPLATE, "compact": Layout(tool_prompt="compact")}
    if name in named:
        return named[name]
    if not Path(name).is_file():
        raise ConfigError(f"--layout {name!r} is neither {', '.join(named)} nor a file such as a model's dialog.json")
    return layout_from_json(_json(_text(Path(name)), name), where=name)


def _text(file: Path) -> str:
    from herd.base.errors import DataError

    try:
        data = sys.stdin.buffer.read() if file == Path("-") else file.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start})") from None


def _json(text: str, where: str, *, line: int = 1) -> Any:
    """Return the JSON value of a text that begins on a line of a file."""
    import json

    from herd.base.errors import DataError

    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}, line {line + error.lineno - 1}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # a number beyond Python's longest, brackets beyond its stack
        raise DataError(f"{where}, line {line}: not readable as JSON ({error})") from None


def _pick(text: str, row: int, where: str) -> Any:
    """Return one dialog of a JSON value, a JSON list of dialogs, or JSON lines."""
    from herd.base.errors import DataError

    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    several = where.endswith(".jsonl") or (len(lines) > 1 and all(line.startswith("{") for _, line in lines))
    dialogs: list[Any] = lines
    if not several:
        tree = _json(text, where)
        listed = isinstance(tree, list) and bool(tree) and isinstance(tree[0], Mapping) and "messages" in tree[0]
        dialogs = tree if listed else [tree]
    if row >= len(dialogs):
        raise DataError(f"{where}: no dialog {row}; it has {len(dialogs)}, and --row counts from 0")
    if not several:
        return dialogs[row]
    number, line = lines[row]
    return _json(line, where, line=number)


def _show(drawing: "Drawing", html: Path | None, where: str, setting: str, *, ids: bool, longest: int) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, soft_wrap=True)
    figures = [f"{value} {name}" for name, value in drawing.figures.items()]
    if html is not None:
        _write(drawing, html, where, setting)
        print(" · ".join(figures))
        print(f"written      {html}")
    elif console.is_terminal and not console.no_color:
        for number, block in enumerate(drawing.blocks):
            _print_block(console, number, block, ids=ids, longest=longest)
        styles = {"with loss": _LOSS[0], "control": _CONTROL}  # the figures are the key to the colours too
        named = [Text(text, styles.get(text.partition(" ")[2], "")) for text in figures]
        console.print(Text("\n").append_text(Text(" · ").join(named)))
    else:
        _print_lines(console, drawing.cells)
        print(f"# {' · '.join(figures)}")


def _write(drawing: "Drawing", html: Path, where: str, setting: str) -> None:
    from herd.base.errors import DataError
    from herd.base.files import write_atomic
    from herd.tokenizer.drawing import to_html

    try:
        write_atomic(html, to_html(drawing, title=Path(where).name, setting=setting))
    except OSError as error:
        raise DataError(f"{html}: can't be written ({error.strerror})") from None


def _print_lines(console: "Console", cells: "Iterable[Cell]") -> None:
    """Print a line a token: index, id, C for control, L or the weight for loss, and the token as a literal."""
    for cell in cells:
        loss = "-" if not cell.weight else "L" if cell.weight == 1 else f"L*{cell.weight:g}"
        shown = cell.data.decode() if cell.special else cell.literal
        print(f"{cell.index:>5} {cell.id:>7} {'C' if cell.control else '-'} {loss:<5} {shown}", file=console.file)


def _print_block(console: "Console", number: int, block: "Block", *, ids: bool, longest: int) -> None:
    """Print a message: a title, then its tokens in lines as wide as the terminal."""
    from rich.text import Text

    from herd.tokenizer.drawing import joined

    if block.role:
        console.print(Text.assemble(f"\n{number} ", (block.role, "bold"), (f"  {block.note}", "dim")))
    first, count = block.cells[0].index, len(block.cells)
    hidden = range(first + longest // 2, first + count - longest // 2) if count > longest else range(0)
    lines = _Lines(console)
    for cluster in block.clusters:
        for cell in cluster:
            if cell.index not in hidden:
                lines.add(*_cell(cell, ids=ids))
                if b"\n" in cell.data:
                    lines.flush()
            elif cell.index == hidden.start:
                lines.flush()
                console.print(f"… {len(hidden)} tokens more; --all shows them", style="dim")
        if len(cluster) > 1 and cluster[-1].index not in hidden:
            lines.add(Text(f"={joined(cluster).strip()} ", "dim"), Text())
    lines.flush()


class _Lines:
    """Two lines of a terminal, one under the other, that fill up together."""

    def __init__(self, console: "Console") -> None:
        from rich.text import Text

        self._console = console
        self._upper, self._lower = Text(), Text()

    def add(self, upper: "Text", lower: "Text") -> None:
        """Put two texts in one column, in new lines where these have no room left."""
        width = max(upper.cell_len, lower.cell_len)
        if self._upper.cell_len + width > self._console.width:
            self.flush()
        for line, text in ((self._upper, upper), (self._lower, lower)):
            line.append_text(text).append(" " * (width - text.cell_len))

    def flush(self) -> None:
        """Print both lines, or none where they are empty."""
        for line in (self._upper, self._lower):
            if line.plain.strip():
                self._console.print(line)
            line.truncate(0)


def _cell(cell: "Cell", *, ids: bool) -> "tuple[Text, Text]":
    """Return a token and, where wanted, its id."""
    from rich.text import Text

    from herd.tokenizer.drawing import is_mark

    shown = ""
    for kind, text in cell.pieces:
        shown += _MARKS[kind] * len(text) if kind in _MARKS else text if kind == "text" else f"⟨{text}⟩"
    if is_mark(shown[0]):
        shown = f"◌{shown}"
    if cell.control:
        style = _CONTROL if cell.special else _HEADER
    else:
        style = (_LOSS if cell.weight else _PLAIN)[cell.index % 2]
    return Text(shown, f"{style} underline" if cell.weight else style), Text(f"{cell.id} " if ids else "", "dim")
