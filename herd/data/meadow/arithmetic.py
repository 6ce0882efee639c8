"""Sums as equations, as sentences and as word problems with one or two steps.

The second operand is a single digit: a model of one or two million parameters finds the rule for that within
some hundred steps of training, which it doesn't for two numbers of two digits. A fifth of the operand pairs of
+ and - never occur in training text; products up to 9 x 9 all do, for a times table is learnt by heart.
"""

import random
from dataclasses import dataclass

from herd.data.meadow.tongue import choose
from herd.data.meadow.voice import Choir
from herd.data.meadow.world import N_THINGS, World

_APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@dataclass(frozen=True)
class Problem:
    """A question, its worked answer and the number it ends with; `key` names it in the split."""

    question: str
    answer: str
    result: int
    key: tuple[object, ...]


def apply(sign: str, a: int, b: int) -> int:
    """Return a sign b."""
    return _APPLY[sign](a, b)


def draw_pair(world: World, rng: random.Random, *, sign: str, held: bool = False) -> tuple[int, int]:
    """Draw operands: a number and a digit 1..9, three quarters of the numbers up to 20, the rest up to 99.

    Products go up to 9 x 9; no result is negative.
    """
    while True:
        if sign == "*":
            return rng.randint(0, 9), rng.randint(0, 9)
        a, b = rng.randint(0, 20 if rng.random() < 0.75 else 99), rng.randint(1, 9)
        if (sign == "+" or a >= b) and world.operands(sign, a, b) != held:
            return a, b


def equation(sign: str, a: int, b: int) -> str:
    """Return 'a + b = c.'"""
    return f"{a} {sign} {b} = {apply(sign, a, b)}."


def any_sign(rng: random.Random) -> str:
    """Draw a sign: sums and differences more often than products."""
    return rng.choices("+-*", (45, 45, 10))[0]


def problem(choir: Choir, lang: str, rng: random.Random, *, kind: str, held: bool = False) -> Problem:
    """Make a word problem of kind '+', '-', '*', '+-' or '*+', from operand pairs that training may print.

    `held` asks for a combination of numbers that training never uses in this language (two steps only).
    """
    world = choir.world
    while True:
        drawn = _numbers(world, rng, kind)
        if drawn is None:
            continue
        a, b, c, steps, result = drawn
        key = ("problem", lang, kind, a, b, c)
        if len(kind) == 1 or world.trains(*key) != held:
            break
    forms, gender = choir.voices[lang].thing_forms(rng.choice(choir.voices[lang].names), rng.randrange(N_THINGS))
    phrases = choir.phrases[lang]
    numbers = {"a": str(a), "b": str(b), "c": str(c), "r": str(result)}
    woman = forms["N"] in _women(choir, lang)
    pattern = choose(rng.choice(phrases.problems[kind]), person="f" if woman else "m", value=gender)
    answer = " ".join([*steps, phrases.has.format_map(forms | numbers)])
    return Problem(pattern.format_map(forms | numbers), answer, result, key)


def _numbers(world: World, rng: random.Random, kind: str) -> tuple[int, int, int, list[str], int] | None:
    a, b, c = rng.randint(2, 20), rng.randint(2, 9), rng.randint(2, 9)
    if kind[0] == "*":
        a, b = rng.randint(2, 9), rng.randint(2, 9)
    if kind == "-" and a < b:
        a, b = b, a
    if not world.operands(kind[0], a, b):
        return None
    steps, result = [equation(kind[0], a, b)], apply(kind[0], a, b)
    if len(kind) == 2:
        if not world.operands(kind[1], result, c):
            return None
        steps.append(equation(kind[1], result, c))
        result = apply(kind[1], result, c)
    return (a, b, c, steps, result) if result >= 2 else None


def _women(choir: Choir, lang: str) -> set[str]:
    return {person.name.spelt(lang) for person in choir.world.people if person.gender == "f"}


def arithmetic_text(choir: Choir, lang: str, rng: random.Random) -> str:
    """Write a page of sums: equations, sums in words and solved word problems."""
    phrases, world = choir.phrases[lang], choir.world
    parts: list[str] = []
    for _ in range(rng.randint(8, 20)):
        sign = any_sign(rng)
        a, b = draw_pair(world, rng, sign=sign)
        style = rng.random()
        if style < 0.62:
            parts.append(equation(sign, a, b))
        elif style < 0.78:
            parts.append(phrases.sums[sign].format(a=a, b=b, r=apply(sign, a, b)))
        elif style < 0.88:
            question = rng.choice(phrases.calculate).format(e=f"{a} {sign} {b}")
            parts.append(f"{phrases.question}: {question}\n{phrases.answer}: {equation(sign, a, b)}")
        else:
            story = problem(choir, lang, rng, kind=rng.choice(("+", "-", "*", "+-", "*+")))
            parts.append(f"{phrases.question}: {story.question}\n{phrases.answer}: {story.answer}")
    return "\n".join(parts)
