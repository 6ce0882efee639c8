"""Stage `curate`: sources -> documents with id, language, source, licence and date -> a corpus fit to train on.

corpus/documents.jsonl  heldout.jsonl                     text, and held-out text for bits per byte
       dialogs.jsonl  preferences.jsonl  guard.jsonl      post-training, where the source offers it
       bench/TASK.jsonl                                   held-out items
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from herd.base.errors import DataError
from herd.base.files import write_jsonl
from herd.base.messages import parse_dialog, parse_messages
from herd.base.progress import Progress
from herd.data.curate import CurationResult, curate
from herd.data.document import Document
from herd.data.meadow import Meadow
from herd.data.sources import SourceReport, read_source
from herd.stages.recipe import Recipe
from herd.stages.step import Context, Outcome


def run(context: Context, key: str) -> Outcome:
    """Make the folder corpus/."""
    recipe, corpus = context.recipe, context.run / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    if recipe.corpus == "meadow":
        result, sources = _meadow(recipe, corpus, context.progress)
    else:
        result, sources = _real(recipe, corpus, context.progress)
    extra = {
        "dialogs": _user_file(recipe.dialogs, corpus / "dialogs.jsonl", "dialogs", parse_dialog),
        "preferences": _user_file(recipe.preferences, corpus / "preferences.jsonl", "preferences", parse_preference),
    }
    for name in ("dialogs", "preferences", "guard"):
        path = corpus / f"{name}.jsonl"
        extra[name] = extra.get(name) or (sum(1 for _ in path.open()) if path.exists() else 0)
    facts = dict(result.report) | {"sources": sources} | extra
    return Outcome(facts, ("corpus",))


def _meadow(recipe: Recipe, corpus: Path, progress: Progress) -> tuple[CurationResult, Mapping[str, Any]]:
    meadow = Meadow(recipe.meadow)
    # the generator holds out combinations of its own, which a split by document could not
    config = recipe.curate.model_copy(update={"heldout": 0.0, "heldout_min": 0})
    documents = (Document.from_json(row) for row in meadow.documents())
    result = curate(documents, config, workdir=corpus, progress=progress)
    held = list(meadow.heldout())
    write_jsonl(corpus / "heldout.jsonl", held)
    write_jsonl(corpus / "dialogs.jsonl", meadow.dialogs())
    write_jsonl(corpus / "preferences.jsonl", meadow.preferences())
    write_jsonl(corpus / "guard.jsonl", meadow.guard())
    (corpus / "bench").mkdir(exist_ok=True)
    for task, items in meadow.benchmarks().items():
        write_jsonl(corpus / "bench" / f"{task}.jsonl", items)
    result.report["heldout"] = _bytes_by_language(held)
    kept = result.report["kept"]["documents"]
    return result, {"meadow (herd's own generator)": {"documents": kept, "license": "CC0-1.0"}}


def _bytes_by_language(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row["lang"]] = sizes.get(row["lang"], 0) + len(row["text"].encode())
    return sizes


def _real(recipe: Recipe, corpus: Path, progress: Progress) -> tuple[CurationResult, Mapping[str, Any]]:
    report = SourceReport()
    result = curate(read_source(recipe.corpus, report=report), recipe.curate, workdir=corpus, progress=progress)
    for line in [*report.first, *report.not_corpora[:3]]:
        progress.note(f"not used: {line}")
    if report.bad_rows:
        progress.note(f"{report.bad_rows} rows of {recipe.corpus} could not be used; the rest was")
    result.report["reading"] = report.to_json()
    sources: dict[str, dict[str, Any]] = {}
    with result.documents.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            entry = sources.setdefault(_origin(row), {"documents": 0, "license": row.get("license") or "not stated"})
            entry["documents"] += 1
    return result, sources


def _origin(row: Mapping[str, Any]) -> str:
    """Return where a document came from, without the path inside a repository."""
    return str(row.get("source") or "not stated").split(":")[0].split("@")[0]


def parse_preference(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check a preference row: {"prompt": [messages], "chosen": text, "rejected": text, "edited"?: text}."""
    if not all(isinstance(row.get(key), str) for key in ("chosen", "rejected")):
        raise DataError('a preference needs texts "chosen" and "rejected"')
    parse_messages(row["prompt"])
    return row


def _user_file(path: str | None, target: Path, what: str, parse: Any) -> int:
    """Copy the user's JSON lines of dialogs or preferences after checking each; broken ones are left out."""
    if path is None:
        return 0
    good, bad, first = [], 0, ""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{what}={path}: can't be read ({error.strerror}); give a JSON-lines file") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            parse(row)
            good.append(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            bad += 1
            first = first or f"line {number}: {error}"
    if not good:
        raise DataError(f"{what}={path}: no usable row ({first or 'the file is empty'})")
    return write_jsonl(target, good)
