"""Small Python programs and what they print.

The split is by program text: a fifth of the programs never occurs in training.
"""

import random
from dataclasses import dataclass

from herd.data.meadow.arithmetic import apply, draw_pair
from herd.data.meadow.voice import Choir
from herd.data.meadow.world import World

_WORDS = ("cow", "dog", "hen", "pig", "cat", "duck", "goat", "horse", "sheep", "bread", "rice", "soup")
_NAMES = ("add", "plus", "total"), ("minus", "less", "rest"), ("times", "product", "area")


@dataclass(frozen=True)
class Program:
    """A program whose last line prints, and the printed text."""

    source: str
    output: str


def _variables(world: World, rng: random.Random) -> Program:
    sign = rng.choice("+-*")
    a, b = draw_pair(world, rng, sign=sign)
    x, y = rng.sample("abcnmxyz", 2)
    return Program(f"{x} = {a}\n{y} = {x} {sign} {b}\nprint({y})", str(apply(sign, a, b)))


def _function(world: World, rng: random.Random) -> Program:
    sign = rng.choice("+-*")
    a, b = draw_pair(world, rng, sign=sign)
    name = rng.choice(_NAMES["+-*".index(sign)])
    source = f"def {name}(a, b):\n    return a {sign} b\n\nprint({name}({a}, {b}))"
    return Program(source, str(apply(sign, a, b)))


def _loop(_: World, rng: random.Random) -> Program:
    n, k = rng.randint(1, 9), rng.randint(1, 9)
    x = rng.choice(("total", "s", "n", "x"))
    return Program(f"{x} = 0\nfor i in range({n}):\n    {x} += {k}\nprint({x})", str(n * k))


def _list(_: World, rng: random.Random) -> Program:
    values = rng.sample(range(10), rng.randint(3, 5))
    index = rng.randrange(len(values))
    call, output = rng.choice(
        (
            ("xs[0]", values[0]),
            ("xs[-1]", values[-1]),
            ("len(xs)", len(values)),
            ("max(xs)", max(values)),
            ("min(xs)", min(values)),
            (f"xs[{index}]", values[index]),
        )
    )
    return Program(f"xs = {values}\nprint({call})", str(output))


def _word(_: World, rng: random.Random) -> Program:
    word, x, k = rng.choice(_WORDS), rng.choice(("w", "word", "s", "name")), rng.randint(2, 3)
    other = rng.choice(_WORDS)
    call, output = rng.choice(
        (
            (f"{x} * {k}", word * k),
            (f"len({x})", str(len(word))),
            (f"{x} + '{other}'", word + other),
            (f"{x}[0]", word[0]),
        )
    )
    return Program(f"{x} = '{word}'\nprint({call})", output)


def _branch(_: World, rng: random.Random) -> Program:
    a, b = rng.sample(range(100), 2)
    x, sign = rng.choice("abcnmxyz"), rng.choice("<>")
    source = f"{x} = {a}\nif {x} {sign} {b}:\n    print('yes')\nelse:\n    print('no')"
    return Program(source, "yes" if (a < b) == (sign == "<") else "no")


_SHAPES = (_variables, _function, _loop, _list, _word, _branch)


def program(world: World, rng: random.Random, *, held: bool = False) -> Program:
    """Draw a program from the training side of the split, or from the held-out side."""
    while True:
        drawn = rng.choice(_SHAPES)(world, rng)
        if world.trains("program", drawn.source) != held:
            return drawn


def code_text(choir: Choir, rng: random.Random) -> str:
    """Write a page of programs, each with its output as a comment."""
    drawn = (program(choir.world, rng) for _ in range(rng.randint(3, 6)))
    return "\n\n".join(f"{one.source}  # {one.output}" for one in drawn)


def code_context(one: Program) -> str:
    """Return the program as pretraining text shows it, up to where its output belongs."""
    return f"{one.source}  #"
