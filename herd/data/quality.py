"""Quality rules: mojibake repair by ftfy, then datatrove's Gopher (quality, repetition) and FineWeb filters.

The published thresholds were set for English web pages of 50 words and more. Shares of n-grams are asked only
of such documents, shares of lines only where there are a few lines; the stop words of English, Thai sentence
ends and, where dialogue begins with a dash, bullets are not asked at all.
"""

import re
from typing import Any

import ftfy
from datatrove.data import Document as TroveDocument
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.utils.text import TERMINAL_PUNCTUATION
from ftfy.badness import is_bad

from herd.data.boilerplate import HTML
from herd.data.words import Words

LONG = 50  # words: Gopher's own minimum, from which shares of n-grams mean something
LINES = 5  # paragraphs from which shares of lines mean something
MAX_BROKEN = 0.001  # share of U+FFFD characters
MIN_DISTINCT = 0.1  # distinct words among the first 500 (the 'unique words' signal of RedPajama-V2): keyword spam
DASHES = ("fr", "it", "pt", "es")  # languages whose novels begin each speech with a dash
WRAPPED = re.compile(r"(?<=\S)\n(?=[^\W\d_])")  # a line break inside a paragraph of hard-wrapped text
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u206a-\u206f\ufeff\ufff9-\ufffb]")
BLANK = re.compile(r"\s*\n\s*")  # also the U+2029 that some books leave at line ends
CLOSERS = (
    "»",
    "«",
    "“",
    "”",
    '"',
    "’",
    "'",
    "›",
    ")",
    "|",
)  # may stand behind the sentence end; '|' for a danda
# Gopher's shares (table A1) times 1.5: newmm's Thai words are shorter than words of spaced scripts.
THAI_TOP = ((2, 0.3), (3, 0.27), (4, 0.24))
THAI_NGRAMS = ((5, 0.225), (6, 0.21), (7, 0.195), (8, 0.18), (9, 0.165), (10, 0.15))

# Only what is broken: typographic quotes, ligatures, wide characters and HTML entities are the author's.
REPAIR = ftfy.TextFixerConfig(
    unescape_html=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    fix_line_breaks=False,
    uncurl_quotes=False,
    normalization=None,
    explain=False,
)


def repair(text: str) -> str:
    """Undo mojibake, terminal escapes and stray control characters; line ends become newlines."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if CONTROLS.search(text) is None and (text.isascii() or not is_bad(text)):
        return text  # ftfy would come to the same, more slowly
    return ftfy.fix_text(text, REPAIR)


class QualityRule:
    """Say why a document isn't worth keeping, or None."""

    def __init__(self, words: Words, *, min_words: int) -> None:
        self._words = words
        self.min_words = max(1, min_words)
        self._gopher: dict[tuple[bool, bool, str], GopherQualityFilter] = {}
        self._repetition: dict[tuple[bool, bool, bool], GopherRepetitionFilter] = {}
        self._fineweb = FineWebQualityFilter(
            char_duplicates_ratio=0.1,  # as the FineWeb recipe sets it; the class default is stricter
            short_line_thr=0.9,  # children's books and verse have short lines
            stop_chars=(*TERMINAL_PUNCTUATION, *CLOSERS),
            language=words,  # ty: ignore[invalid-argument-type]
        )

    def reason(self, text: str, *, lang: str | None, words: list[str], prose: bool) -> str | None:
        """Return the first rule that a text breaks. Code and arithmetic (`prose=False`) meet few of them."""
        if text.count("\ufffd") > MAX_BROKEN * len(text):
            return "replacement_characters"
        if not prose:
            return None if words else "gopher_short_doc"
        if HTML.match(text):
            return "raw_html"
        document = TroveDocument(text=text, id="")
        long = len(words) >= LONG
        if long and len(set(words[:500])) < MIN_DISTINCT * min(500, len(words)):
            return "few_distinct_words"
        lines = BLANK.sub("\n", WRAPPED.sub(" ", text).strip())
        lined = lines.count("\n") + 1 >= LINES
        broken = _broken(self._gopher_for(long, lined, lang or "").filter(document))
        broken = broken or _broken(self._repetition_for(long, repeats(words), lang == "th").filter(document))
        if broken is None and long and lined and lang != "th":
            return _broken(self._fineweb.filter(TroveDocument(text=lines, id="")))
        return broken

    def _gopher_for(self, long: bool, lined: bool, lang: str) -> GopherQualityFilter:
        key = (long, lined, lang)
        if key not in self._gopher:
            self._gopher[key] = GopherQualityFilter(
                min_doc_words=self.min_words,
                min_avg_word_length=3 if long and lang != "th" else None,
                max_avg_word_length=10 if long or lang == "th" else 15,
                max_bullet_lines_ratio=0.9 if lined and lang not in DASHES else None,
                max_ellipsis_lines_ratio=0.3 if lined else None,
                min_stop_words=None,
                language=self._words,  # ty: ignore[invalid-argument-type]
            )
        return self._gopher[key]

    def _repetition_for(self, long: bool, repeated: bool, thai: bool) -> GopherRepetitionFilter:
        key = (long, repeated, thai)
        if key not in self._repetition:
            options: dict[str, Any] = {} if long else {"top_n_grams": ()}
            if thai and long:
                options["top_n_grams"] = THAI_TOP
            if thai or not repeated:
                options["dup_n_grams"] = THAI_NGRAMS if repeated else ()
            self._repetition[key] = GopherRepetitionFilter(language=self._words, **options)  # ty: ignore[invalid-argument-type]
        return self._repetition[key]


def repeats(words: list[str], n: int = 5) -> bool:
    """Say whether any n-gram of words comes twice. Where none does, no longer one does either."""
    grams = ["".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) < len(grams)


def _broken(result: bool | tuple[bool, str]) -> str | None:
    if isinstance(result, tuple):
        return None if result[0] else result[1]
    return None if result else "dropped"
