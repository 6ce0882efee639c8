"""What curation is asked to do: the `curate` section of a recipe. Importing it needs no `data` extra."""

from datetime import date

from pydantic import Field, field_validator

from herd.base.config import Section
from herd.base.languages import CODES, LANGUAGES
from herd.data.dates import last_day


class CurateConfig(Section):
    """Rules and thresholds of curation, in the order in which documents meet them."""

    share: float = Field(1.0, gt=0, le=1)  # of the documents, chosen by the hash of their id
    cutoff: str | None = None  # ISO date, or a year (its last day); later documents are dropped, undated ones kept
    repair: bool = True  # mojibake (ftfy)
    boilerplate: bool = True  # take out lines of page furniture
    language_id: bool = True
    languages: tuple[str, ...] = CODES
    min_letters: int = Field(60, ge=0)  # a shorter text is believed to be in the language it declares
    confidence: float = Field(0.9, ge=0, le=1)  # from which the identified language overrules the declared one
    quality: bool = True
    min_words: int = Field(8, ge=1)
    not_prose: tuple[str, ...] = (
        "code",
        "math",
        "arithmetic",
    )  # kinds exempt from language id and prose rules
    exact_duplicates: bool = True
    near_duplicates: bool = True
    near_threshold: float = Field(0.7, gt=0, le=1)  # Jaccard similarity of word 5-grams
    heldout: float = Field(0.01, ge=0, lt=1)  # of each language's documents, by the hash of their text
    heldout_min: int = Field(20, ge=0)  # documents a language, but never more than a fifth of them
    heldout_kilobytes: float = Field(64, gt=0)  # at most, per language
    max_megabytes: float | None = Field(None, gt=0)  # of training text, chosen by the hash of the text
    pii: bool = True

    @field_validator("cutoff", mode="before")
    @classmethod
    def _check_cutoff(cls, value: object) -> str | None:
        if value is None:
            return None
        text = value.isoformat() if isinstance(value, date) else str(value)
        if last_day(text) is None:
            raise ValueError("a cut-off is a date such as 2023-12-31, or a year")
        return text

    @field_validator("languages")
    @classmethod
    def _check_languages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [code for code in value if code not in LANGUAGES]
        if unknown or not value:
            raise ValueError(f"languages are chosen among {', '.join(CODES)}")
        return value
