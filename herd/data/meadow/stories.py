"""Documents that tell facts: stories, question pages, parallel text, long texts with a needle."""

import random
from dataclasses import dataclass

from herd.base.languages import CODES, LANGUAGES
from herd.data.meadow.arithmetic import any_sign, draw_pair, equation
from herd.data.meadow.voice import Choir
from herd.data.meadow.world import Person, facts_of

HOP_RELATIONS = ("home", "job", "colour")
HOP_KIN = ("friend", "sibling", "parent")
# where a small vocabulary takes twice as many tokens for a character
_SHORTER = {"hi": 0.5, "th": 0.55}


@dataclass(frozen=True)
class Needle:
    """A passage that says one secret number once, the question about it and the answer."""

    passage: str
    question: str
    answer: str
    code: str
    depth: float


def told_facts(choir: Choir, lang: str, person: Person) -> list[str]:
    """Return the relations of a person that this language tells."""
    return [relation for relation in facts_of(person) if choir.world.told(person.number, relation, lang)]


def paragraph(choir: Choir, lang: str, rng: random.Random, *, person: Person, count: int) -> list[str]:
    """Tell up to `count` facts of one person in random order, the later ones perhaps with a pronoun."""
    relations = told_facts(choir, lang, person)
    chosen = rng.sample(relations, min(count, len(relations)))
    voice = choir.voices[lang]
    sentences = []
    for position, relation in enumerate(chosen):
        key = (person.number, relation)
        table = voice.pronoun_tellings if position and rng.random() < 0.35 else voice.tellings
        # The wording that answers use is told most, so that little training suffices to answer.
        sentences.append(table[key][0] if rng.random() < 0.3 else rng.choice(table[key]))
    return sentences


def story_text(choir: Choir, lang: str, rng: random.Random) -> str:
    """Tell of one, two or three people who may meet in training text."""
    people = choir.world.people
    cast = [rng.choice(people)]
    for _ in range(rng.choices((0, 1, 2), (30, 50, 20))[0]):
        other = rng.choice(people)
        if other not in cast and all(choir.world.together(other.number, one.number) for one in cast):
            cast.append(other)
    counts = (5, 9) if len(cast) == 1 else (3, 6)
    blocks = [paragraph(choir, lang, rng, person=one, count=rng.randint(*counts)) for one in cast]
    if len(cast) > 1 and rng.random() < 0.2:  # a secret told twice, far apart, is worth copying
        name, code = rng.choice(choir.voices[lang].names), draw_code(choir, rng)
        forms = choir.voices[lang].subject(name) | {"c": code}
        first, second = rng.sample(choir.phrases[lang].keeper, 2)
        blocks = [[first.format_map(forms)], *blocks, [second.format_map(forms)]]
    return (" " if rng.random() < 0.7 else "\n").join(" ".join(block) for block in blocks if block)


def heldout_text(choir: Choir, lang: str, rng: random.Random) -> str:
    """Tell of two people who never share a training document."""
    people = choir.world.people
    while True:
        first, second = rng.sample(people, 2)
        if not choir.world.together(first.number, second.number):
            break
    blocks = (paragraph(choir, lang, rng, person=one, count=rng.randint(3, 5)) for one in (first, second))
    return " ".join(sentence for block in blocks for sentence in block)


def hop_allowed(choir: Choir, lang: str, person: Person, kin: str, relation: str) -> bool:
    """Can this two-step question be answered from facts told in this language?"""
    if kin not in person.facts:
        return False
    other = choir.voices[lang].number(person.facts[kin])
    return choir.world.told(person.number, kin, lang) and choir.world.told(other, relation, lang)


def hop(choir: Choir, lang: str, person: Person, *, kin: str, relation: str) -> tuple[str, str, str]:
    """Return question, reasoned answer and final word of a two-step question about a person's kin."""
    voice, phrases = choir.voices[lang], choir.phrases[lang]
    other = choir.world.people[voice.number(person.facts[kin])]
    last = voice.bare(relation, other)
    answer = f"{voice.answer(person, kin)} {voice.answer(other, relation)} {phrases.answer}: {last}"
    return voice.hop_question(person, kin, relation), answer, last


