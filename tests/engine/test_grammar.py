"""Answers held to a grammar: random walks give valid JSON and whole calls; control tokens only where they belong."""

import json
import random
import re
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from herd.base.errors import ConfigError, HerdError
from herd.base.messages import Tool
from herd.engine.constraint import Constraint
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.codec import DialogCodec
from herd.tokenizer.layout import PUBLISHED_TEMPLATE, Layout
from herd.tokenizer.tool_dialects import CODE, CallStyle, Dialect

pytest.importorskip("llguidance")
from herd.engine.grammar import choice_constraint, json_constraint, regex_constraint, tool_constraint

# Merges that cross every border of a call, and one that cuts a character in two.
MERGES = [
    b'{"',
    b'{"na',
    b'": "',
    b'me": "',
    b'"}',
    b'"}}',
    b"}; {",
    b', "',
    b"1}",
    b'="',
    b'")',
    b")]",
    b"\xe0\xa4",
    b"\xc3\xa9",
]
PIECES = Tokenizer({bytes((byte,)): byte for byte in range(256)} | {m: 256 + i for i, m in enumerate(MERGES)})
CLOSERS = [b"}", b"]", b")", b'"}', b'"', b"<", b'"}}']

TREE: dict[str, Any] = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["v"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "recursive": TREE,
    "enum": {"enum": ["rot", "grün", 3, None, {"a": [1]}]},
    "numbers": {
        "type": "object",
        "properties": {
            "i": {"type": "integer", "minimum": -3, "maximum": 12},
            "x": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "safe": {"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1},
        },
        "required": ["i", "x", "safe"],
        "additionalProperties": False,
    },
    "unicode": {
        "type": "array",
        "items": {"type": "string", "pattern": "^(ไทย|नमस्ते|é{1,3})$"},
        "minItems": 1,
        "maxItems": 3,
    },
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
    "any of": {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 4}, {"type": "array", "maxItems": 2}]},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 0},
}
WEATHER = Tool(
    "get_weather",
    "",
    {
        "type": "object",
        "properties": {
            "town": {"type": "string", "minLength": 1, "maxLength": 8},
            "days": {"type": "integer", "minimum": 1, "maximum": 16},
            "wet": {"type": "boolean"},
        },
        "required": ["town"],
        "additionalProperties": False,
    },
)
GROW = Tool("grow", "", {"type": "object", "properties": {"tree": {"$ref": "#/$defs/node"}}, "$defs": TREE["$defs"]})
ODD = Tool('a "b"/é', "", {"anyOf": [{"properties": {"x": {"enum": ["</function>", "]; {"]}}, "required": ["x"]}]})
SEARCH = Tool("brave_search", "", {"type": "object", "properties": {"query": {"type": "string"}}})
RUN = Tool(CODE, "", {})
TOOLS = (WEATHER, GROW, ODD, SEARCH)


def allowed_ids(constraint: Constraint) -> list[int]:
    allowed = constraint.allowed()
    assert allowed is not None
    assert allowed.shape == (PIECES.n_vocab,)
    return allowed.nonzero().flatten().tolist()


def walk(constraint: Constraint, seed: int, *, steps: int = 40) -> list[int]:
    """Choose among the allowed ids until one ends the answer; after `steps` choose whatever closes."""
    dice, ids, constraint = random.Random(seed), [], constraint.fork()
    while len(ids) < 600:
        ids_now = allowed_ids(constraint)
        assert ids_now, PIECES.decode(ids)
        special = [i for i in ids_now if i >= PIECES.n_ranks]
        assert set(special) <= {*PIECES.stop_ids, PIECES.python_tag_id}
        ends = [i for i in special if i in PIECES.stop_ids]
        closers = [PIECES.ranks[text] for text in CLOSERS if PIECES.ranks.get(text) in ids_now]
        if ends and (len(ids) > steps or dice.random() < 0.4 or len(special) == len(ids_now)):
            return [*ids, dice.choice(ends)]
        if closers and (len(ids) > steps or dice.random() < 0.2):
            ids.append(dice.choice(closers))
        else:
            ids.append(dice.choice(special if special and dice.random() < 0.3 else ids_now))
        if ids[-1] in PIECES.stop_ids:
            return ids
        constraint.accept(ids[-1])
    raise AssertionError(f"no end: {PIECES.decode(ids)!r}")


