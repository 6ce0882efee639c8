"""The dialog codec: official vectors, loss weights, round trips in every dialect, streams, hostile text."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from herd.base.errors import ConfigError, DataError
from herd.base.files import read_jsonl
from herd.base.messages import Dialog, Message, Tool, ToolCall
from herd.tokenizer import specials
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.codec import DialogCodec, Layout, Parsed
from herd.tokenizer.stream import OutputStream
from herd.tokenizer.tool_dialects import CallFinder, CallStyle, find_calls, write_calls

BYTES = Tokenizer({bytes((byte,)): byte for byte in range(256)})
WEATHER = Tool(
    "get_weather",
    "The weather of a town",
    {"type": "object", "properties": {"town": {"type": "string"}, "days": {"type": "integer"}}},
)
PLAIN = DialogCodec(BYTES, Layout(tool_prompt="none"))
BARE = DialogCodec(BYTES, Layout(tool_prompt="none", open_header="bare"))


@pytest.fixture(scope="session")
def official(shared_data: Path) -> Tokenizer:
    return Tokenizer.load(shared_data / "tokenizer")


def as_dialog(rows: list[dict[str, Any]]) -> Dialog:
    return Dialog(
        tuple(
            Message(
                row["role"],
                row["content"],
                tuple(ToolCall(call["tool_name"], call["arguments"]) for call in row.get("tool_calls", ())),
            )
            for row in rows
        )
    )


def facts(parsed: Parsed) -> tuple[str, str, list[dict[str, Any]]]:
    calls = [{"tool_name": c.name, "arguments": c.arguments} for c in parsed.message.tool_calls]
    return parsed.message.content, parsed.stop, calls


def test_official_dialog_vectors(shared_data: Path, official: Tokenizer) -> None:
    # All 51 rows: every category, all three dialects of custom tools.
    for row in read_jsonl(shared_data / "tokenizer/chat_golden.jsonl"):
        style = CallStyle(row["tool_prompt_format"], typed=True, ascii_json=True)
        codec = DialogCodec(official, Layout(calls=style))
        dialog = as_dialog(row["messages"])
        assert codec.prompt(dialog) == row["ids"], row["id"]
        assert official.decode(row["ids"]) == row["rendered"], row["id"]
        assert codec.decode(codec.encode(dialog).ids).messages == dialog.messages, row["id"]


# Where the official decoder loses something, herd's own reading differs. Everywhere else both agree with it.
EXACT_DIFFERS = {
    "sp020": "leading spaces are kept",
    "sp033": "text goes on after the call, so it stays text",
    "sp036": "the second call of a list is kept",
    "sp040": "the argument keeps its name",
    "sp041": "a call in mid-sentence stays text",
}


def test_official_reading_vectors(shared_data: Path, official: Tokenizer) -> None:
    as_official = DialogCodec(official, Layout(reading="official"))
    exact = DialogCodec(official)
    differs = set()
    for row in read_jsonl(shared_data / "tools/toolparse_golden.jsonl"):
        expected = (row["content_out"], row["stop_reason"], row["tool_calls"])
        assert facts(as_official.read(row["content"])) == expected, row["id"]
        if facts(exact.read(row["content"])) != expected:
            differs.add(row["id"])
    assert differs == set(EXACT_DIFFERS)


def test_official_prompt_format_examples(shared_data: Path, official: Tokenizer) -> None:
    as_official, exact = DialogCodec(official, Layout(reading="official")), DialogCodec(official)
    for row in read_jsonl(shared_data / "tools/llama31_prompt_format.jsonl"):
        parsed = row["parsed"]
        expected = (parsed["content"], parsed["stop_reason"], parsed["tool_calls"])
        for output in (row["response"], row["response_ids"]):
            assert facts(as_official.read(output)) == expected, row["example"]
            if "Base Model" not in row["example"]:  # the official decoder drops a continuation's first space
                assert facts(exact.read(output)) == expected, row["example"]


def test_weights_and_control_marks() -> None:
    call = ToolCall("get_weather", {"town": "Ulm"})
    dialog = Dialog(
        (
            Message("system", "S"),
            Message("user", "U"),
            Message("assistant", "", (call,)),
            Message("tool", "T"),
            Message("assistant", "Sun"),
            Message("user", "more"),
            Message("assistant", "No", weight=0.0),
            Message("user", "V", weight=0.5),
        )
    )
    encoded = PLAIN.encode(dialog)
    assert len(encoded) == len(encoded.ids) == len(encoded.weights) == len(encoded.control)
    written = [i for i, weight in zip(encoded.ids, encoded.weights, strict=True) if weight == 1.0]
    text = '{"name": "get_weather", "parameters": {"town": "Ulm"}}'
    assert BYTES.decode(written) == f"{text}<|eom_id|>Sun<|eot_id|>"
    half = [i for i, weight in zip(encoded.ids, encoded.weights, strict=True) if weight == 0.5]
    assert BYTES.decode(half) == "V<|eot_id|>"
    shown = [i for i, control in zip(encoded.ids, encoded.control, strict=True) if not control]
    assert BYTES.decode(shown) == f"SU{text}TSunmoreNoV"
    assert encoded.ids.count(BYTES.bos_id) == 1
    assert PLAIN.prompt(dialog)[: len(encoded)] == encoded.ids
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert BYTES.decode(PLAIN.prompt(dialog)[len(encoded) :]) == header


@pytest.mark.parametrize("header", ["", "\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"])
def test_newlines_after_a_bare_header_are_no_content(header: str) -> None:
    text = f"{header}safe<|eot_id|>"
    for output in (text, BYTES.encode(text, allowed_special="all")):
        assert BARE.parse(output).content == "safe"
    assert BYTES.decode(BARE.prompt(Dialog((Message("user", "U"),)))).endswith("assistant<|end_header_id|>")


def test_tool_prompts() -> None:
    dialog = Dialog((Message("user", "Ulm?"),), (WEATHER, Tool("brave_search", "", {})))
    full = BYTES.decode(DialogCodec(BYTES, Layout(dates=("December 2023", "26 Jul 2024"))).encode(dialog).ids)
    assert full.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
        "Tools: brave_search\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, please respond"
    )
    described = json.dumps({"type": "function", "function": WEATHER.to_json()}, indent=4)
    assert full.endswith(f"Do not use variables.\n\n{described}\n\nUlm?<|eot_id|>")

    compact = "get_weather(town, days): The weather of a town\n"
    small = DialogCodec(BYTES, Layout(tool_prompt="compact"))
    assert BYTES.decode(small.encode(Dialog((Message("user", "Ulm?"),), (WEATHER,))).ids) == (
        f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{compact}\nUlm?<|eot_id|>"
    )
    in_system = DialogCodec(BYTES, Layout(tool_prompt="compact", tools_in="system"))
    assert BYTES.decode(in_system.encode(Dialog((Message("system", "S"),), (WEATHER,))).ids) == (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{compact}\nS<|eot_id|>"
    )
    with pytest.raises(DataError, match="no user message"):
        small.encode(Dialog((Message("assistant", "x"),), (WEATHER,)))


LAYOUTS = [
    *(
        Layout(
            calls=CallStyle(dialect, typed=typed, ascii_json=typed),
            tool_prompt=tool_prompt,
            tools_in=place,
            python_tag=tag,
            dates=("then", "now") if typed else None,
        )
        for dialect, typed, tool_prompt, place, tag in (
            ("json", False, "compact", "user", "code"),
            ("json", True, "full", "system", "calls"),
            ("function_tag", False, "full", "user", "code"),
            ("function_tag", True, "none", "user", "calls"),
            ("python_list", False, "full", "system", "code"),
            ("python_list", True, "compact", "user", "calls"),
        )
    ),
    Layout(python_tag="builtins", opening="template", tool_results="json", call_end="eot", dates=("then", "now")),
    Layout(environment=False, opening="documents", open_header="bare", dates=("then", "now")),
]

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
spiky = st.one_of(text, st.sampled_from(["<|eot_id|>", "\"'\\", "</function>", '"})]', "\n\n", "it's \\d", "{", "é"]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), spiky),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(spiky, inner, max_size=3)),
    max_leaves=6,
)
names = st.sampled_from(["get_weather", "a.b", "get-time", "brave_search", "code_interpreter"])
builtin = st.builds(lambda query: ToolCall("brave_search", {"query": query}), spiky)
code = st.builds(lambda body: ToolCall("code_interpreter", {"code": body}), spiky)
custom = st.builds(
    ToolCall,
    names,
    st.dictionaries(st.one_of(st.sampled_from(["x", "class", "my key"]), spiky), values, max_size=3),
)
calls = st.lists(st.one_of(custom, builtin, code), min_size=1, max_size=3).map(tuple)
messages = st.one_of(
    st.builds(Message, st.sampled_from(["user", "tool"]), spiky),
    st.builds(Message, st.just("assistant"), spiky),
    st.builds(Message, st.just("assistant"), spiky, calls),
)
TOOLS = tuple(
    Tool(name, "does", {"properties": {}})
    for name in ("get_weather", "a.b", "get-time", "brave_search", "code_interpreter")
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.calls.dialect}-{layout.python_tag}")
@given(st.lists(messages, max_size=4), spiky.filter(bool), st.booleans())
@settings(deadline=None, max_examples=60)
def test_decode_undoes_encode(layout: Layout, some: list[Message], system: str, with_tools: bool) -> None:
    codec = DialogCodec(BYTES, layout)
    tools = TOOLS if with_tools else ()
    for message in some:  # text that is itself a whole call can't be told from one
        assume(message.tool_calls or not find_calls(message.content, [t.name for t in tools]).calls)
    dialog = Dialog((Message("system", system), Message("user", "hello"), *some), tools)
    assert codec.decode(codec.encode(dialog).ids, tools=tools) == dialog


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "tool", "assistant"]), spiky), max_size=5), text)
@settings(deadline=None, max_examples=60)
def test_text_never_becomes_a_control_token(rows: list[tuple[Any, str]], around: str) -> None:
    hostile = "".join((around, *specials.SPECIAL_TOKENS[:11], around))
    tool = Tool(f"t{hostile}", hostile, {"properties": {hostile: {}}})
    dialog = Dialog((Message("user", hostile), *(Message(role, hostile + content) for role, content in rows)), (tool,))
    encoded = DialogCodec(BYTES, Layout(tool_prompt="compact")).encode(dialog)
    controls = [i for i in encoded.ids if i >= BYTES.n_ranks]
    start, end = BYTES.special_ids[specials.START_HEADER], BYTES.special_ids[specials.END_HEADER]
    assert controls == [BYTES.bos_id, *[start, end, BYTES.eot_id] * len(dialog.messages)]


@given(
    st.one_of(calls.map(lambda some: write_calls(some, CallStyle("json"))[0]), spiky),
    spiky,
    spiky,
    st.booleans(),
    st.data(),
)
@settings(deadline=None, max_examples=150)
def test_a_stream_reads_as_the_whole(body: str, before: str, after: str, tag: bool, data: st.DataObject) -> None:
    tail = [BYTES.eom_id] if data.draw(st.booleans()) else []
    middle = [BYTES.python_tag_id] if tag else []
    ids = [*BYTES.encode(before), *middle, *BYTES.encode(body + after), *tail]
    for tools in ((), TOOLS):
        whole = PLAIN.read(ids, tools=tools)
        for codec, output in ((PLAIN, ids), (BARE, ids), (BARE, [*BYTES.encode("\n\n"), *ids])):
            stream = OutputStream(codec, tools=tools)
            shown = [stream.push(token) for token in output]
            rest, parsed = stream.finish()
            assert parsed == codec.read(output, tools=tools)
            assert parsed == whole or (output is ids and codec is BARE and BYTES.decode(ids).startswith("\n\n"))
            assert "".join(shown) + rest == parsed.message.content


ANSWERS = [
    'Sure: {"name": "a.b", "parameters": {"x": [1, 2.5e3, "}"]}}; [a.b(y=-1, z=None)]',
    '[get_weather(town="Ulm", days=2), get-time()] no',
    "<function=a.b>{'k': 'it\\'s'}</function>",
    'see [link](x) and {"a": 1}, x.call(query="no") {"name": "a.b", "parameters": {}}',
    '  [{"name": "a.b", "parameters": {}}, {"name": "get-time", "arguments": {}}]  ',
    "<functional [a b {",
    '{"name": "a.b", "parameters": {"x": 1',
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_split_point_gives_the_same(answer: str) -> None:
    for tools in ([], ["a.b", "get-time", "get_weather"]):
        whole = find_calls(answer, tools)
        for i in range(len(answer)):
            for j in range(i, len(answer)):
                finder = CallFinder(tools)
                shown = finder.push(answer[:i]) + finder.push(answer[i:j]) + finder.push(answer[j:])
                rest = finder.finish()
                assert (shown + rest.content, rest.calls, rest.reason) == (
                    whole.content,
                    whole.calls,
                    whole.reason,
                )


@pytest.mark.parametrize(
    ("answer", "content", "n_calls", "reason"),
    [
        (ANSWERS[0], "Sure: ", 2, None),
        (ANSWERS[2], "", 1, None),
        (ANSWERS[3], 'see [link](x) and {"a": 1}, x.call(query="no") ', 1, None),
        (ANSWERS[4], "", 2, None),
        (ANSWERS[5], ANSWERS[5], 0, None),
        (ANSWERS[6], ANSWERS[6], 0, "cut short"),
        ('{"name": "b", "parameters": {}}', '{"name": "b", "parameters": {}}', 0, "no tool is named 'b'"),
        ('{"name": "a.b", "parameters": [1]}', '{"name": "a.b", "parameters": [1]}', 0, "not an object"),
        ("[a.b(x=open('/etc/passwd'))]", "[a.b(x=open('/etc/passwd'))]", 0, "unquoted 'open'"),
    ],
)
def test_what_looks_like_a_call_stays_text_unless_it_is_one(
    answer: str, content: str, n_calls: int, reason: str | None
) -> None:
    found = find_calls(answer, ["a.b", "get-time", "get_weather"])
    assert (found.content, len(found.calls)) == (content, n_calls)
    assert reason is None or reason in (found.reason or "")


@pytest.mark.parametrize(
    "hostile",
    [
        '{"name": ' * 3000,
        "[" * 100_000,
        '{"name":"f","parameters":{"x":' + "[" * 50_000,
        '{"name":"f","parameters":{"x":1}};' * 2000 + "!",
        '{"name":"f","parameters":{"x":' + "9" * 50_000 + "}}",
        '[f(x="' + "\\" * 100_001,
        "[f(" * 20_000,
        "w" * 200_000,
        "{ " * 20_000,
    ],
    ids=lambda hostile: hostile[:16],
)
def test_hostile_output_is_read_quickly_and_without_an_exception(hostile: str) -> None:
    for tools in ((), (Tool("f", "", {}),)):
        started = time.process_time()
        assert PLAIN.parse(hostile, tools=tools).content == hostile
        assert time.process_time() - started < 20  # of processor time: quadratic reading would take minutes


def test_a_stream_holds_back_no_more_than_it_must() -> None:
    finder = CallFinder(["a.b"])
    shown = [finder.push(piece) for piece in ("สวัสดี", "ครับ", " see [", "note] {", "x} ", "a.", "b <fun", "ny")]
    assert shown == ["สวัสดี", "ครับ", " see ", "[note] ", "{x} ", "", "a.b ", "<"]
    assert finder.finish().content == "funny"
    started = time.process_time()
    slow = CallFinder(["a.b"])
    assert sum(len(slow.push("w")) for _ in range(50_000)) + len(slow.finish().content) == 50_000
    assert time.process_time() - started < 20  # of processor time: quadratic reading would take minutes


def test_bad_dialogs_are_named() -> None:
    with pytest.raises(DataError, match="only an assistant can call tools"):
        PLAIN.encode(Dialog((Message("user", "", (ToolCall("f", {}),)),)))
    with pytest.raises(DataError, match="JSON values"):
        PLAIN.encode(Dialog((Message("assistant", "", (ToolCall("f", {"x": float("nan")}),)),)))
    with pytest.raises(DataError, match="no message header at token 1"):
        PLAIN.decode([BYTES.bos_id, 65])
    with pytest.raises(ConfigError, match="official way"):
        OutputStream(DialogCodec(BYTES, Layout(reading="official")))
