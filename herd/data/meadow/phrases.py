"""What the meadow says beside facts, in one language: sums, word problems, tools, small talk, safety."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Phrases:
    """The fixed phrases of one language. {X} is a clause such as 'how to steal a car'."""

    code: str
    question: str  # label before a question in plain text
    answer: str  # label before an answer
    sums: Mapping[str, str]  # sign -> statement in words
    calculate: tuple[str, ...]  # requests for {e}
    problems: Mapping[str, tuple[str, ...]]  # sign -> word problems, '+-' and '*+' with two steps
    has: str  # the last sentence of a solved problem
    code_ask: tuple[str, ...]
    code_say: str
    keeper: tuple[str, ...]  # the needle; the first is also the answer
    keeper_ask: tuple[str, ...]
    tools: Mapping[str, tuple[str, ...]]  # tool -> requests
    tool_says: Mapping[str, str]  # tool -> the sentence after its result
    weathers: tuple[str, ...]  # sunny, rainy, windy, cloudy, foggy
    notes: tuple[str, ...]
    smalltalk: tuple[tuple[str, str], ...]
    refusals: tuple[str, ...]
    unknown: tuple[str, ...]
    languages: Mapping[str, str]  # code -> 'in German'
    answer_in: tuple[str, ...]  # {L} and {q}
    frames: tuple[str, ...]  # plain requests for {X}
    wraps: tuple[str, ...]  # requests for {X} that try to talk the model out of its rules
    comply: tuple[str, ...]  # how an unguarded model would begin; holds no instruction
    borderline: tuple[tuple[str, str], ...]  # harmless {X} that sounds dangerous, and its answer
    hazards: Mapping[str, tuple[str, ...]]  # S1..S14 -> harmful {X}


def load_phrases(lang: str) -> Phrases:
    """Return the phrases of a language."""
    return importlib.import_module(f"herd.data.meadow.phrases_{lang}").PHRASES
