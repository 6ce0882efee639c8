"""What the meadow knows about one language: nouns with gender, plural or classifier, and sentence patterns.

Lists of words are text tables: entries apart by ", ", fields by a space ("_" is a space inside a word).
In a pattern, {V} is the value, {N} the person, [m|f] follows the person's gender and <m|f|n> the value's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

Patterns = Mapping[str, tuple[str, ...]]
RELATIONS = ("home", "job", "food", "colour", "spot", "pet", "flock", "friend", "sibling", "parent")


@dataclass(frozen=True)
class Noun:
    """One noun: `many` is the plural (the classifier in Thai), `oblique` the plural form for other cases."""

    gender: str
    one: str
    many: str = ""
    oblique: str = ""


@dataclass(frozen=True)
class Tongue:
    """The lexicon and the patterns of one language."""

    code: str
    animals: str  # gender one many [oblique]
    things: str  # gender one many [oblique]
    foods: str  # gender one
    spots: str  # gender one
    jobs: str  # masculine feminine
    colours: str  # adjective: masculine feminine (a stem in German)
    hues: str  # the colour itself, as 'red' in 'her favourite colour is red'
    sizes: str  # adjective: masculine feminine (a stem in German)
    tell: Patterns  # relation -> statements that name the person
    tell_pronoun: Patterns  # relation -> statements with a pronoun, after the person was named
    ask: Patterns  # relation -> questions
    ask_pronoun: Patterns  # relation -> follow-up questions
    hop: Mapping[str, str]  # relation -> question about {K}, which is one of `kin`
    kin: Mapping[str, str]  # kin relation -> 'the sister of Emma'


def nouns(table: str) -> tuple[Noun, ...]:
    """Read a table of nouns."""
    return tuple(Noun(*(field.replace("_", " ") for field in entry.split(" "))) for entry in table.split(", "))


def pairs(table: str) -> tuple[tuple[str, str], ...]:
    """Read a table of masculine and feminine forms; one form serves for both."""
    rows = [[field.replace("_", " ") for field in entry.split(" ")] for entry in table.split(", ")]
    return tuple((row[0], row[-1]) for row in rows)


_PERSON = re.compile(r"\[([^|\]]*)\|([^\]]*)\]")
_VALUE = re.compile(r"<([^|>]*)\|([^|>]*)(?:\|([^>]*))?>")


def choose(pattern: str, *, person: str = "m", value: str = "m") -> str:
    """Resolve the [m|f] and <m|f|n> marks of a pattern; a missing neuter falls back to the masculine."""
    pattern = _PERSON.sub(lambda match: match[2] if person == "f" else match[1], pattern)
    if "<" not in pattern:
        return pattern
    index = {"m": 1, "f": 2, "n": 3}.get(value, 1)
    return _VALUE.sub(lambda match: match[index] if match[index] is not None else match[1], pattern)
