"""The tools a meadow dialog may offer, and requests that need exactly one call of one of them."""

import json
import random
from dataclasses import dataclass
from typing import Any

from herd.base.languages import CODES
from herd.base.messages import Tool, ToolCall
from herd.data.meadow.arithmetic import apply
from herd.data.meadow.voice import Choir
from herd.data.meadow.world import N_ANIMALS, World


def _tool(name: str, description: str, /, **parameters: str) -> Tool:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return Tool(name, description, schema)


def tool_catalogue() -> dict[str, Tool]:
    """Return the six tools by name."""
    tools = (
        _tool("weather", "Get the weather in a city.", city="string"),
        _tool("calculator", "Calculate an expression.", expression="string"),
        _tool("add_note", "Write down a note.", text="string"),
        _tool("set_timer", "Set a timer in minutes.", minutes="integer"),
        _tool("translate", "Translate a word into a language.", word="string", to="string"),
        _tool("phone_book", "Look up a phone number.", name="string"),
    )
    return {tool.name: tool for tool in tools}


@dataclass(frozen=True)
class Request:
    """What the user says, the call it needs, what the tool returns and what the assistant then says."""

    text: str
    tools: tuple[Tool, ...]
    call: ToolCall
    result: str
    reply: str


def _operands(world: World, rng: random.Random) -> tuple[int, str, int]:
    while True:
        sign, a, b = rng.choice("+-*"), rng.randint(2, 99), rng.randint(2, 99)
        if sign == "-" and a < b:
            a, b = b, a
        if world.operands(sign, a, b):
            return a, sign, b


def request(choir: Choir, lang: str, rng: random.Random, *, held: bool = False) -> Request:
    """Draw a request; tool, wording and argument together decide on which side of the split it lies."""
    catalogue = tool_catalogue()
    while True:
        name = rng.choice(list(catalogue))
        patterns = choir.phrases[lang].tools[name]
        index = rng.randrange(len(patterns))
        forms, arguments, result = draw_arguments(name, choir, lang, rng)
        if choir.world.trains("tool", lang, name, index, forms["x"]) != held:
            break
    others = rng.sample([tool for tool in catalogue.values() if tool.name != name], rng.randint(1, 2))
    tools = [catalogue[name], *others]
    rng.shuffle(tools)
    forms = choir.voices[lang].subject(forms["x"]) | forms
    asked = forms
    if isinstance(next(iter(arguments.values())), str) and name != "calculator":
        # quoted, the argument is cut into the same tokens as in the call: a small model can copy it
        quoted = f'"{forms["x"]}"'
        asked = forms | {"x": quoted, "deN": f"de {quoted}"}
    return Request(
        patterns[index].format_map(asked),
        tuple(tools),
        ToolCall(name, arguments),
        json.dumps(result, ensure_ascii=False),
        choir.phrases[lang].tool_says[name].format_map(forms),
    )


Drawn = tuple[dict[str, str], dict[str, Any], dict[str, Any]]


def _weather(choir: Choir, lang: str, rng: random.Random) -> Drawn:
    town = rng.choice(choir.voices[lang].towns)
    index, degrees = rng.randrange(5), rng.randint(2, 35)
    words = {"x": town, "w": choir.phrases[lang].weathers[index], "d": str(degrees)}
    return words, {"city": town}, {"weather": choir.phrases["en"].weathers[index], "degrees": degrees}


def _calculator(choir: Choir, lang: str, rng: random.Random) -> Drawn:
    a, sign, b = _operands(choir.world, rng)
    expression, result = f"{a} {sign} {b}", apply(sign, a, b)
    return {"x": expression, "r": str(result)}, {"expression": expression}, {"result": result}


def _note(choir: Choir, lang: str, rng: random.Random) -> Drawn:
    text = rng.choice(choir.phrases[lang].notes)
    return {"x": text}, {"text": text}, {"ok": True}


def _timer(choir: Choir, lang: str, rng: random.Random) -> Drawn:
    minutes = rng.randint(2, 60)
    return {"x": str(minutes)}, {"minutes": minutes}, {"ok": True}


def _translate(choir: Choir, lang: str, rng: random.Random) -> Drawn:
    animal, target = rng.randrange(N_ANIMALS), rng.choice([code for code in CODES if code != lang])
    word, result = choir.voices[lang].animals[animal].one, choir.voices[target].animals[animal].one
    words = {"x": word, "L": choir.phrases[lang].languages[target], "r": result}
    return words, {"word": word, "to": target}, {"text": result}


def _phone(choir: Choir, lang: str, rng: random.Random) -> Drawn:
    name, number = rng.choice(choir.voices[lang].names), f"555-01{rng.randint(0, 99):02d}"
    return {"x": name, "r": number}, {"name": name}, {"number": number}


_ARGUMENTS = {
    "weather": _weather,
    "calculator": _calculator,
    "add_note": _note,
    "set_timer": _timer,
    "translate": _translate,
    "phone_book": _phone,
}


def draw_arguments(name: str, choir: Choir, lang: str, rng: random.Random) -> Drawn:
    """Draw what a call of a tool needs: forms for the request's wording, the arguments and the result."""
    return _ARGUMENTS[name](choir, lang, rng)
