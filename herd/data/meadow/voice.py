"""One language's way to tell the world: facts to statements, questions and answers, kept ready as text."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from herd.base.languages import CODES
from herd.data.meadow import grammar
from herd.data.meadow.people import Name
from herd.data.meadow.phrases import Phrases, load_phrases
from herd.data.meadow.tongue import RELATIONS, Noun, Patterns, Tongue, choose, nouns, pairs
from herd.data.meadow.world import Person, Value, World

Forms = dict[str, str]


def load_tongue(lang: str) -> Tongue:
    """Return the lexicon and patterns of a language."""
    return importlib.import_module(f"herd.data.meadow.tongue_{lang}").TONGUE


@dataclass(frozen=True)
class Choir:
    """The world and a voice and phrases for each of the eight languages."""

    world: World
    voices: Mapping[str, "Voice"]
    phrases: Mapping[str, Phrases]

    @classmethod
    def gather(cls, world: World) -> "Choir":
        """Make all voices of one world."""
        return cls(
            world,
            {lang: Voice(lang, world) for lang in CODES},
            {lang: load_phrases(lang) for lang in CODES},
        )


class Voice:
    """Speaks one language about one world."""

    def __init__(self, lang: str, world: World) -> None:
        self.lang = lang
        self.world = world
        self.tongue = load_tongue(lang)
        self.animals, self.things = nouns(self.tongue.animals), nouns(self.tongue.things)
        self.foods, self.spots = nouns(self.tongue.foods), nouns(self.tongue.spots)
        self.jobs, self.colours = pairs(self.tongue.jobs), pairs(self.tongue.colours)
        self.hues = tuple(one for one, _ in pairs(self.tongue.hues))
        self.sizes = pairs(self.tongue.sizes)
        self.names = tuple(person.name.spelt(lang) for person in world.people)
        self.towns = tuple(town.spelt(lang) for town in world.towns)

    def subject(self, name: str) -> Forms:
        """Return the forms of a person's name: subject, genitive, after French and Italian prepositions."""
        forms = {"N": name}
        if self.lang == "en":
            forms["G"] = f"{name}'s"
        elif self.lang == "de":
            forms["G"] = f"{name}s"
        elif self.lang == "fr":
            forms |= {"deN": grammar.elided("de", name), "queN": grammar.elided("que", name)}
        elif self.lang == "it":
            ad = "ad" if name[0] in "Aa" else "a"
            forms |= {"aN": f"{ad} {name}", "AN": f"{ad.capitalize()} {name}"}
        return forms

    def value(self, relation: str, value: Value, gender: str) -> tuple[Forms, str]:
        """Return the forms of a value and its grammatical gender; `gender` is the person's."""
        if not isinstance(value, int):
            return self._pet(*value) if len(value) == 3 else self._flock(*value)
        match relation:
            case "home":
                return {"V": self.towns[value], "bare": self.towns[value]}, "f"
            case "job":
                word = self.jobs[value][gender == "f"]
                return {"V": grammar.indefinite(self.lang, word), "bare": word}, gender
            case "food":
                return self._food(self.foods[value])
            case "colour":
                hue = self.hues[value]
                return {"V": hue, "bare": hue.split(" ")[-1]}, "m"
            case "spot":
                return self._spot(self.spots[value])
            case _:
                name = self.names[value]
                other = self.world.people[value].gender
                return {"V": name, "bare": name, "deV": grammar.elided("de", name)}, other

    def _food(self, noun: Noun) -> tuple[Forms, str]:
        plain = self.lang in ("en", "de", "hi", "th")
        whole = noun.one if plain else grammar.definite(self.lang, noun)
        part = grammar.contracted("fr", "of", noun) if self.lang == "fr" else noun.one
        return {"V": whole, "bare": noun.one, "part": part}, noun.gender

    def _spot(self, noun: Noun) -> tuple[Forms, str]:
        forms = {word: grammar.contracted(self.lang, word, noun) for word in ("to", "of", "in", "near")}
        return {"V": grammar.definite(self.lang, noun), "bare": noun.one, **forms}, noun.gender

    def _pet(self, animal: int, colour: int, size: int) -> tuple[Forms, str]:
        noun = self.animals[animal]
        accusative, nominative = (
            grammar.pet_phrase(self.lang, noun, colour=self.colours[colour], size=self.sizes[size], case=case)
            for case in ("acc", "nom")
        )
        return {"V": accusative, "nom": nominative}, noun.gender

    def _flock(self, animal: int, count: int) -> tuple[Forms, str]:
        noun = self.animals[animal]
        many = noun.one if self.lang == "th" else noun.many
        forms = {"V": many, "n": str(count), "obl": noun.oblique, "cl": noun.many}
        return forms | {"deP": grammar.elided("de", many), "bare": str(count)}, noun.gender

    def fill(self, pattern: str, person: Person, *, relation: str, value: Value) -> str:
        """Write one pattern about a person and a value."""
        forms, gender = self.value(relation, value, person.gender)
        forms = forms | self.subject(self.names[person.number])
        return choose(pattern, person=person.gender, value=gender).format_map(forms)

    def _all(self, patterns: Patterns) -> dict[tuple[int, str], tuple[str, ...]]:
        return {
            (person.number, relation): tuple(
                self.fill(pattern, person, relation=relation, value=person.facts[relation])
                for pattern in patterns[relation]
            )
            for person in self.world.people
            for relation in RELATIONS
            if relation in person.facts
        }

    @cached_property
    def tellings(self) -> dict[tuple[int, str], tuple[str, ...]]:
        """(person, relation) -> statements naming the person; the first is the one dialogs answer with."""
        return self._all(self.tongue.tell)

    @cached_property
    def pronoun_tellings(self) -> dict[tuple[int, str], tuple[str, ...]]:
        """(person, relation) -> statements that follow a mention of the person."""
        return self._all(self.tongue.tell_pronoun)

    @cached_property
    def questions(self) -> dict[tuple[int, str], tuple[str, ...]]:
        """(person, relation) -> questions naming the person."""
        return self._all(self.tongue.ask)

    @cached_property
    def follow_ups(self) -> dict[tuple[int, str], tuple[str, ...]]:
        """(person, relation) -> questions with a pronoun."""
        return self._all(self.tongue.ask_pronoun)

    def answer(self, person: Person, relation: str, value: Value | None = None) -> str:
        """Return the full-sentence answer, with another value than the true one if given."""
        value = person.facts[relation] if value is None else value
        return self.fill(self.tongue.tell[relation][0], person, relation=relation, value=value)

    def kin(self, person: Person, relation: str) -> str:
        """Return a noun phrase such as 'the sister of Emma'."""
        return self.fill(self.tongue.kin[relation], person, relation=relation, value=person.facts[relation])

    def hop_question(self, person: Person, kin: str, relation: str) -> str:
        """Return a question about the kin of a person, such as 'Where does the sister of Emma live?'."""
        other = self.world.people[self.number(person.facts[kin])]
        phrase = self.kin(person, kin)
        female, honoured = other.gender == "f", kin == "parent"
        forms = {
            "K": phrase,
            "K_obl": phrase.replace(" का ", " के ").replace(" अच्छा ", " अच्छे "),
            "hai": ("ती" if female else "ते" if honoured else "ता") + (" हैं" if honoured else " है"),
        }
        return choose(self.tongue.hop[relation], person=person.gender, value=other.gender).format_map(forms)

    def bare(self, relation: str, person: Person) -> str:
        """Return the value alone, without an article: the last word of a reasoned answer."""
        return self.value(relation, person.facts[relation], person.gender)[0]["bare"]

    def ask_stranger(self, name: Name, relation: str, index: int) -> str:
        """Return a question about somebody who isn't in the world."""
        patterns = self.tongue.ask[relation]
        pattern = choose(patterns[index % len(patterns)], person=name.gender)
        return pattern.format_map(self.subject(name.spelt(self.lang)))

    def thing_forms(self, name: str, thing: int) -> tuple[Forms, str]:
        """Return the forms a word problem needs of a name and a thing, and the thing's gender."""
        noun = self.things[thing]
        many = noun.one if self.lang == "th" else noun.many
        forms = {"T": many, "O": noun.oblique, "cl": noun.many, "deT": grammar.elided("de", many)}
        return self.subject(name) | forms, noun.gender

    @staticmethod
    def number(value: Value) -> int:
        """Return the value of a relation between people as the other person's number."""
        assert isinstance(value, int)
        return value
