"""File formats of a corpus: each becomes a stream of (line number, row or what is wrong with it)."""

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import IO, Any, cast

from herd.base.errors import DataError
from herd.data.extras import available, require

PIECE = 20_000  # characters: a text file longer than this is cut at the next blank line
LONGEST = 100_000  # characters: without any blank line it is cut at a line end, or in the middle of a huge line
MAX_LINE = 256 * 2**20  # bytes: a longer JSON line is not read into memory
TEXT = {".txt", ".md", ".text", ".markdown"}
ROWS = {".jsonl", ".ndjson", ".json"}


@dataclass(frozen=True)
class BadRow:
    """A row that can't be used, and why."""

    reason: str


Rows = Iterator[tuple[int, Mapping[str, Any] | BadRow]]


def file_type(path: Path) -> tuple[str, str]:
    """Return the suffix that says the format and the compression suffix, such as ('.jsonl', '.gz')."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1] if suffixes and suffixes[-1] in (".gz", ".zst") else ""
    rest = suffixes[:-1] if packed else suffixes
    return (rest[-1] if rest else ""), packed


def readable(path: Path) -> str | None:
    """Return None when the file's type is known, or else why it isn't used."""
    kind, packed = file_type(path)
    if packed == ".zst" and not available("zstandard"):
        return "reading .zst needs: pip install zstandard"
    if kind in TEXT | ROWS or (kind == ".parquet" and not packed):
        return None
    return f"{kind or 'no suffix'} is not a known type of corpus file"


def open_rows(path: Path, *, text_key: str = "text") -> Rows:
    """Yield (line, row) of one file; the line is 0 where there is none (a whole text file)."""
    kind, packed = file_type(path)
    if kind == ".parquet":
        yield from _parquet(path, text_key)
        return
    with _open(path, packed) as file:
        if kind in TEXT:
            yield from _text(file, text_key)
        elif kind == ".json" and _starts_array(file):
            yield from _json_array(file)
        else:
            yield from _json_lines(file)


def _open(path: Path, packed: str) -> IO[bytes]:
    if packed == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if packed == ".zst":
        return require("zstandard", purpose=f"reading {path.name}", install="zstandard").open(path, "rb")
    return path.open("rb")


def _starts_array(file: IO[bytes]) -> bool:
    head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return head.startswith(b"[")


def _json_lines(file: IO[bytes]) -> Rows:
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        if len(line) > MAX_LINE:
            yield number, BadRow(f"line longer than {MAX_LINE >> 20} MiB")
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError:
            yield number, BadRow("invalid UTF-8")
        except (ValueError, RecursionError):
            yield number, BadRow("broken JSON")
        else:
            yield (
                number,
                row if isinstance(row, dict) else BadRow(f"JSON {type(row).__name__}, not an object"),
            )


def _json_array(file: IO[bytes]) -> Rows:
    try:
        rows = json.loads(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError:
        yield 0, BadRow("invalid UTF-8")
        return
    except (ValueError, RecursionError):
        yield 0, BadRow("broken JSON")
        return
    for number, row in enumerate(rows, 1):
        yield number, row if isinstance(row, dict) else BadRow(f"JSON {type(row).__name__}, not an object")


def _text(file: IO[bytes], text_key: str) -> Rows:
    """Yield a small file whole and a large one in pieces, each with the number of its first line."""
    lines: list[str] = []
    size, start = 0, 1

    def piece() -> dict[str, Any]:
        return {text_key: "".join(lines).strip("\r\n")}

    cut = False
    for number, raw in enumerate(file, 1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            line = raw.decode()
        except UnicodeDecodeError:
            yield number, BadRow("invalid UTF-8")
            continue
        for part in (line[i : i + LONGEST] for i in range(0, len(line), LONGEST)):
            lines.append(part)
            size += len(part)
            if (size >= PIECE and not line.strip()) or size >= LONGEST:
                yield start, piece()
                lines, size, start, cut = [], 0, number + 1, True
    if "".join(lines).strip():
        yield (start if cut else 0), piece()


def _parquet(path: Path, text_key: str) -> Rows:
    parquet = require("pyarrow.parquet", purpose=f"reading {path.name}")
    try:
        table = parquet.ParquetFile(path)
    except Exception as error:  # pyarrow has its own family of errors
        raise DataError(f"not a readable Parquet file ({str(error).splitlines()[0]})") from error
    with table:
        if text_key not in table.schema_arrow.names:
            yield 1, dict.fromkeys(table.schema_arrow.names, "")
            return
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, {key: _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, (date, datetime)) else value
