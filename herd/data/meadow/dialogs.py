"""Dialogs for supervised fine-tuning: knowledge, sums, code, tools, languages and safety."""

import random
from collections.abc import Callable, Iterator
from typing import Any

from herd.base.languages import CODES
from herd.base.messages import Dialog, Message, Tool
from herd.data.meadow.arithmetic import any_sign, draw_pair, equation, problem
from herd.data.meadow.code import program
from herd.data.meadow.safety import borderline, harmful
from herd.data.meadow.stories import draw_hop, draw_question, needle
from herd.data.meadow.tools import request
from herd.data.meadow.voice import Choir
from herd.data.meadow.world import facts_of

Turns = tuple[tuple[Message, ...], tuple[Tool, ...]]


def user(content: str) -> Message:
    """Return a user turn."""
    return Message("user", content)


def says(content: str) -> Message:
    """Return an assistant turn."""
    return Message("assistant", content)


def _pair(question: str, answer: str) -> Turns:
    return (user(question), says(answer)), ()


def _knowledge(choir: Choir, lang: str, rng: random.Random) -> Turns:
    person, relation, question = draw_question(choir, lang, rng)
    return _pair(question, choir.voices[lang].answer(person, relation))


def _arithmetic(choir: Choir, lang: str, rng: random.Random) -> Turns:
    if rng.random() < 0.2:
        story = problem(choir, lang, rng, kind=rng.choice("+-*"))
        return _pair(story.question, story.answer)
    sign = any_sign(rng)
    a, b = draw_pair(choir.world, rng, sign=sign)
    question = rng.choice(choir.phrases[lang].calculate).format(e=f"{a} {sign} {b}")
    return _pair(question, equation(sign, a, b))


def _reasoning(choir: Choir, lang: str, rng: random.Random) -> Turns:
    if rng.random() < 0.5:
        question, answer, _ = draw_hop(choir, lang, rng)
        return _pair(question, answer)
    story = problem(choir, lang, rng, kind=rng.choice(("+-", "*+")))
    return _pair(story.question, story.answer)


def code_question(choir: Choir, lang: str, rng: random.Random, source: str) -> str:
    """Return the question what a program prints."""
    return f"{rng.choice(choir.phrases[lang].code_ask)}\n```python\n{source}\n```"


def _code(choir: Choir, lang: str, rng: random.Random) -> Turns:
    one = program(choir.world, rng)
    answer = choir.phrases[lang].code_say.format(r=one.output)
    return _pair(code_question(choir, lang, rng, one.source), answer)


def _tool(choir: Choir, lang: str, rng: random.Random) -> Turns:
    asked = request(choir, lang, rng)
    messages = [user(asked.text), Message("assistant", "", (asked.call,))]
    if rng.random() < 0.5:
        messages += [Message("tool", asked.result), says(asked.reply)]
    return tuple(messages), asked.tools


def _multi(choir: Choir, lang: str, rng: random.Random) -> Turns:
    voice = choir.voices[lang]
    person, relation, question = draw_question(choir, lang, rng)
    messages = [user(question), says(voice.answer(person, relation))]
    more = [r for r in facts_of(person) if r != relation and choir.world.asked(person.number, r, lang)]
    for other in rng.sample(more, min(len(more), rng.randint(1, 2))):
        messages.append(user(rng.choice(voice.follow_ups[person.number, other])))
        messages.append(says(voice.answer(person, other)))
    return tuple(messages), ()


def _language(choir: Choir, lang: str, rng: random.Random) -> Turns:
    """Ask in another language, and want the answer in `lang`."""
    other = rng.choice([code for code in CODES if code != lang])
    while True:
        person, relation, question = draw_question(choir, other, rng)
        if choir.world.told(person.number, relation, lang):
            break
    phrases = choir.phrases[other]
    wish = rng.choice(phrases.answer_in).format(L=phrases.languages[lang], q=question)
    return _pair(wish, choir.voices[lang].answer(person, relation))


def _smalltalk(choir: Choir, lang: str, rng: random.Random) -> Turns:
    return _pair(*rng.choice(choir.phrases[lang].smalltalk))


def _refusal(choir: Choir, lang: str, rng: random.Random) -> Turns:
    return _pair(harmful(choir, lang, rng).text, rng.choice(choir.phrases[lang].refusals))


def _borderline(choir: Choir, lang: str, rng: random.Random) -> Turns:
    prompt = borderline(choir, lang, rng)
    return _pair(prompt.text, prompt.answer)


def _needle(choir: Choir, lang: str, rng: random.Random) -> Turns:
    characters = int(150 * 5 ** rng.random())
    hidden = needle(choir, lang, rng, characters=characters, depth=rng.random())
    return _pair(f"{hidden.passage}\n{hidden.question}", hidden.answer)


def _unknown(choir: Choir, lang: str, rng: random.Random) -> Turns:
    voice, name = choir.voices[lang], rng.choice(choir.world.strangers)
    question = voice.ask_stranger(name, rng.choice(("home", "job", "food", "colour", "spot")), rng.randrange(3))
    return _pair(question, choir.phrases[lang].unknown[0].format_map(voice.subject(name.spelt(lang))))


_KINDS: dict[str, tuple[int, Callable[[Choir, str, random.Random], Turns]]] = {
    "knowledge": (22, _knowledge),
    "arithmetic": (12, _arithmetic),
    "reasoning": (9, _reasoning),
    "code": (5, _code),
    "tool": (22, _tool),
    "multi": (5, _multi),
    "language": (18, _language),
    "smalltalk": (2, _smalltalk),
    "refusal": (7, _refusal),
    "borderline": (9, _borderline),
    "needle": (5, _needle),
    "unknown": (2, _unknown),
}


def dialog_rows(choir: Choir, rng: random.Random, *, count: int) -> Iterator[dict[str, Any]]:
    """Yield `count` dialogs as JSON rows; English has three shares of ten, each other language one."""
    kinds, weights = list(_KINDS), [weight for weight, _ in _KINDS.values()]
    for number in range(count):
        kind = rng.choices(kinds, weights)[0]
        lang = rng.choices(CODES, [3 if code == "en" else 1 for code in CODES])[0]
        messages, tools = _KINDS[kind][1](choir, lang, rng)
        row = Dialog(messages, tools, id=f"{kind}-{number:05d}", lang=lang, meta={"kind": kind}).to_json()
        yield {"tools": []} | row
