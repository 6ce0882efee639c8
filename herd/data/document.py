"""One document of a corpus: its text and where it came from. Sources make them, curation filters them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FIELDS = ("id", "text", "lang", "source", "license", "date", "kind")


@dataclass(frozen=True)
class Document:
    """A text with id, language (ISO 639-1), source, licence, date (YYYY[-MM[-DD]]) and kind, or None."""

    id: str
    text: str
    lang: str | None
    source: str
    license: str | None
    date: str | None
    kind: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Return the length of the text in UTF-8 bytes."""
        return len(self.text.encode())

    def to_json(self) -> dict[str, Any]:
        """Return one flat JSON object; keys of `extra` stand beside the fields."""
        row = {key: value for key, value in self.extra.items() if key not in FIELDS}
        return {key: getattr(self, key) for key in FIELDS} | row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Document":
        """Read a row that `to_json` or the meadow wrote."""
        extra = {key: value for key, value in row.items() if key not in FIELDS}
        return cls(
            id=row["id"],
            text=row["text"],
            lang=row.get("lang"),
            source=row.get("source") or "",
            license=row.get("license"),
            date=row.get("date"),
            kind=row.get("kind"),
            extra=extra,
        )
