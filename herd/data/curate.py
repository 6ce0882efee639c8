"""Curation: documents become a training corpus and held-out text, and every rule says what it dropped.

    documents -> share, cut-off, repair, boilerplate, language, quality, exact duplicates -> survivors on disk
              -> near-duplicates, held-out split, size limit (by position)
              -> personal data -> documents.jsonl, heldout.jsonl

Memory holds some tens of bytes a document; texts stay on disk. The result depends
on nothing but the documents and the config.
"""

import dataclasses
import hashlib
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from herd.base.errors import DataError
from herd.base.progress import Progress
from herd.data.curate_config import CurateConfig
from herd.data.dates import last_day
from herd.data.document import Document
from herd.data.extras import require
from herd.data.langid import LanguageRule, language_code
from herd.data.split import choose_heldout, choose_within
from herd.data.tally import CurationTally

__all__ = ["CurateConfig", "CurationResult", "curate"]

SCALE = 2.0**64


@dataclass(frozen=True)
class CurationResult:
    """Where the curated corpus and its held-out part lie, and the report (see CurationTally.to_json)."""

    documents: Path
    heldout: Path
    report: dict[str, Any]


def curate(
    documents: Iterable[Document],
    config: CurateConfig,
    *,
    workdir: Path,
    progress: Progress,
    expected: int = 0,
) -> CurationResult:
    """Filter documents into workdir/documents.jsonl and workdir/heldout.jsonl (rows of Document.to_json).

    `expected` is the number of documents, if known, for the progress display. Needs the `data` extra.
    Raises DataError when no document is left, naming the rule that dropped most.
    """
    for module in ("datatrove", "regex", "orjson"):
        require(module, purpose="curation")
    scratch = workdir / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    run = _Curation(config, scratch, progress, expected)
    run.filter_documents(documents)
    result = run.write(workdir)
    shutil.rmtree(scratch)
    return result


def hash_unit(value: str) -> float:
    """Map a string to a number in [0, 1) that depends on nothing else."""
    return int.from_bytes(hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=8).digest()) / SCALE