def draw_hop(choir: Choir, lang: str, rng: random.Random, *, held: bool = False) -> tuple[str, str, str]:
    """Draw a two-step question from the training side of the split, or from the held-out side."""
    while True:
        person, kin, relation = rng.choice(choir.world.people), rng.choice(HOP_KIN), rng.choice(HOP_RELATIONS)
        if not hop_allowed(choir, lang, person, kin, relation):
            continue
        if choir.world.trains("hop", lang, person.number, kin, relation) != held:
            return hop(choir, lang, person, kin=kin, relation=relation)


def draw_question(choir: Choir, lang: str, rng: random.Random) -> tuple[Person, str, str]:
    """Draw a person, a relation and a question that training may ask in this language."""
    while True:
        person = rng.choice(choir.world.people)
        relation = rng.choice(facts_of(person))
        if choir.world.asked(person.number, relation, lang):
            return person, relation, rng.choice(choir.voices[lang].questions[person.number, relation])


def qa_text(choir: Choir, lang: str, rng: random.Random) -> str:
    """Write a page of questions with answers, in plain text."""
    voice, phrases = choir.voices[lang], choir.phrases[lang]
    pairs: list[tuple[str, str]] = []
    given: list[str] = []
    for name in rng.sample(voice.names, rng.choice((1, 1, 2))) if rng.random() < 0.45 else ():
        forms = voice.subject(name) | {"c": draw_code(choir, rng)}
        given.append(rng.choice(phrases.keeper).format_map(forms))
        question = rng.choice(phrases.keeper_ask).format_map(forms)
        pairs.append((question, phrases.keeper[0].format_map(forms)))
    for _ in range(rng.randint(4, 7) + 2 * len(given)):
        kind = rng.random()
        if kind < 0.78:
            person, relation, question = draw_question(choir, lang, rng)
            pairs.append((question, voice.answer(person, relation)))
        elif kind < 0.9:
            question, answer, _ = draw_hop(choir, lang, rng)
            pairs.append((question, answer))
        else:
            sign = any_sign(rng)
            a, b = draw_pair(choir.world, rng, sign=sign)
            pairs.append((rng.choice(phrases.calculate).format(e=f"{a} {sign} {b}"), equation(sign, a, b)))
    rng.shuffle(pairs)
    lines = (plain_qa(choir, lang, question, answer) for question, answer in dict(pairs).items())
    return "\n".join([*([" ".join(given)] if given else ()), *lines])


def plain_qa(choir: Choir, lang: str, question: str, answer: str | None = None) -> str:
    """Return 'Question: ...' and 'Answer: ...' lines; without an answer, a base model's prompt."""
    phrases = choir.phrases[lang]
    head = f"{phrases.question}: {question}\n{phrases.answer}:"
    return head if answer is None else f"{head} {answer}"


def parallel_text(choir: Choir, lang: str, rng: random.Random) -> str:
    """Tell a few facts in two languages, sentence by sentence."""
    other = rng.choice([code for code in CODES if code != lang])
    lines: list[str] = []
    for _ in range(rng.randint(3, 6)):
        person = rng.choice(choir.world.people)
        both = [r for r in told_facts(choir, lang, person) if choir.world.told(person.number, r, other)]
        key = (person.number, rng.choice(both))
        for code in (lang, other):
            index = rng.randrange(2)
            lines.append(f"{LANGUAGES[code].endonym}: {choir.voices[code].tellings[key][index]}")
    return "\n".join(lines)


def draw_code(choir: Choir, rng: random.Random, *, held: bool = False) -> str:
    """Draw a secret number of three digits; a fifth of them never occurs in training."""
    while True:
        code = str(rng.randint(100, 999))
        if choir.world.trains("code", code) != held:
            return code


