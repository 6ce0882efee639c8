"""Sources: a file, a folder or a Hugging Face data set becomes a stream of documents.

Nothing broken stops a read: bad rows are counted with the first three shown, files that hold no documents are
named in one line each, and the rest is used. Only a corpus without any document is refused.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.base.errors import DataError
from herd.data.document import FIELDS, Document
from herd.data.extras import require
from herd.data.formats import BadRow, open_rows, readable

ALIASES = {
    "id": ("id", "doc_id", "uuid"),
    "lang": ("lang", "language"),
    "source": ("source", "url"),
    "license": ("license", "licence"),
    "date": ("date", "timestamp", "created"),
    "kind": ("kind",),
}
GIVE_UP_AFTER = 200  # rows without text, and none with: the file is something else


@dataclass
class SourceReport:
    """What reading a source met; filled while it is read."""

    files: int = 0
    documents: int = 0
    bytes: int = 0
    bad_rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)  # the first three bad rows: 'file:line: reason'
    not_corpora: list[str] = field(default_factory=list)  # 'file: reason', one line each

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data for the ledger."""
        return {
            "files": self.files,
            "documents": self.documents,
            "bytes": self.bytes,
            "bad_rows": {"count": self.bad_rows, "reasons": dict(self.reasons), "first": list(self.first)},
            "not_corpora": list(self.not_corpora),
        }

    def bad(self, where: str, reason: str) -> None:
        """Count one row that can't be used."""
        self.bad_rows += 1
        self.reasons[reason] += 1
        if len(self.first) < 3:
            self.first.append(f"{where}: {reason}")


def read_source(path_or_id: str, *, text_key: str = "text", report: SourceReport) -> Iterator[Document]:
    """Stream the documents of a folder (recursively), one file, or 'hf:owner/name[/config][:split]'.

    Files are read in the order of their names: .jsonl .json .parquet .txt .md, also packed as .gz or .zst.
    A text file is one document; a huge one is cut at blank lines near 20,000 characters.
    Raises DataError when the path doesn't exist, nothing in it is readable, or no document was found.
    """
    if path_or_id.startswith("hf:"):
        return _read_hub(path_or_id[3:], text_key=text_key, report=report)
    root = Path(path_or_id).expanduser()
    if not root.exists():
        raise DataError(
            f"corpus {path_or_id!r} doesn't exist; give a folder, a .jsonl, .parquet or .txt file, or hf:owner/name"
        )
    return _read_path(root, text_key=text_key, report=report)


def source_files(root: Path, report: SourceReport) -> list[Path]:
    """List the files of a source in reading order; those of an unknown type are noted in the report."""
    if root.is_file():
        candidates = [root]
    else:
        candidates = sorted(
            path
            for path in root.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
        )
    files = []
    for path in candidates:
        reason = readable(path)
        if reason is None:
            files.append(path)
        else:
            report.not_corpora.append(f"{_name(path, root)}: {reason}")
    if not files:
        shown = "; ".join(report.not_corpora[:3])
        raise DataError(
            f"corpus {root} holds no file that can be read{f' ({shown})' if shown else ''}; "
            "use .jsonl, .json, .parquet, .txt or .md, plain or .gz"
        )
    return files


def _read_path(root: Path, *, text_key: str, report: SourceReport) -> Iterator[Document]:
    for path in source_files(root, report):
        report.files += 1
        yield from _read_file(path, _name(path, root), text_key=text_key, report=report)
    _refuse_empty(str(root), text_key, report)


def _name(path: Path, root: Path) -> str:
    return path.name if root == path else path.relative_to(root).as_posix()


def _refuse_empty(name: str, text_key: str, report: SourceReport) -> None:
    if report.documents:
        return
    met = [*report.first, *report.not_corpora][:3]
    raise DataError(
        f"corpus {name} holds no document ({'; '.join(met) or 'all files are empty'}); "
        f"each row needs text under {text_key!r}"
    )


