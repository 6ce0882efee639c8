"""A dialog's tokens drawn for a person: what each is, which are control, which carry loss. Data, and one HTML page.

    dialog  --draw-->  Drawing > Block (a message) > cluster (what is read as one) > Cell (a token)
    b" \\xe0\\xa4"  --pieces-->  space " ", bytes "e0 a4"     what can't be seen, or is no text, has a kind of its own

Tokens cut characters in two, and letters from their marks: such tokens form a cluster, which is readable where they
aren't. Every other token is a cluster alone.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import chain, groupby
from typing import Literal

import jinja2

from herd.base.messages import Dialog
from herd.tokenizer import specials
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.codec import DialogCodec, Encoded

PieceKind = Literal["text", "space", "newline", "tab", "unseen", "bytes"]

_JOINER = "\u200d"
_JOINERS = (_JOINER, "\u200c")
_KINDS: dict[str, PieceKind] = {" ": "space", "\n": "newline", "\t": "tab"}
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_VIRAMA = 9  # the combining class of the sign that ties two consonants of an Indic script together


@dataclass(frozen=True)
class Cell:
    """One token of a dialog: `special` is a token with a name; `control` also the text of a header."""

    index: int
    id: int
    data: bytes
    weight: float
    control: bool
    special: bool

    @cached_property
    def pieces(self) -> list[tuple[PieceKind, str]]:
        """The token's bytes in runs of one kind; see `pieces`."""
        return [("text", self.data.decode())] if self.special else pieces(self.data)

    @property
    def literal(self) -> str:
        """The token as a Python literal: text, or bytes where they aren't whole characters."""
        try:
            return repr(self.data.decode())
        except UnicodeDecodeError:
            return repr(self.data)

    @property
    def note(self) -> str:
        """All that is known of the token, in one line."""
        kind = "control token" if self.special else "header text" if self.control else "text"
        loss = f"loss weight {self.weight:g}" if self.weight else "no loss"
        return f"token {self.index} · id {self.id} · {kind} · {loss} · {self.data.hex(' ')} · {self.literal}"


@dataclass(frozen=True)
class Block:
    """One message, header to end token; `role` is the header's text, empty for what stands before any header."""

    role: str
    clusters: tuple[tuple[Cell, ...], ...]

    @cached_property
    def cells(self) -> list[Cell]:
        """Its tokens."""
        return list(chain.from_iterable(self.clusters))

    @property
    def note(self) -> str:
        """How many tokens, how many with loss, and of what weight where it isn't 1."""
        weights = sorted({cell.weight for cell in self.cells if cell.weight})
        said = [_count(len(self.cells), "token")]
        if weights:
            weighted = "" if weights == [1] else f" of weight {', '.join(f'{weight:g}' for weight in weights)}"
            said.append(f"{sum(bool(cell.weight) for cell in self.cells)} with loss{weighted}")
        return ", ".join(said)


@dataclass(frozen=True)
class Drawing:
    """A dialog in blocks; `prompt` says that it ends in an open header and that nothing carries loss."""

    blocks: tuple[Block, ...]
    prompt: bool = False

    @cached_property
    def cells(self) -> list[Cell]:
        """All tokens in order."""
        return list(chain.from_iterable(block.cells for block in self.blocks))

    @cached_property
    def figures(self) -> dict[str, str]:
        """What the dialog's tokens add up to; characters a token over content alone."""
        content = [cell for cell in self.cells if not cell.control]
        characters = len(_text(content))
        loss = {} if self.prompt else {"with loss": str(sum(bool(cell.weight) for cell in self.cells))}
        return {
            "tokens": str(len(self.cells)),
            **loss,
            "control": str(len(self.cells) - len(content)),
            "characters per token": f"{characters / len(content):.2f}" if content else "–",
        }

    @cached_property
    def warnings(self) -> list[str]:
        """What is likely a mistake, one line each."""
        found = []
        content = [bool(cell.weight) for cell in self.cells if not cell.control]
        if not self.prompt and not any(cell.weight for cell in self.cells):
            found.append("no token carries loss: training on this dialog teaches nothing")
        elif not self.prompt and content and all(content):
            found.append("every token but control tokens carries loss: no prompt is masked")
        for number, block in enumerate(self.blocks):
            text = _text(cell for cell in block.cells if not cell.special)
            names = [name for name in specials.SPECIAL_TOKENS if name in text]
            if names:
                found.append(
                    f"block {number} ({block.role}) spells {', '.join(names[:3])}{' …' * (len(names) > 3)} as text: "
                    "it stays text; if a rendered prompt was pasted there, take it apart into messages"
                )
        return found


