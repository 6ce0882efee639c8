"""Word splitting for quality rules and near-duplicate shingles: UAX-29 for spaced scripts, newmm for Thai.

datatrove's own tables need spaCy models, romanise Hindi and lack a Thai sentence splitter;
it accepts a tokenizer object instead.
"""

from collections.abc import Callable

import regex
from datatrove.utils.word_tokenizers import WordTokenizer

from herd.data.extras import require

WORD = regex.compile(r"(?w)\b\w.*?\b")
SENTENCE = regex.compile(r"[^.!?।॥…]+(?:[.!?।॥…]+|$)")
THAI = regex.compile(r"\p{Thai}")


class Words(WordTokenizer):
    """Split text into words; runs of Thai, whatever the declared language, by dictionary."""

    def __init__(self, language: str | None = None) -> None:
        super().__init__(language)
        self._thai: Callable[[str], list[str]] | None = None

    def word_tokenize(self, text: str) -> list[str]:
        """Return the words in order, without punctuation and spaces."""
        if THAI.search(text) is None:
            return WORD.findall(text)
        return [word for word in self._segment(text) if word[0].isalnum()]

    def sent_tokenize(self, text: str) -> list[str]:
        """Return sentences ended by punctuation; Thai, which marks none, comes back in lines."""
        return [part.strip() for line in text.splitlines() for part in SENTENCE.findall(line) if part.strip()]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return the character spans of the sentences."""
        spans, start = [], 0
        for sentence in self.sent_tokenize(text):
            start = text.index(sentence, start)
            spans.append((start, start + len(sentence)))
            start += len(sentence)
        return spans

    def _segment(self, text: str) -> list[str]:
        if self._thai is None:
            # pythainlp makes a folder in the user's home when it is imported, so only Thai text imports it.
            self._thai = require("pythainlp.tokenize.newmm", purpose="splitting Thai into words").segment
        return self._thai(text)