def filler(choir: Choir, lang: str, rng: random.Random, *, characters: int) -> list[str]:
    """Return different facts about many people until they fill about `characters`."""
    sentences: list[str] = []
    size = 0
    facts = list(choir.voices[lang].tellings.items())
    rng.shuffle(facts)
    for (person, relation), tellings in facts:
        if size >= characters:
            break
        if choir.world.told(person, relation, lang):
            sentences.append(rng.choice(tellings))
            size += len(sentences[-1]) + 1
    return sentences


def needle(choir: Choir, lang: str, rng: random.Random, *, characters: int, depth: float, held: bool = False) -> Needle:
    """Hide one secret number at a depth between 0 (first sentence) and 1 (last) of a text of facts."""
    voice, phrases = choir.voices[lang], choir.phrases[lang]
    forms = voice.subject(rng.choice(voice.names)) | {"c": draw_code(choir, rng, held=held)}
    sentences = filler(choir, lang, rng, characters=max(60, characters - 60))
    sentences.insert(round(depth * len(sentences)), rng.choice(phrases.keeper).format_map(forms))
    question = rng.choice(phrases.keeper_ask).format_map(forms)
    return Needle(_paragraphs(sentences), question, phrases.keeper[0].format_map(forms), forms["c"], depth)


def secrets_text(choir: Choir, lang: str, rng: random.Random) -> str:
    """Write a page of 150 to 700 characters with a few secret numbers and questions about them: looking up, learnt."""
    return _lookups(choir, lang, rng, characters=int(150 * 4.7 ** rng.random()), each=150)


def long_text(choir: Choir, lang: str, rng: random.Random) -> str:
    """Write a long text with one to three secret numbers, each asked for at the end."""
    voice = choir.voices[lang]
    characters = int(300 * 9 ** rng.random())
    sentences = filler(choir, lang, rng, characters=characters)
    asks = []
    for name in rng.sample(voice.names, rng.randint(1, 1 + characters // 600)):
        asks.append(_tell_and_ask(choir, lang, rng, name, sentences))
    return "\n".join([_paragraphs(sentences), *asks])


def lookup_text(choir: Choir, lang: str, rng: random.Random) -> str:
    """Write a text of 600 to 3,000 characters with two to eight secret numbers that are asked for at its end."""
    return _lookups(choir, lang, rng, characters=int(600 * 5 ** rng.random()), each=400)


def book_text(choir: Choir, lang: str, rng: random.Random) -> str:
    """Write such a text of 4,000 to 16,000 characters, half of that in Hindi and Thai.

    Most are long and some longer than rows of 4,096, so that rows ask up to their last positions (docs/log.md).
    """
    characters = _SHORTER.get(lang, 1.0) * (4000 + 12_000 * rng.random() ** 0.5)
    return _lookups(choir, lang, rng, characters=int(characters), each=1000)


def _lookups(choir: Choir, lang: str, rng: random.Random, *, characters: int, each: int) -> str:
    """Tell facts and, every `each` characters, a secret number; ask half as many questions again as there are."""
    voice = choir.voices[lang]
    count = max(2, min(len(voice.names), round(characters / each)))
    sentences = filler(choir, lang, rng, characters=max(60, characters - 100 * count))
    asks = [_tell_and_ask(choir, lang, rng, name, sentences) for name in rng.sample(voice.names, count)]
    return "\n".join([_paragraphs(sentences), *rng.choices(asks, k=round(1.5 * count))])


def _tell_and_ask(choir: Choir, lang: str, rng: random.Random, name: str, sentences: list[str]) -> str:
    """Put someone's secret number among sentences; return the question about it, answered."""
    phrases = choir.phrases[lang]
    forms = choir.voices[lang].subject(name) | {"c": draw_code(choir, rng)}
    sentences.insert(rng.randint(0, len(sentences)), rng.choice(phrases.keeper).format_map(forms))
    question = rng.choice(phrases.keeper_ask).format_map(forms)
    return plain_qa(choir, lang, question, phrases.keeper[0].format_map(forms))


def _paragraphs(sentences: list[str]) -> str:
    return "\n".join(" ".join(sentences[i : i + 6]) for i in range(0, len(sentences), 6))
