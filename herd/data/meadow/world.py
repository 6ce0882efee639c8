"""The meadow's facts, drawn from one seed: who lives where, works as what, likes and keeps what.

Also the split: which questions, tellings, operand pairs and combinations are kept for the benchmarks.
"""

import zlib
from dataclasses import dataclass

from herd.base.seeds import named_rng
from herd.data.meadow.config import MeadowConfig
from herd.data.meadow.people import MEN, STRANGE_MEN, STRANGE_WOMEN, TOWNS, WOMEN, Name, names
from herd.data.meadow.tongue import RELATIONS

N_TOWNS, N_JOBS, N_FOODS, N_COLOURS, N_SPOTS, N_ANIMALS, N_THINGS, N_SIZES = 12, 10, 12, 8, 12, 12, 6, 2
Value = int | tuple[int, int] | tuple[int, int, int]
# Shares of what the benchmarks keep for themselves.
_UNTOLD, _UNASKED, _HELD = 8, 20, 20


@dataclass(frozen=True)
class Person:
    """One character: the value of each relation is an index, a person's number, or a tuple of indices."""

    number: int
    name: Name
    facts: dict[str, Value]

    @property
    def gender(self) -> str:
        return self.name.gender


@dataclass(frozen=True)
class World:
    """All people, towns and strangers (names nobody bears), and what is held out."""

    seed: int
    people: tuple[Person, ...]
    towns: tuple[Name, ...]
    strangers: tuple[Name, ...]

    def bucket(self, *key: object) -> int:
        """Return a fixed number 0..99 for a key: the one source of every split."""
        return zlib.crc32("/".join(map(str, (self.seed, *key))).encode()) % 100

    def told(self, person: int, relation: str, lang: str) -> bool:
        """Is this fact ever told in this language? English, the pivot, tells every fact."""
        return lang == "en" or self.bucket("telling", person, relation, lang) >= _UNTOLD

    def asked(self, person: int, relation: str, lang: str) -> bool:
        """Is this fact ever asked about in this language, in documents or dialogs?"""
        return self.told(person, relation, lang) and self.bucket("asking", person, relation, lang) >= _UNASKED

    def operands(self, sign: str, a: int, b: int) -> bool:
        """May this operand pair be printed in training text? For sums both orders go together."""
        a, b = (min(a, b), max(a, b)) if sign == "+" else (a, b)
        return sign not in "+-" or self.bucket("operands", sign, a, b) >= _HELD

    def trains(self, *key: object) -> bool:
        """Does this combination (a chain of kin, a program, a tool's argument ...) belong to training?"""
        return self.bucket("combination", *key) >= _HELD

    def together(self, a: int, b: int) -> bool:
        """May two people share a training document? Other pairs meet in held-out text only."""
        first, second = min(a, b), max(a, b)
        return (first, second) != (0, 1) and self.bucket("pair", first, second) >= 10


def make_world(config: MeadowConfig) -> World:
    """Draw the world: families of a parent and two children, every value uniform: chance is real."""
    rng = named_rng(config.seed, "meadow/world")
    half = config.characters // 2
    cast = [*names(WOMEN, "f")[:half], *names(MEN, "m")[:half]]
    rng.shuffle(cast)
    families = config.characters // 3
    friends = list(range(config.characters))
    rng.shuffle(friends)
    partner = {a: friends[i ^ 1] for i, a in enumerate(friends)}
    people = []
    for number, name in enumerate(cast):
        facts: dict[str, Value] = {
            "home": rng.randrange(N_TOWNS),
            "job": rng.randrange(N_JOBS),
            "food": rng.randrange(N_FOODS),
            "colour": rng.randrange(N_COLOURS),
            "spot": rng.randrange(N_SPOTS),
            "pet": (rng.randrange(N_ANIMALS), rng.randrange(N_COLOURS), rng.randrange(N_SIZES)),
            "flock": (rng.randrange(N_ANIMALS), rng.randint(2, 9)),
            "friend": partner[number],
        }
        if number >= families:  # the first third are the parents
            child = number - families
            facts["parent"] = child // 2
            facts["sibling"] = families + (child ^ 1)
        people.append(Person(number, name, facts))
    strangers = [*names(STRANGE_WOMEN, "f"), *names(STRANGE_MEN, "m")]
    return World(config.seed, tuple(people), names(TOWNS), tuple(strangers))


def facts_of(person: Person) -> list[str]:
    """Return the relations that hold for a person, in the fixed order."""
    return [relation for relation in RELATIONS if relation in person.facts]
