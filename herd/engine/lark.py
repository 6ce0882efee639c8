"""Grammars of answers as text, in llguidance's Lark: JSON by a schema, and answers with tool calls.

    required    calls end
    free        text eot  |  text? <|python_tag|> calls end  |  text, up to the opening of a call; its rest, calls end

Text holds no opening of a call: where one comes the call must be whole, so what `DialogCodec.read` takes for calls fits
the tools' schemas. Out of reach are names that free text spells with escapes, and what the codec's reader bounds:
values nested more than 64 deep and numbers beyond float64.
"""

import json
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from herd.base.errors import ConfigError
from herd.base.messages import Tool
from herd.tokenizer import specials
from herd.tokenizer.layout import Layout
from herd.tokenizer.tool_dialects import BUILTINS, CODE

Kind = Literal["json", "function_tag", "listed", "builtin"]

_SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY = r"(?s:.*)"
_QUOTE = r"[\x22']"
_KEYS = rf"\{{\s*{_QUOTE}(name|type|parameters|arguments){_QUOTE}"
# Code that begins like this may be read as calls of whatever it names.
_LIKE_CALLS = rf"\s*(<function=|{_KEYS}|\[\s*({_KEYS}|[^\W\d][\w.]*\()|[A-Za-z_][A-Za-z0-9_]*\.call\()"
_TYPED = rf"\{{\s*({_QUOTE}type{_QUOTE}\s*:\s*{_QUOTE}function{_QUOTE}\s*,\s*)?"
# What would put a call's name last, where it is too late to hold the call to its schema.
_OUT_OF_ORDER = rf"\{{\s*{_QUOTE}(parameters|arguments){_QUOTE}\s*:\s*\{{"
_PIECE = re.compile(r"(?s)\\[pPxu]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d+(?:,\d*)?\}|.")
_LARGEST = 20_000  # a pattern's size with its counts multiplied out: a mask takes seconds from about 50,000
_TAG_NAME = re.compile(r"[^<>{}\s\"']+")
_OBJECT_KEYS = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "$defs",
    "definitions",
    "description",
    "title",
}
_NOTES = {"description", "title", "default"}


def json_grammar(schema: Mapping[str, Any]) -> str:
    """Return the grammar of one JSON value, spaced as the codec writes calls. Raises ConfigError."""
    return f"start: {_json(schema)}"


def parameters_of(tool: Tool) -> dict[str, Any]:
    """Return the JSON schema of a tool's arguments, which are always an object. Raises ConfigError."""
    kind = tool.parameters.get("type", "object")
    if kind != "object":
        raise ConfigError(f"the parameters of tool {tool.name!r} are of type {kind!r}: use a JSON schema of an object")
    return {**tool.parameters, "type": "object"}


def check_pattern(pattern: str) -> None:
    """Refuse a regex whose counts, multiplied out, would keep the engine busy for seconds. Raises ConfigError."""
    sizes, last = [0], 0
    for piece in _PIECE.findall(pattern):
        if piece == "(":
            sizes.append(0)
            continue
        if piece == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif piece[0] == "{" and len(piece) > 1:
            count = max(int(number) for number in re.findall(r"\d{1,9}", piece))
            sizes[-1] += last * (count - 1)
            last *= count
        else:
            last = 1
            sizes[-1] += last
    if sum(sizes) > _LARGEST:
        raise ConfigError(f"the pattern {pattern[:60]!r} is too large with its counts multiplied out: lower them")


