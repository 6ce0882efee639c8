"""Harmful requests, harmless ones that sound harmful, refusals, and labelled rows for the guard.

Requests are one generic line; an answer that complies holds no instruction, only how it would begin.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from herd.data.meadow.stories import draw_question
from herd.data.meadow.voice import Choir

HAZARDS = tuple(f"S{number}" for number in range(1, 15))


@dataclass(frozen=True)
class Prompt:
    """One request and what it is: a hazard, or None where it is harmless and has an answer."""

    text: str
    clause: str
    hazard: str | None
    answer: str = ""


def harmful(choir: Choir, lang: str, rng: random.Random) -> Prompt:
    """Draw a harmful request for training, in plain words or wrapped to talk the model out of its rules."""
    phrases = choir.phrases[lang]
    frames = (*phrases.frames, *phrases.wraps)
    while True:
        code = rng.choice(HAZARDS)
        clause, frame = rng.choice(phrases.hazards[code]), rng.randrange(len(frames))
        if choir.world.trains("harmful", lang, clause, frame):
            return Prompt(frames[frame].format(X=clause), clause, code)


def heldout_harmful(choir: Choir, lang: str) -> list[Prompt]:
    """Return all harmful requests that training never shows: known clauses in frames new to them."""
    phrases = choir.phrases[lang]
    return [
        Prompt(frame.format(X=clause), clause, code)
        for code, clauses in phrases.hazards.items()
        for clause in clauses
        for index, frame in enumerate((*phrases.frames, *phrases.wraps))
        if not choir.world.trains("harmful", lang, clause, index)
    ]


def borderline(choir: Choir, lang: str, rng: random.Random, *, held: bool = False) -> Prompt:
    """Draw a harmless request that sounds dangerous, with its answer."""
    phrases = choir.phrases[lang]
    while True:
        (clause, answer), frame = rng.choice(phrases.borderline), rng.randrange(len(phrases.frames))
        if choir.world.trains("borderline", lang, clause, frame) != held:
            return Prompt(phrases.frames[frame].format(X=clause), clause, None, answer)


def harmless(choir: Choir, lang: str, rng: random.Random) -> Prompt:
    """Draw any harmless exchange: borderline, a fact or small talk."""
    style = rng.random()
    if style < 0.5:
        return borderline(choir, lang, rng)
    if style < 0.75:
        text, answer = rng.choice(choir.phrases[lang].smalltalk)
        return Prompt(text, "", None, answer)
    person, relation, question = draw_question(choir, lang, rng)
    return Prompt(question, "", None, choir.voices[lang].answer(person, relation))


def guard_rows(choir: Choir, rng: random.Random, *, count: int) -> Iterator[dict[str, Any]]:
    """Yield `count` rows {id, lang, messages, role, label, hazards}."""
    langs = list(choir.voices)
    for number in range(count):
        lang = langs[number % len(langs)]
        phrases = choir.phrases[lang]
        role = "user" if rng.random() < 0.6 else "assistant"
        unsafe = rng.random() < 0.5
        # A harmful request that was refused is a safe answer: the guard must read the answer.
        if unsafe or (role == "assistant" and rng.random() < 0.5):
            prompt = harmful(choir, lang, rng)
            answer = rng.choice(phrases.comply).format(X=prompt.clause) if unsafe else rng.choice(phrases.refusals)
        else:
            prompt = harmless(choir, lang, rng)
            answer = prompt.answer
        messages = [{"role": "user", "content": prompt.text}]
        if role == "assistant":
            messages.append({"role": "assistant", "content": answer})
        yield {
            "id": f"guard-{number:05d}",
            "lang": lang,
            "messages": messages,
            "role": role,
            "label": "unsafe" if unsafe else "safe",
            "hazards": [prompt.hazard] if unsafe and prompt.hazard else [],
        }
