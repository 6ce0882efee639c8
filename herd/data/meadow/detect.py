"""Scoring helpers that know the meadow's own words: which language, a refusal or not, the final answer."""

import re
from collections.abc import Iterable
from functools import lru_cache

from herd.base.languages import CODES, LANGUAGES
from herd.data.meadow.people import MEN, STRANGE_MEN, STRANGE_WOMEN, TOWNS, WOMEN, names
from herd.data.meadow.phrases import Phrases, load_phrases
from herd.data.meadow.tongue import choose
from herd.data.meadow.voice import load_tongue

_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"-?\d+")
_SLOT = re.compile(r"\{\w+\}")


def identify_language(text: str) -> str | None:
    """Return the language of a meadow answer by its first script and word lists; None for a sum."""
    start = next((letter for letter in text if letter.isalpha()), "")
    if "\u0900" <= start <= "\u097f":
        return "hi"
    if "\u0e00" <= start <= "\u0e7f":
        return "th"
    weights = _word_weights()
    scores = dict.fromkeys(CODES, 0.0)
    for word in _WORD.findall(text.lower()):
        for lang in weights.get(word, ()):
            scores[lang] += 1 / len(weights[word])
    best = max(scores, key=lambda lang: scores[lang])
    rivals = [lang for lang, score in scores.items() if score >= scores[best] - 1e-9]
    return best if scores[best] > 0 and len(rivals) == 1 else None


def is_refusal(text: str) -> bool:
    """Is this one of the meadow's refusals, in any of the eight languages?"""
    return any(core in text for core in _refusal_cores())


def final_answer(text: str) -> str | None:
    """Return the last number of a text, or its last word where it has no number; None for an empty text."""
    numbers = _NUMBER.findall(text)
    if numbers:
        return numbers[-1]
    words = text.split()
    return words[-1].strip(".,;:!?।'\"`()") or None if words else None


@lru_cache(maxsize=1)
def _refusal_cores() -> tuple[str, ...]:
    """The shortest refusal of each language without its full stop: it is part of all the others."""
    cores = (min(load_phrases(lang).refusals, key=len).rstrip(".।") for lang in CODES)
    return tuple(word for core in cores for word in (core, core[0].lower() + core[1:]))


@lru_cache(maxsize=1)
def _word_weights() -> dict[str, tuple[str, ...]]:
    """Map each Latin-script word to the languages that use it; names of people and towns belong to none."""
    tables = (WOMEN, MEN, STRANGE_WOMEN, STRANGE_MEN, TOWNS)
    proper = {name.latin.lower() for table in tables for name in names(table)}
    found: dict[str, list[str]] = {}
    for lang in CODES:
        if LANGUAGES[lang].script != "Latn":
            continue
        for word in {word for text in _texts(lang) for word in _WORD.findall(text.lower())} - proper:
            found.setdefault(word, []).append(lang)
    return {word: tuple(langs) for word, langs in found.items()}


def _texts(lang: str) -> Iterable[str]:
    tongue = load_tongue(lang)
    for table in (tongue.animals, tongue.things, tongue.foods, tongue.spots):
        for entry in table.split(", "):
            yield " ".join(entry.split(" ")[1:]).replace("_", " ")
    for table in (tongue.jobs, tongue.colours, tongue.hues, tongue.sizes):
        yield table.replace("_", " ")
    if lang == "de":  # adjectives stand there as stems
        for stem in f"{tongue.colours}, {tongue.sizes}".split(", "):
            yield " ".join(stem + ending for ending in ("e", "en", "er", "es"))
    yield {
        "en": "a an the",
        "de": "ein eine einen",
        "fr": "un une",
        "it": "un una",
        "pt": "um uma",
        "es": "un una",
    }[lang]
    for patterns in (tongue.tell, tongue.tell_pronoun):
        for group in patterns.values():
            yield from (_plain(pattern) for pattern in group)
    yield from (_plain(pattern) for pattern in _answers(load_phrases(lang)))


def _answers(phrases: Phrases) -> Iterable[str]:
    yield from phrases.sums.values()
    yield from (phrases.has, phrases.code_say, phrases.answer, *phrases.keeper, *phrases.tool_says.values())
    yield from (*phrases.refusals, *phrases.unknown, *phrases.comply, *phrases.weathers)
    yield from (answer for _, answer in phrases.smalltalk)
    yield from (answer for _, answer in phrases.borderline)


def _plain(pattern: str) -> str:
    forms = {choose(pattern, person=one, value=two) for one in "mf" for two in "mfn"}
    return " ".join(_SLOT.sub(" ", form) for form in forms)