def tool_grammar(
    tools: Sequence[Tool], *, called: Sequence[Tool], layout: Layout, required: bool, parallel: bool
) -> str:
    """Return the grammar of an answer that may call the tools `called` of those on offer. Raises ConfigError."""
    forms = [_form(tool, layout) for tool in called if tool.name != CODE]
    code = len(forms) < len(called)
    end = specials.EOM if layout.call_end == "eom" else specials.EOT
    rules = _call_rules(forms, parallel=parallel)
    heads: dict[str, Kind] = {f"call{i}": form.kind for i, form in enumerate(forms) if form.kind != "listed"}
    if len(heads) < len(forms):
        heads["list"] = "listed"
    tagged = [f"{specials.PYTHON_TAG} code"] if code else []
    if code:
        rules += ["code: CODE", f"CODE: /(?s:.+)/ & ~/{_LIKE_CALLS}{_ANY}/"]
    if required:
        by_tag = {"calls": set(heads.values()), "builtins": {"builtin"}, "code": set[str]()}[layout.python_tag]
        marks = {head: f"{specials.PYTHON_TAG} " if kind in by_tag else "" for head, kind in heads.items()}
        answers = [f"({_either([*tagged, *(f'{mark}{head} tail' for head, mark in marks.items())])}) {end}"]
    else:
        tagged += [f"{specials.PYTHON_TAG} {head} tail" for head in heads]
        begun = [f"begun{i} body{i}{' more' * (form.kind == 'listed')} tail" for i, form in enumerate(forms)]
        answers = [f"text {specials.EOT}", f"({_either([f'text? ({_either(tagged)})', *begun])}) {end}"]
        rules += _text_rules(forms, [tool.name for tool in tools])
    if heads:
        rules.append(f'tail: ("; " ({_either(heads)}))*' if parallel else 'tail: ""')
    header = '"\\n\\n" ' if layout.open_header == "bare" else ""
    return "\n".join([f"start: {header}({_either(answers)})", *rules])


@dataclass(frozen=True)
class _Form:
    """How a tool is called: the regex of what opens a call, its name included, and the rule of what follows."""

    name: str
    kind: Kind
    opening: str
    body: str


def _form(tool: Tool, layout: Layout) -> _Form:
    """Return the form in which the codec writes calls of this tool."""
    schema, style, name = parameters_of(tool), layout.calls, tool.name
    if name in BUILTINS and _only_a_query(schema):
        return _Form(name, "builtin", rf"{_exactly(name)}\.call\(query=\x22", '/[^"]*/ "\\")"')
    if style.dialect == "python_list" and _is_plain(name, schema):
        return _Form(name, "listed", rf"{_exactly(name)}\(", f'{_python_arguments(schema)} ")"')
    arguments = _json(schema, escapes=style.ascii_json)
    if style.dialect == "function_tag" and _TAG_NAME.fullmatch(name):
        return _Form(name, "function_tag", f"<function={_exactly(name)}>", f'{arguments} "</function>"')
    quoted = _exactly(json.dumps(name, ensure_ascii=style.ascii_json))
    opening = rf'\{{("type": ?"function", ?)?"name": ?{quoted}'
    return _Form(name, "json", opening, f'/, ?"parameters": ?/ {arguments} "}}"')


