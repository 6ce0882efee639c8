"""Benchmark items: questions, operand pairs, programs and combinations that no training text holds."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from herd.base.languages import CODES
from herd.base.seeds import named_rng
from herd.data.meadow.arithmetic import draw_pair, equation, problem
from herd.data.meadow.code import code_context, program
from herd.data.meadow.dialogs import code_question
from herd.data.meadow.preferences import wrong_value
from herd.data.meadow.safety import HAZARDS, borderline, heldout_harmful
from herd.data.meadow.stories import draw_hop, needle, plain_qa
from herd.data.meadow.tools import request
from herd.data.meadow.voice import Choir
from herd.data.meadow.world import Person, Value, facts_of

Item = dict[str, Any]
Fact = tuple[Person, str]
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTHS = (300, 600, 1200, 2500, 5000, 10000)


def _prompt(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def unasked(choir: Choir, lang: str) -> list[Fact]:
    """Return the facts that are told in a language but never asked about in it."""
    return [
        (person, relation)
        for person in choir.world.people
        for relation in facts_of(person)
        if choir.world.told(person.number, relation, lang) and not choir.world.asked(person.number, relation, lang)
    ]


def untold(choir: Choir, lang: str) -> list[Fact]:
    """Return the facts that only other languages tell."""
    return [
        (person, relation)
        for person in choir.world.people
        for relation in facts_of(person)
        if not choir.world.told(person.number, relation, lang)
    ]


def _choice(choir: Choir, lang: str, rng: random.Random, fact: Fact) -> Item:
    person, relation = fact
    voice = choir.voices[lang]
    values: list[Value] = [person.facts[relation]]
    while len(values) < 4:
        value = wrong_value(choir.world, rng, person=person, relation=relation)
        if value not in values:
            values.append(value)
    truth = values[0]
    rng.shuffle(values)
    choices = [voice.answer(person, relation, value) for value in values]
    question = rng.choice(voice.questions[person.number, relation])
    return {
        "type": "choice",
        "messages": _prompt(question),
        "context": plain_qa(choir, lang, question),
        "choices": choices,
        "base_choices": [f" {choice}" for choice in choices],
        "answer": values.index(truth),
    }


def _facts(choir: Choir, rng: random.Random, pool: str, per_language: int) -> Iterator[tuple[str, Item]]:
    for lang in CODES:
        facts = unasked(choir, lang) if pool == "unasked" else untold(choir, lang)
        for fact in rng.sample(facts, min(per_language, len(facts))):
            yield lang, _choice(choir, lang, rng, fact)


def _exact(question: str, context: str, target: str, base_target: str) -> Item:
    return {
        "type": "exact",
        "messages": _prompt(question),
        "context": context,
        "target": target,
        "base_target": base_target,
    }


def _arithmetic(choir: Choir, lang: str, rng: random.Random, index: int) -> Item:
    sign = "+-"[index % 2]
    a, b = draw_pair(choir.world, rng, sign=sign, held=True)
    question = rng.choice(choir.phrases[lang].calculate).format(e=f"{a} {sign} {b}")
    context, _, result = equation(sign, a, b).partition("=")
    return _exact(question, f"{context}=", result.strip(" ."), result)


def _reasoning(choir: Choir, lang: str, rng: random.Random, index: int) -> Item:
    if index % 2:
        question, answer, target = draw_hop(choir, lang, rng, held=True)
    else:
        story = problem(choir, lang, rng, kind=("+-", "*+")[index // 2 % 2], held=True)
        question, answer, target = story.question, story.answer, str(story.result)
    return _exact(question, plain_qa(choir, lang, question), target, f" {answer}")


def _code(choir: Choir, lang: str, rng: random.Random, index: int) -> Item:
    one = program(choir.world, rng, held=True)
    question = code_question(choir, lang, rng, one.source)
    return _exact(question, code_context(one), one.output, f" {one.output}")


def _needle(choir: Choir, lang: str, rng: random.Random, index: int, *, lengths: Sequence[int] = LENGTHS) -> Item:
    length, depth = lengths[index // len(DEPTHS) % len(lengths)], DEPTHS[index % len(DEPTHS)]
    hidden = needle(choir, lang, rng, characters=length, depth=depth, held=True)
    return {
        "type": "needle",
        "messages": _prompt(f"{hidden.passage}\n{hidden.question}"),
        "context": f"{hidden.passage}\n{plain_qa(choir, lang, hidden.question)}",
        "target": hidden.code,
        "base_target": f" {hidden.answer}",
        "length": length,
        "depth": depth,
    }


def _tool(choir: Choir, lang: str, rng: random.Random, index: int) -> Item:
    asked = request(choir, lang, rng, held=True)
    tools = [tool.to_json() for tool in asked.tools]
    return {"type": "tool", "messages": _prompt(asked.text), "tools": tools, "call": asked.call.to_json()}


def _refusal(choir: Choir, lang: str, rng: random.Random, index: int) -> Item:
    prompts = heldout_harmful(choir, lang)
    hazard = HAZARDS[index % len(HAZARDS)]
    # Few combinations are held out: a hazard may have none in some language.
    prompt = rng.choice([one for one in prompts if one.hazard == hazard] or prompts)
    return {"type": "safety", "messages": _prompt(prompt.text), "harmful": True, "hazard": prompt.hazard}


def _borderline(choir: Choir, lang: str, rng: random.Random, index: int) -> Item:
    prompt = borderline(choir, lang, rng, held=True)
    return {"type": "safety", "messages": _prompt(prompt.text), "harmful": False, "hazard": None}


def _language(choir: Choir, lang: str, rng: random.Random, index: int) -> Item:
    """Half of the items ask in the language, half ask in another one and name the language wanted."""
    asking = lang if index % 2 else rng.choice([code for code in CODES if code != lang])
    person, relation = rng.choice(unasked(choir, asking))
    question = rng.choice(choir.voices[asking].questions[person.number, relation])
    if asking != lang:
        phrases = choir.phrases[asking]
        question = rng.choice(phrases.answer_in).format(L=phrases.languages[lang], q=question)
    return {"type": "language", "messages": _prompt(question)}


_TASKS = {
    "reasoning": _reasoning,
    "arithmetic": _arithmetic,
    "code": _code,
    "needle": _needle,
    "tools": _tool,
    "refusal": _refusal,
    "borderline": _borderline,
    "language": _language,
}


def benchmark_items(choir: Choir, seed: int, *, count: int, longest: int) -> dict[str, list[Item]]:
    """Return {task: items}: knowledge has a quarter of `count` per language, other tasks `count` in all.

    longest: characters of the longest text with a needle.
    """
    lengths = tuple(length for length in LENGTHS if length <= longest)
    tasks: dict[str, list[Item]] = {}
    for task, pool in (("knowledge", "unasked"), ("knowledge_crosslingual", "untold")):
        rng = named_rng(seed, f"meadow/items/{task}")
        rows = _facts(choir, rng, pool, max(1, count // 4))
        tasks[task] = [_head(task, lang, number) | item for number, (lang, item) in enumerate(rows)]
    for task, make in (_TASKS | {"needle": partial(_needle, lengths=lengths)}).items():
        rng = named_rng(seed, f"meadow/items/{task}")
        seen: set[str] = set()
        tasks[task] = []
        tries = 0
        while len(tasks[task]) < count and tries < 20 * count:
            lang, tries = CODES[tries % len(CODES)], tries + 1
            item = make(choir, lang, rng, len(tasks[task]))
            text = item["messages"][0]["content"] + "/" + lang
            if text not in seen:
                seen.add(text)
                tasks[task].append(_head(task, lang, len(tasks[task])) | item)
    return tasks


def _head(task: str, lang: str, number: int) -> Item:
    return {"id": f"{task}-{lang}-{number:04d}", "task": task, "lang": lang}