class _Survivors:
    """Documents that passed the per-document rules, on disk, with what must be known of each in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets = array("Q")
        self.keys = array("d")  # the hash of the normalised text, in [0, 1)
        self.sizes = array("L")
        self.strata: list[str] = []
        self._json: Any = require("orjson", purpose="curation")
        self._reader: IO[bytes] | None = None

    def append(self, file: IO[bytes], document: Document, digest: bytes) -> None:
        self.offsets.append(file.tell())
        self.keys.append(int.from_bytes(digest[:8]) / SCALE)
        self.sizes.append(document.bytes)
        self.strata.append(document.lang or "und")
        file.write(self._json.dumps(document.to_json(), default=str) + b"\n")

    def at(self, index: int) -> Document:
        if self._reader is None:
            self._reader = self.path.open("rb")
        self._reader.seek(self.offsets[index])
        return Document.from_json(self._json.loads(self._reader.readline()))

    def __iter__(self) -> Iterator[Document]:
        with self.path.open("rb") as file:
            for line in file:
                yield Document.from_json(self._json.loads(line))

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class _Curation:
    """One curation: the rules, built once, and the tally they fill."""

    def __init__(self, config: CurateConfig, scratch: Path, progress: Progress, expected: int) -> None:
        from herd.data.boilerplate import strip_furniture
        from herd.data.dedup import Shingler, find_near_duplicates, text_digest
        from herd.data.pii import PersonalData
        from herd.data.quality import QualityRule, repair
        from herd.data.words import Words

        self.config, self.scratch, self.progress, self.expected = config, scratch, progress, expected
        self.tally = CurationTally()
        self.words = Words("herd")
        self._repair, self._strip, self._digest = repair, strip_furniture, text_digest
        self._find = find_near_duplicates
        self.language = LanguageRule(config.languages, min_letters=config.min_letters, confidence=config.confidence)
        self.quality = QualityRule(self.words, min_words=config.min_words)
        self.personal = PersonalData() if config.pii else None
        self.shingler = Shingler(scratch, self.words) if config.near_duplicates else None
        self.cutoff = last_day(config.cutoff) if config.cutoff else None
        self.survivors = _Survivors(scratch / "survivors.jsonl")

    # --- first pass: rules that need one document (or its hash) ---

    def filter_documents(self, documents: Iterable[Document]) -> None:
        """Write the survivors of the per-document rules, and their MinHash signatures."""
        with _quiet():
            texts = self._filtered(documents)
            if self.shingler is not None:
                self.shingler.write(texts)
            else:
                for _ in texts:
                    pass

    def _filtered(self, documents: Iterable[Document]) -> Iterator[str]:
        seen: dict[bytes, str] = {}
        with self.survivors.path.open("wb") as file:
            for number, document in enumerate(documents, 1):
                if number % 500 == 0:
                    self.progress.advance(number, max(number, self.expected))
                self.tally.count("read", language_code(document.lang), document.bytes)
                passed = self._pass(document)
                if passed is None:
                    continue
                digest = self._digest(passed.text)
                if self.config.exact_duplicates:
                    if digest in seen:
                        rule = self.tally.rules["exact_duplicates"]
                        rule.drop(passed, f"the same text as {seen[digest]}", reason="same text")
                        continue
                    seen[digest] = passed.id
                self.survivors.append(file, passed, digest)
                yield passed.text

    def _pass(self, document: Document) -> Document | None:
        """Run one document through share, cut-off, repair, boilerplate, language and quality."""
        rules = self.tally.rules
        if self.config.share < 1 and hash_unit(document.id) >= self.config.share:
            rules["share"].drop(document, "not in the share taken")
            return None
        day = last_day(document.date) if document.date else None
        if document.date and day is None:
            self.tally.unreadable_dates += 1
        if self.cutoff and day and day > self.cutoff:
            rules["cutoff"].drop(document, f"dated {document.date}", reason=f"after {self.cutoff}")
            return None
        prose = document.kind not in self.config.not_prose
        cleaned = self._clean(document, prose)
        if cleaned is None:
            return None
        document = cleaned
        if self.config.language_id and prose:
            verdict = self.language.judge(document.text, document.lang)
            if verdict.lang is None:
                why = verdict.why or "unknown"
                rules["language"].drop(document, why, reason=why.split(" (")[0])
                return None
            if verdict.lang != document.lang:
                label = f"{document.lang or 'undeclared'} -> {verdict.lang}"
                rules["language"].change(document, Counter({label: 1}))
                document = dataclasses.replace(document, lang=verdict.lang)
        if self.config.quality:
            from datatrove.utils.text import split_into_words

            words = split_into_words(document.text, self.words)
            why = self.quality.reason(document.text, lang=document.lang, words=words, prose=prose)
            if why is not None:
                rules["quality"].drop(document, why)
                return None
        return document

    def _clean(self, document: Document, prose: bool) -> Document | None:
        """Repair mojibake and take out page furniture; None when nothing but furniture was there."""
        if self.config.repair:
            fixed = self._repair(document.text)
            if fixed != document.text:
                self.tally.rules["repair"].change(document, Counter({_repaired(document.text, fixed): 1}))
                document = dataclasses.replace(document, text=fixed)
        if self.config.boilerplate and prose:
            text, removed = self._strip(document.text)
            if removed:
                rule = self.tally.rules["boilerplate"]
                if not text.strip():
                    rule.drop(document, "nothing but page furniture")
                    return None
                rule.change(document, Counter({"lines": removed}))
                document = dataclasses.replace(document, text=text)
        return document

    # --- second pass: rules that compare documents, then personal data ---

    def write(self, workdir: Path) -> CurationResult:
        """Drop near-duplicates, split off held-out text, scrub personal data and write the two files."""
        dropped = self._near_duplicates()
        heldout, chosen = self._choose(dropped)
        names = ("documents.jsonl", "heldout.jsonl")
        partial = [self.scratch / name for name in names]
        json: Any = require("orjson", purpose="curation")
        with partial[0].open("wb") as kept_file, partial[1].open("wb") as heldout_file:
            for index, document in enumerate(self.survivors):
                if index % 500 == 0:
                    self.progress.advance(index, len(self.survivors.offsets))
                if index in dropped:
                    continue
                if index not in heldout and not chosen[index]:
                    self.tally.rules["max_megabytes"].drop(document, "over the size limit")
                    continue
                document = self._scrub(document)
                file, step = (heldout_file, "heldout") if index in heldout else (kept_file, "kept")
                file.write(json.dumps(document.to_json(), default=str) + b"\n")
                self._count_kept(document, step)
        self.survivors.close()
        self._refuse_empty()
        paths = [path.replace(workdir / name) for path, name in zip(partial, names, strict=True)]
        report = self.tally.to_json()
        report["pii_detectors"] = self.personal.detectors if self.personal else []
        return CurationResult(paths[0], paths[1], report)

    def _near_duplicates(self) -> set[int]:
        dropped: set[int] = set()
        if self.shingler is None or not len(self.survivors.offsets):
            return dropped
        with _quiet():
            found = self._find(
                self.shingler,
                self.scratch,
                text_at=lambda index: self.survivors.at(index).text,
                threshold=self.config.near_threshold,
            )
            for pair in found:
                document, first = self.survivors.at(pair.index), self.survivors.at(pair.of)
                why = f"{pair.jaccard:.2f} like {first.id}"
                self.tally.rules["near_duplicates"].drop(document, why, reason="similar text")
                dropped.add(pair.index)
        return dropped

    def _choose(self, dropped: set[int]) -> tuple[set[int], bytearray]:
        """Return the held-out positions, and a flag per position: within the size limit."""
        survivors, config = self.survivors, self.config
        alive = [index for index in range(len(survivors.offsets)) if index not in dropped]
        heldout = choose_heldout(
            alive,
            survivors.keys,
            survivors.sizes,
            survivors.strata,
            fraction=config.heldout,
            minimum=config.heldout_min if config.heldout else 0,
            limit=config.heldout_kilobytes * 1000,
        )
        rest = [index for index in alive if index not in heldout]
        limit = config.max_megabytes * 1e6 if config.max_megabytes else None
        return heldout, choose_within(rest, survivors.keys, survivors.sizes, limit=limit)

    def _scrub(self, document: Document) -> Document:
        if self.personal is None:
            return document
        scrubbed = self.personal.scrub(document.text, document.lang)
        if not scrubbed.found.total():
            return document
        changed = dataclasses.replace(document, text=scrubbed.text)
        self.tally.rules["pii"].change(changed, +scrubbed.found)  # the example shows the scrubbed text
        return changed

    def _count_kept(self, document: Document, step: str) -> None:
        self.tally.count(step, document.lang, document.bytes)
        if step == "kept":
            kind = self.tally.kinds.setdefault(document.kind or "text", type(self.tally.totals["kept"])())
            kind.add(document.bytes)
        day = last_day(document.date) if document.date else None
        if day is None:
            self.tally.undated += 1
        elif document.date and (self.tally.newest is None or day.isoformat() > self.tally.newest):
            self.tally.newest = day.isoformat()

    def _refuse_empty(self) -> None:
        if self.tally.totals["kept"].documents:
            return
        read = self.tally.totals["read"].documents
        if not read:
            raise DataError("curation was given no document; check the corpus path")
        name, rule = max(self.tally.rules.items(), key=lambda item: item[1].dropped)
        raise DataError(
            f"curation left none of {read} documents; rule {name!r} dropped {rule.dropped} "
            f"(first: {rule.examples[0]['why'] if rule.examples else 'held out'}); loosen that rule"
        )


def _repaired(before: str, after: str) -> str:
    return "control characters" if len(before) - len(after) == _controls(before) else "mojibake"


def _controls(text: str) -> int:
    return sum(1 for char in text if not char.isprintable() and char not in "\n\t")


class _quiet:
    """Keep datatrove's log lines off the user's terminal while it works."""

    def __enter__(self) -> None:
        from loguru import logger

        logger.disable("datatrove")

    def __exit__(self, *_: object) -> None:
        from loguru import logger

        logger.enable("datatrove")