def draw(codec: DialogCodec, dialog: Dialog, *, prompt: bool = False) -> Drawing:
    """Return the dialog as a training example, or as the prompt for its next answer. Raises DataError."""
    encoded = codec.encode(dialog)
    if prompt:
        ids = codec.prompt(dialog)
        opened = [True] * (len(ids) - len(encoded))
        encoded = Encoded(ids, [0.0] * len(ids), encoded.control + opened)
    return Drawing(tuple(_blocks(codec.tokenizer, encoded)), prompt)


def pieces(data: bytes) -> list[tuple[PieceKind, str]]:
    """Return bytes in runs of one kind: text; white space; `unseen` characters as U+200D; other `bytes` in hexadecimal.

    What is of kind text can be printed anywhere: no control character, none that turns the direction of writing.
    """
    found: list[tuple[PieceKind, str]] = []
    for kind, run in groupby(data.decode(errors="surrogateescape"), _kind):
        text = "".join(run)
        if kind == "unseen":
            text = " ".join(map(_named, text))
        elif kind == "bytes":
            text = text.encode(errors="surrogateescape").hex(" ")
        found.append((kind, text))
    return found


def joined(cluster: Sequence[Cell]) -> str:
    """Return what a cluster reads as: joiners at work, other characters that can't be seen by name."""
    seen = (c if c.isprintable() or c in _JOINERS or c in _KINDS else f"⟨{_named(c)}⟩" for c in _text(cluster))
    return "".join(seen)


def is_mark(character: str) -> bool:
    """Say whether a character is drawn on the one before it."""
    return unicodedata.category(character)[0] == "M" or ord(character) in _SKIN_TONES


def to_html(drawing: Drawing, *, title: str, setting: str) -> str:
    """Return one page that holds all it needs: no scripts, no requests, light and dark.

    `setting` is a line under the title: which tokenizer and layout drew it.
    """
    source = resources.files("herd.tokenizer").joinpath("drawing.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(source).render(
        drawing=drawing, title=title, setting=setting, joined=joined, is_mark=is_mark
    )
    return page.encode(errors="replace").decode()  # a file's name may hold what UTF-8 can't


def _blocks(tokenizer: Tokenizer, encoded: Encoded) -> Iterator[Block]:
    cells: list[Cell] = []
    start = tokenizer.special_ids[specials.START_HEADER]
    for index, (id, weight, control) in enumerate(zip(encoded.ids, encoded.weights, encoded.control, strict=True)):
        if id == start and cells:
            yield _block(cells)
            cells = []
        data = tokenizer.decode_bytes((id,))
        cells.append(Cell(index, id, data, weight, control, special=id >= tokenizer.n_ranks))
    yield _block(cells)


def _block(cells: Sequence[Cell]) -> Block:
    names = [cell.data.decode() if cell.special else "" for cell in cells]
    role = _text(cells[1 : names.index(specials.END_HEADER)]) if specials.END_HEADER in names else ""
    runs = (list(run) for _, run in groupby(cells, lambda cell: cell.special))
    return Block(role, tuple(chain.from_iterable(map(_clusters, runs))))


def _clusters(cells: Sequence[Cell]) -> Iterator[tuple[Cell, ...]]:
    """Cut a run of tokens wherever a character with all its marks begins."""
    starts = set(_starts(b"".join(cell.data for cell in cells)))
    cluster: list[Cell] = []
    at = 0
    for cell in cells:
        if cluster and at in starts:
            yield tuple(cluster)
            cluster = []
        cluster.append(cell)
        at += len(cell.data)
    yield tuple(cluster)


def _starts(data: bytes) -> Iterator[int]:
    """Yield the places in bytes where a character begins that isn't tied to the one before."""
    at, before = 0, " "
    for character in data.decode(errors="surrogateescape"):
        tied = is_mark(character) or character in _JOINERS
        tied = tied or before == _JOINER or (unicodedata.combining(before) == _VIRAMA and character.isalpha())
        if before.isspace() or not tied:
            yield at
        at += len(character.encode(errors="surrogateescape"))
        before = character


def _kind(character: str) -> PieceKind:
    if "\udc80" <= character <= "\udcff":
        return "bytes"
    return _KINDS.get(character) or ("text" if character.isprintable() else "unseen")


def _named(character: str) -> str:
    return f"U+{ord(character):04X}"


def _text(cells: Iterable[Cell]) -> str:
    return b"".join(cell.data for cell in cells).decode(errors="replace")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