def _python_arguments(schema: Mapping[str, Any]) -> str:
    """Return the rule of a=1, b="x": in the schema's order, each that isn't required there or not."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required = set(schema.get("required", ()))
    items = [
        (f"{json.dumps(key + '=')} ({_python(value, shared)})", "" if key in required else "?")
        for key, value in schema["properties"].items()
    ]
    firsts = []
    for at, (item, left_out) in enumerate(items):
        firsts.append(" ".join([item, *(f'(", " {later}){maybe}' for later, maybe in items[at + 1 :])]))
        if not left_out:
            break
    return f"({_either(firsts)}){'' if required else '?'}" if firsts else ""


def _python(schema: Any, shared: Mapping[str, Any]) -> str:
    if isinstance(schema, Mapping) and schema.get("type") == "boolean" and set(schema) <= _NOTES | {"type"}:
        return '"True" | "False"'
    return _json({**schema, **shared} if isinstance(schema, Mapping) else schema)


def _call_rules(forms: Sequence[_Form], *, parallel: bool) -> list[str]:
    rules = []
    for i, form in enumerate(forms):
        rules += [f"call{i}: OPEN{i} body{i}", f"OPEN{i}: /{form.opening}/", f"body{i}: {form.body}"]
    listed = [f"call{i}" for i, form in enumerate(forms) if form.kind == "listed"]
    if listed:
        more = f'(", " ({_either(listed)}))* "]"' if parallel else '"]"'
        rules += [f'list: "[" ({_either(listed)}) more', f"more: {more}"]
    return rules


def _text_rules(forms: Sequence[_Form], names: Sequence[str]) -> list[str]:
    """Return the rules of text, and of text up to a call's opening, however spaced (lazy: it ends right there).

    Text holds neither these openings nor those of the tools' calls in other forms.
    """
    own = {(form.name, form.kind) for form in forms}
    kinds = get_args(Kind)
    other = "|".join(_opening(name, kind) for name in names for kind in kinds if (name, kind) not in own)
    other = f"{_ANY}{_OUT_OF_ORDER}|{other}"
    opened = "|".join([*(_opening(*each) for each in own), other])
    rules = ["text: TEXT", f"TEXT: /{_ANY}/ & ~/({opened}){_ANY}/"]
    for i, form in enumerate(forms):
        begun = f"/{_opening(form.name, form.kind)}/ & ~/({other}){_ANY}/"
        rules += [f"begun{i}[lazy]: BEGUN{i}", f"BEGUN{i}: {begun}"]
    return rules


def _opening(name: str, kind: Kind) -> str:
    """Return the regex of text up to all that the codec's reader takes for the opening of a call of this kind."""
    exactly = _exactly(name)
    if kind == "json":
        spelled = {_exactly(json.dumps(name, ensure_ascii=ascii)[1:-1]) for ascii in (False, True)}
        return rf"{_ANY}{_TYPED}{_QUOTE}name{_QUOTE}\s*:\s*{_QUOTE}({'|'.join(sorted(spelled))}){_QUOTE}"
    if kind == "builtin":
        return rf"({_ANY}[^A-Za-z0-9_])?{exactly}\.call\(query=\x22"
    return rf"{_ANY}\[\s*{exactly}\(" if kind == "listed" else f"{_ANY}<function={exactly}>"


def _json(schema: Any, *, escapes: bool = False) -> str:
    if isinstance(schema, Mapping):
        schema = {**schema, "x-guidance": {**_SEPARATORS, "json_allow_general_unicode_escapes": escapes}}
    try:
        text = json.dumps(schema, default=dict, allow_nan=False)
        _check_patterns(schema)
        return f"%json {text}"
    except ConfigError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"a JSON schema must be made of JSON values: {error}") from None


def _check_patterns(schema: Any) -> None:
    if isinstance(schema, Mapping):
        patterns = [schema.get("pattern"), *(schema.get("patternProperties") or ())]
        for pattern in patterns:
            if isinstance(pattern, str):
                check_pattern(pattern)
    if isinstance(schema, Mapping | list | tuple):
        for part in schema.values() if isinstance(schema, Mapping) else schema:
            _check_patterns(part)


def _only_a_query(schema: Mapping[str, Any]) -> bool:
    query = {"type": "string", **schema.get("properties", {}).get("query", {})}
    plain = set(schema) <= _OBJECT_KEYS and set(schema.get("properties", ())) <= {"query"}
    return plain and query["type"] == "string" and set(query) <= _NOTES | {"type"}


def _is_plain(name: str, schema: Mapping[str, Any]) -> bool:
    """Say whether a call can be written in Python's form: by keywords, under names that Python could have."""
    keys = schema.get("properties")
    fits = set(schema) <= _OBJECT_KEYS and isinstance(keys, Mapping) and set(schema.get("required", ())) <= set(keys)
    named = len(name) <= 128 and all(part.isidentifier() for part in name.split("."))
    return named and fits and all(key.isidentifier() and not keyword.iskeyword(key) for key in keys or ())


def _exactly(text: str) -> str:
    """Return a regex of just this text, safe between slashes."""
    return "".join(c if c.isascii() and c.isalnum() else rf"\x{{{ord(c):x}}}" for c in text)


def _either(alternatives: Iterable[str]) -> str:
    return " | ".join(alternatives)
