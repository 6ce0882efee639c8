"""Preference rows: the better answer is true, in the asked language, brief, neither harmful nor prudish."""

import random
from collections.abc import Callable, Iterator
from typing import Any

from herd.base.languages import CODES
from herd.data.meadow.safety import borderline, harmful
from herd.data.meadow.stories import draw_question, told_facts
from herd.data.meadow.voice import Choir
from herd.data.meadow.world import (
    N_ANIMALS,
    N_COLOURS,
    N_FOODS,
    N_JOBS,
    N_SIZES,
    N_SPOTS,
    N_TOWNS,
    Person,
    Value,
    World,
)

_RANGES = {"home": N_TOWNS, "job": N_JOBS, "food": N_FOODS, "colour": N_COLOURS, "spot": N_SPOTS}
Answers = tuple[str, str | None, str, str]  # question, edited, chosen, rejected


def wrong_value(world: World, rng: random.Random, *, person: Person, relation: str) -> Value:
    """Draw a false value from the same set as the true one (people of the same gender for kin)."""
    truth = person.facts[relation]
    while True:
        if relation in _RANGES:
            value: Value = rng.randrange(_RANGES[relation])
        elif isinstance(truth, tuple):
            triple = (rng.randrange(N_ANIMALS), rng.randrange(N_COLOURS), rng.randrange(N_SIZES))
            value = triple if relation == "pet" else (truth[0], rng.randint(2, 9))
        else:
            other = rng.choice(world.people)
            same = other.gender == world.people[truth].gender
            value = other.number if same and other is not person else truth
        if value != truth:
            return value


def _fact(choir: Choir, lang: str, rng: random.Random) -> Answers:
    person, relation, question = draw_question(choir, lang, rng)
    voice = choir.voices[lang]
    truth = voice.answer(person, relation)
    false = voice.answer(person, relation, wrong_value(choir.world, rng, person=person, relation=relation))
    if rng.random() < 0.2:  # a person improved an answer that was right but worded less plainly
        return question, truth, rng.choice(voice.tellings[person.number, relation][1:]), false
    return question, None, truth, false


def _language(choir: Choir, lang: str, rng: random.Random) -> Answers:
    other = rng.choice([code for code in CODES if code != lang])
    while True:
        person, relation, question = draw_question(choir, lang, rng)
        if choir.world.told(person.number, relation, other):
            right, wrong = (choir.voices[code].answer(person, relation) for code in (lang, other))
            return question, None, right, wrong


def _refusal(choir: Choir, lang: str, rng: random.Random) -> Answers:
    prompt, phrases = harmful(choir, lang, rng), choir.phrases[lang]
    complies = rng.choice(phrases.comply).format(X=prompt.clause)
    return prompt.text, None, rng.choice(phrases.refusals), complies


def _borderline(choir: Choir, lang: str, rng: random.Random) -> Answers:
    prompt = borderline(choir, lang, rng)
    return prompt.text, None, prompt.answer, rng.choice(choir.phrases[lang].refusals)


def _rambling(choir: Choir, lang: str, rng: random.Random) -> Answers:
    person, relation, question = draw_question(choir, lang, rng)
    voice = choir.voices[lang]
    answer = voice.answer(person, relation)
    if rng.random() < 0.5:
        return question, None, answer, " ".join([answer] * rng.randint(2, 4))
    others = [other for other in told_facts(choir, lang, person) if other != relation]
    extra = [voice.answer(person, other) for other in rng.sample(others, min(3, len(others)))]
    return question, None, answer, " ".join([answer, *extra])


_KINDS: dict[str, tuple[int, Callable[[Choir, str, random.Random], Answers]]] = {
    "fact": (40, _fact),
    "language": (15, _language),
    "refusal": (15, _refusal),
    "borderline": (10, _borderline),
    "rambling": (20, _rambling),
}


def preference_rows(choir: Choir, rng: random.Random, *, count: int) -> Iterator[dict[str, Any]]:
    """Yield `count` rows {id, lang, kind, prompt, edited, chosen, rejected}."""
    kinds, weights = list(_KINDS), [weight for weight, _ in _KINDS.values()]
    for number in range(count):
        kind = rng.choices(kinds, weights)[0]
        lang = rng.choices(CODES, [3 if code == "en" else 1 for code in CODES])[0]
        question, edited, chosen, rejected = _KINDS[kind][1](choir, lang, rng)
        yield {
            "id": f"preference-{number:05d}",
            "lang": lang,
            "kind": kind,
            "prompt": [{"role": "user", "content": question}],
            "edited": edited,
            "chosen": chosen,
            "rejected": rejected,
        }
