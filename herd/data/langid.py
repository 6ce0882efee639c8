"""Language identification: py3langid over all its languages, weighed against what a document declares."""

import re
from dataclasses import dataclass
from typing import Any

from herd.base.languages import LANGUAGES
from herd.data.extras import require

LETTERS = re.compile(r"[^\W\d_]")
SAMPLE, GLANCE = 500, 60  # characters from each of the start, the middle and the end
MIN_LINE, MAX_LINES, QUORUM = 15, 20, 0.3  # letters of a line that has a vote, voting lines, share needed
NAMES = {language.name.lower(): code for code, language in LANGUAGES.items()}


@dataclass(frozen=True)
class Verdict:
    """The language a document is taken to be in; `why` is set when it must be dropped."""

    lang: str | None
    why: str | None = None


def language_code(declared: str | None) -> str | None:
    """Return the bare code of a declared language: 'pt-BR' and 'Portuguese' are 'pt'."""
    if not declared:
        return None
    name = declared.strip().lower()
    return NAMES.get(name) or re.split(r"[-_]", name, maxsplit=1)[0]


class LanguageRule:
    """Decide a document's language from its text and its declaration."""

    def __init__(self, languages: tuple[str, ...], *, min_letters: int, confidence: float) -> None:
        library = require("py3langid.langid", purpose="language identification")
        self._identifier: Any = library.LanguageIdentifier.from_model_file(library.MODEL_FILE, norm_probs=True)
        self._known = frozenset(self._identifier.labels)
        self.languages = frozenset(languages)
        self.min_letters = min_letters
        self.confidence = confidence

    def judge(self, text: str, declared: str | None) -> Verdict:
        """Trust what is declared unless a long enough text is confidently something else."""
        code = language_code(declared)
        code = code if code in self._known else None
        sample = _sample(text, SAMPLE)
        if code is not None:
            if len(LETTERS.findall(sample)) < self.min_letters:
                return self._accept(code)
            if self._identifier.classify(_sample(text, GLANCE))[0] == code:
                return self._accept(code)  # most documents are what they say: a glance is enough
        found, probability = self._identifier.classify(sample)
        if probability < self.confidence and found != code:
            if code is None:
                return Verdict(None, "no language declared and none identified with confidence")
            return self._accept(code)
        if code is not None and found != code and self._spoken(text, code):
            return self._accept(code)
        verdict = self._accept(found)
        if verdict.why and code:
            return Verdict(None, f"declared {code}, identified {found} ({probability:.2f})")
        return verdict

    def _spoken(self, text: str, code: str) -> bool:
        """Say whether a good part of the lines is in a language, as in side-by-side translations."""
        lines = [line for line in text.splitlines() if len(LETTERS.findall(line)) >= MIN_LINE][:MAX_LINES]
        votes = sum(self._identifier.classify(line)[0] == code for line in lines)
        return votes >= max(2, QUORUM * len(lines))

    def _accept(self, code: str) -> Verdict:
        return Verdict(code) if code in self.languages else Verdict(None, f"language {code} is not asked for")


def _sample(text: str, size: int) -> str:
    if len(text) <= 3 * size:
        return text
    middle = (len(text) - size) // 2
    return "\n".join((text[:size], text[middle : middle + size], text[-size:]))