def reach(constraint: Constraint, text: str) -> tuple[str, list[int]]:
    """Follow a text (it may name control tokens); return how far it is allowed, and what may come next."""
    done: list[int] = []
    for token in PIECES.encode(text, allowed_special="all"):
        if token not in allowed_ids(constraint):
            break
        constraint.accept(token)
        done.append(token)
    return PIECES.decode(done), allowed_ids(constraint)


def fits(value: Any, schema: Mapping[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_walks_give_json_that_fits_the_schema(name: str) -> None:
    constraint = json_constraint(PIECES, SCHEMAS[name])
    texts = set()
    for seed in range(12):
        *ids, end = walk(constraint, seed)
        assert end in PIECES.stop_ids
        text = PIECES.decode_bytes(ids).decode()
        fits(json.loads(text), SCHEMAS[name])
        texts.add(text)
    assert len(texts) > 2


def test_any_object_and_plain_spacing() -> None:
    constraint = json_constraint(PIECES, None)
    for seed in range(8):
        assert isinstance(json.loads(PIECES.decode(walk(constraint, seed)[:-1])), dict)
    assert reach(constraint.fork(), '{"a": [1, true]}') == ('{"a": [1, true]}', sorted(PIECES.stop_ids))
    assert reach(constraint.fork(), '{"a":1}')[0] == '{"a":'


def test_a_finished_grammar_allows_the_stop_ids_only() -> None:
    assert reach(choice_constraint(PIECES, ["yes", "no"]), "no") == ("no", sorted(PIECES.stop_ids))
    assert reach(regex_constraint(PIECES, r"\d{2}/é"), "07/é") == ("07/é", sorted(PIECES.stop_ids))
    text, after = reach(choice_constraint(PIECES, ["a", 'a"\n']), "a")
    assert (text, after) == ("a", [ord('"'), *sorted(PIECES.stop_ids)])


def test_control_tokens_are_never_text() -> None:
    constraint = regex_constraint(PIECES, "(?s:.*)")
    assert {i for i in allowed_ids(constraint) if i >= PIECES.n_ranks} == set(PIECES.stop_ids)
    spelled = PIECES.encode("<|eot_id|>")
    for token in spelled:
        assert token in allowed_ids(constraint)
        constraint.accept(token)


def test_forks_go_their_own_way() -> None:
    constraint = choice_constraint(PIECES, ["ab", "ac", "xy"])
    constraint.accept(ord("a"))
    fork = constraint.fork()
    fork.accept(ord("b"))
    assert allowed_ids(fork) == sorted(PIECES.stop_ids)
    assert allowed_ids(constraint) == [ord("b"), ord("c")]


def test_an_id_that_does_not_fit_leaves_nothing() -> None:
    constraint = choice_constraint(PIECES, ["ab"])
    constraint.accept(ord("z"))
    assert allowed_ids(constraint) == []


@pytest.mark.parametrize("dialect", ["json", "function_tag", "python_list"])
@pytest.mark.parametrize("python_tag", ["code", "builtins", "calls"])
def test_required_calls_are_read_back_and_fit(dialect: Dialect, python_tag: Any) -> None:
    layout = Layout(calls=CallStyle(dialect), python_tag=python_tag, call_end="eot" if python_tag == "code" else "eom")
    codec, schemas = DialogCodec(PIECES, layout), {tool.name: tool.parameters for tool in TOOLS}
    constraint = tool_constraint(PIECES, TOOLS, layout, required=True)
    seen = set()
    for seed in range(12):
        ids = walk(constraint, seed)
        parsed = codec.read(ids, tools=TOOLS)
        assert parsed.message.tool_calls, (parsed.reason, PIECES.decode(ids))
        assert parsed.message.content == ""
        assert ids[-1] == (PIECES.eot_id if python_tag == "code" else PIECES.eom_id)
        if python_tag == "calls":
            assert ids[0] == PIECES.python_tag_id
        for call in parsed.message.tool_calls:
            fits(call.arguments, schemas[call.name])
            seen.add(call.name)
    assert len(seen) > 2


@pytest.mark.parametrize("dialect", ["json", "function_tag", "python_list"])
@pytest.mark.parametrize("seed", range(6))
def test_what_the_codec_writes_is_allowed_and_read_back_the_same(dialect: Dialect, seed: int) -> None:
    layout = Layout(calls=CallStyle(dialect, typed=bool(seed % 2), ascii_json=seed > 2), python_tag="builtins")
    codec = DialogCodec(PIECES, layout)
    # where a dialect can't carry one of several calls the codec writes all in JSON; the grammar that one alone
    tools = TOOLS if dialect == "json" else (WEATHER, GROW)
    first = codec.parse(walk(tool_constraint(PIECES, tools, layout, required=True), seed), tools=tools)
    for required in (True, False):
        ids = codec._body(first)
        written = [token for part, _ in ids for token in part]
        text = PIECES.decode(written)
        assert reach(tool_constraint(PIECES, tools, layout, required=required), text)[0] == text
        assert codec.parse(written, tools=tools).tool_calls == first.tool_calls


CALL = '{"name": "get_weather", "parameters": {"town": "Ulm"}}'


@pytest.mark.parametrize(
    "text",
    [
        "Hello.<|eot_id|>",
        f"{CALL}<|eom_id|>",
        f"Let me see. {CALL}<|eom_id|>",
        f"<|python_tag|>{CALL}; {CALL}<|eom_id|>",
        'Text, {"name": "Anna"} and [f(x)] and a.call(query="x").<|eot_id|>',
        '<|python_tag|>brave_search.call(query="a b")<|eom_id|>',
        "So: <|python_tag|>print([1])\n<|eom_id|>",
    ],
)
def test_free_answers(text: str) -> None:
    constraint = tool_constraint(PIECES, [*TOOLS, RUN], Layout(), required=False)
    assert reach(constraint, text)[0] == text


@pytest.mark.parametrize(
    ("text", "reached"),
    [
        ('{"name": "get_weather", "parameters": {"city"', '{"name": "get_weather", "parameters": {"'),
        ('Well, {"name": "get_weather", "args"', 'Well, {"name": "get_weather", "'),
        ('{"name": "get_weather"<|eot_id|>', '{"name": "get_weather"'),
        ("Well <function=get_weather>", "Well <function=get_weather"),
        ("[ get_weather(", "[ get_weather"),
        ('{"parameters": {"town": 1}, "name": "get_weather"}', '{"parameters": '),
        (f"{CALL}<|eot_id|>", CALL),
        (f"{CALL} and", CALL),
        ("Hello<|eom_id|>", "Hello"),
        ("<|python_tag|><|eom_id|>", "<|python_tag|>"),
        ("<|python_tag|>[f(x=1)]", "<|python_tag|>[f"),
        ("Hello<|start_header_id|>", "Hello"),
    ],
)
def test_a_call_once_begun_must_be_whole(text: str, reached: str) -> None:
    constraint = tool_constraint(PIECES, [*TOOLS, RUN], Layout(), required=False)
    assert reach(constraint, text)[0] == reached


def test_free_walks_are_text_or_calls_that_fit() -> None:
    constraint = tool_constraint(PIECES, TOOLS, PUBLISHED_TEMPLATE, required=False)
    codec, schemas = DialogCodec(PIECES, PUBLISHED_TEMPLATE), {tool.name: tool.parameters for tool in TOOLS}
    openings = [
        "",
        "Hm. <|python_tag|>",
        'Look, {"name": "get_weather"',
        '{"name" : "grow"',
        ' brave_search.call(query="',
    ]
    for opening in openings:
        ids = PIECES.encode(opening, allowed_special="all")
        begun = constraint.fork()
        for token in ids:
            begun.accept(token)
        for seed in range(5):
            parsed = codec.read([*ids, *walk(begun, seed)], tools=TOOLS)
            assert parsed.message.tool_calls or not opening, (parsed.reason, parsed.message.content)
            for call in parsed.message.tool_calls:
                fits(call.arguments, schemas[call.name])


def test_one_named_tool_and_one_call() -> None:
    layout = Layout()
    only = tool_constraint(PIECES, TOOLS, layout, required=True, name="get_weather", parallel=False)
    assert reach(only.fork(), f"{CALL}; {CALL}") == (CALL, [PIECES.eom_id])
    assert reach(only, '{"name": "grow"')[0] == '{"name": "g'
    code = tool_constraint(PIECES, [*TOOLS, RUN], layout, required=True, name=CODE)
    assert allowed_ids(code) == [PIECES.python_tag_id]


def test_a_bare_header_leaves_its_newlines_to_the_model() -> None:
    layout = Layout(open_header="bare")
    constraint = tool_constraint(PIECES, TOOLS, layout, required=True)
    assert allowed_ids(constraint) == [ord("\n")]
    assert DialogCodec(PIECES, layout).parse(walk(constraint, 1), tools=TOOLS).tool_calls


def test_many_tools_on_a_small_vocabulary() -> None:
    tools = [Tool(f"tool_{i}", "", WEATHER.parameters) for i in range(40)]
    text = 'I look. {"name": "tool_39", "parameters": {"town": "Ulm"}}'
    assert reach(tool_constraint(PIECES, tools, Layout(), required=False), text)[0] == text


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "objec"}, "objec"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "http://example.com/x"}, "example.com"),
        ({"$ref": "#/nope"}, "nope"),
        ({"$ref": "#"}, "nothing fits"),
        ({"type": "string", "pattern": "("}, "unclosed"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum"),
        ({"const": {1, 2}}, "must be made of JSON values|can't be followed"),
        ({"const": float("nan")}, "JSON values"),
    ],
)
def test_a_schema_that_can_not_be_followed(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        json_constraint(PIECES, schema)
    assert "\n" not in str(caught.value)
    tool = Tool("f", "", {"type": "object", "properties": {"x": schema}, "required": ["x"]})
    if "$ref" not in schema:
        with pytest.raises(ConfigError, match=r"tool 'f'|JSON values"):
            tool_constraint(PIECES, [tool], Layout(), required=False)


@pytest.mark.parametrize("pattern", ["x(a{999}){999}", "((a|b){1,200}c){300}", r"([^)]\p{L}{2,}){30000}"])
def test_patterns_that_would_stall_the_engine(pattern: str) -> None:
    with pytest.raises(ConfigError, match="too large"):
        regex_constraint(PIECES, pattern)
    nested = {"type": "object", "properties": {"a": {"anyOf": [{"type": "string", "pattern": pattern}]}}}
    with pytest.raises(ConfigError, match="too large"):
        tool_constraint(PIECES, [Tool("f", "", nested)], Layout(), required=False)


@pytest.mark.parametrize("pattern", [r"[({]{3}\({2000}\x{4e00}.{1,4000}(\.[a-z]{2,63}){1,3}", r"([0-9a-f]{1,4}:){7}"])
def test_ordinary_counts_pass(pattern: str) -> None:
    assert allowed_ids(regex_constraint(PIECES, pattern))


def test_other_mistakes_have_one_line() -> None:
    with pytest.raises(ConfigError, match=r"regular expression '\(\?=a\)b'"):
        regex_constraint(PIECES, "(?=a)b")
    with pytest.raises(ConfigError, match="at least one"):
        choice_constraint(PIECES, [])
    with pytest.raises(ConfigError, match="no tool 'g' to call; on offer: get_weather"):
        tool_constraint(PIECES, [WEATHER], Layout(), required=True, name="g")
    with pytest.raises(ConfigError, match="of type 'dict'"):
        tool_constraint(PIECES, [Tool("f", "", {"type": "dict"})], Layout(), required=True)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(HerdError, match=re.escape("pip install 'herd[grammar]'")):
        json_constraint(PIECES, None)
