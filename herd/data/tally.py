"""Counts of what curation did: per rule what it dropped or changed, per language before and after."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from herd.data.document import Document

EXAMPLES = 3
SHOWN = 160  # characters of an example


@dataclass
class RuleTally:
    """One rule's record."""

    dropped: int = 0
    changed: int = 0
    bytes: int = 0  # of the dropped documents
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def drop(self, document: Document, why: str, *, reason: str | None = None) -> None:
        """Record a dropped document; `reason` is the countable part of `why`."""
        self.dropped += 1
        self.bytes += document.bytes
        self.reasons[reason or why] += 1
        self._example(document, why)

    def change(self, document: Document, counts: Counter[str]) -> None:
        """Record a document that was kept with a changed text or label."""
        self.changed += 1
        self.reasons.update(counts)
        self._example(document, ", ".join(sorted(counts)))

    def _example(self, document: Document, why: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append({"id": document.id, "why": why, "text": document.text[:SHOWN]})

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "dropped": self.dropped,
            "bytes": self.bytes,
            "changed": self.changed,
            "reasons": dict(sorted(self.reasons.items())),
            "examples": list(self.examples),
        }


@dataclass
class Amount:
    """A number of documents and their bytes."""

    documents: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        """Count one document of `size` bytes."""
        self.documents += 1
        self.bytes += size

    def to_json(self) -> dict[str, int]:
        """Return plain data."""
        return {"documents": self.documents, "bytes": self.bytes}


RULES = (
    "share",
    "cutoff",
    "repair",
    "boilerplate",
    "language",
    "quality",
    "exact_duplicates",
    "near_duplicates",
    "max_megabytes",
    "pii",
)
STEPS = ("read", "kept", "heldout")


class CurationTally:
    """All counts of one curation."""

    def __init__(self) -> None:
        self.rules = {name: RuleTally() for name in RULES}
        self.totals = {step: Amount() for step in STEPS}
        self.languages: dict[str, dict[str, Amount]] = {}
        self.kinds: dict[str, Amount] = {}
        self.undated = 0
        self.unreadable_dates = 0
        self.newest: str | None = None

    def count(self, step: str, lang: str | None, size: int) -> None:
        """Count one document read, kept or held out."""
        self.totals[step].add(size)
        row = self.languages.setdefault(lang or "undeclared", {name: Amount() for name in STEPS})
        row[step].add(size)

    def to_json(self) -> dict[str, Any]:
        """Return the report: totals, rules, languages and dates as plain data."""
        kept = self.totals["kept"].documents + self.totals["heldout"].documents
        return {
            **{step: amount.to_json() for step, amount in self.totals.items()},
            "rules": {name: rule.to_json() for name, rule in self.rules.items()},
            "languages": {
                code: {step: amount.to_json() for step, amount in row.items()}
                for code, row in sorted(self.languages.items())
            },
            "kinds": {kind: amount.to_json() for kind, amount in sorted(self.kinds.items())},
            "undated": {
                "documents": self.undated,
                "share": round(self.undated / kept, 4) if kept else 0.0,
                "unreadable_dates": self.unreadable_dates,
            },
            "newest_date": self.newest,
        }