def _read_file(path: Path, name: str, *, text_key: str, report: SourceReport) -> Iterator[Document]:
    """Yield one file's documents; complaints wait until a first row with text shows that it is a corpus."""
    held: list[tuple[str, str]] = []
    textless = found = 0
    keys: tuple[str, ...] = ()
    try:
        for where, row in open_rows(path, text_key=text_key):
            at = f"{name}:{where}" if where else name
            if isinstance(row, BadRow):
                reason = row.reason
            else:
                document, reason = _parse_row(row, at=at, name=name, text_key=text_key)
                if document is not None:
                    found += 1
                    if found == 1:
                        _flush(held, report)
                    yield _count(document, report)
                    continue
                if text_key not in row:
                    textless += 1
                    keys = keys or tuple(row)[:6]
            if found:
                report.bad(at, reason)
            else:
                held.append((at, reason))
                if textless >= GIVE_UP_AFTER:
                    break
    except (OSError, EOFError, DataError, ValueError) as error:
        report.bad(name, f"reading stopped: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    if not found and textless:
        report.not_corpora.append(f"{name}: rows have no {text_key!r} (keys: {', '.join(map(str, keys))})")
    elif not found:
        _flush(held, report)
        if not held:
            report.not_corpora.append(f"{name}: no text in it")


def _flush(held: list[tuple[str, str]], report: SourceReport) -> None:
    for where, reason in held:
        report.bad(where, reason)


def _count(document: Document, report: SourceReport) -> Document:
    report.documents += 1
    report.bytes += document.bytes
    return document


def _parse_row(row: Mapping[str, Any], *, at: str, name: str, text_key: str) -> tuple[Document | None, str]:
    """Return (document, '') or (None, why not)."""
    text = row.get(text_key)
    if text is None:
        return None, f"no {text_key!r}"
    if not isinstance(text, str):
        return None, f"{text_key!r} is {type(text).__name__}, not a string"
    if not text.strip():
        return None, "empty text"
    try:
        text.encode()
    except UnicodeEncodeError:
        return None, "text holds half a surrogate pair"
    found = {field: _first(row, names) for field, names in ALIASES.items()}
    known = {text_key, *(key for names in ALIASES.values() for key in names)}
    return Document(
        id=found["id"] or at,
        text=text,
        lang=found["lang"],
        source=found["source"] or name,
        license=found["license"],
        date=found["date"],
        kind=found["kind"],
        extra={key: value for key, value in row.items() if key not in known and key not in FIELDS},
    ), ""


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = row.get(name)
        if value is not None and not isinstance(value, (dict, list, bool)) and str(value).strip():
            return str(value).strip()
    return None


def _read_hub(identifier: str, *, text_key: str, report: SourceReport) -> Iterator[Document]:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?::([\w.\[\]%:-]+))?", identifier)
    if match is None:
        raise DataError(f"corpus 'hf:{identifier}' is not of the form hf:owner/name[/config][:split]")
    datasets = require("datasets", purpose=f"reading hf:{identifier}", install="datasets")
    name, config, split = match.groups()
    return _stream_hub(datasets.load_dataset, (name, config, split or "train"), text_key=text_key, report=report)


def _stream_hub(
    load: Callable[..., Any], parts: tuple[str, str | None, str], *, text_key: str, report: SourceReport
) -> Iterator[Document]:
    name, config, split = parts
    label = f"hf:{name}{f'/{config}' if config else ''}:{split}"
    try:
        rows = load(name, config, split=split, streaming=True)
    except Exception as error:  # the library raises many kinds; each means: not usable as asked
        raise DataError(f"{label} can't be opened ({error}); check its name, config and split") from error
    report.files += 1
    for number, row in enumerate(rows, 1):
        document, reason = _parse_row(row, at=f"{label}:{number}", name=label, text_key=text_key)
        if document is None:
            report.bad(f"{label}:{number}", reason)
        else:
            yield _count(document, report)
    _refuse_empty(label, text_key, report)
