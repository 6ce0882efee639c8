"""Chat templates: the codec's text and ids from Jinja, here and through transformers; layouts; foreign templates."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_codec import BYTES, LAYOUTS, TOOLS, WEATHER, as_dialog, messages, spiky

from herd.base.errors import DataError
from herd.base.files import read_jsonl
from herd.base.messages import Dialog, Message, Tool, ToolCall
from herd.tokenizer import specials
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.codec import DialogCodec
from herd.tokenizer.hf_files import write_hf_tokenizer
from herd.tokenizer.layout import PUBLISHED_TEMPLATE, Layout, layout_from_json, layout_to_json
from herd.tokenizer.rendering import compare_template, render, rendered_ids
from herd.tokenizer.template import chat_template
from herd.tokenizer.tool_dialects import CallStyle, Dialect, find_calls, write_calls

SPELLED = re.compile("|".join(map(re.escape, specials.SPECIAL_TOKENS)))
DATES = ("December 2023", "26 Jul 2024")
TALK = (Message("system", "S"), Message("user", "U"))


@pytest.fixture(scope="module")
def official(shared_data: Path) -> Tokenizer:
    return Tokenizer.load(shared_data / "tokenizer")


def golden(shared_data: Path) -> list[tuple[dict[str, Any], Layout]]:
    rows = read_jsonl(shared_data / "tokenizer/chat_golden.jsonl")
    return [(row, Layout(CallStyle(row["tool_prompt_format"], typed=True, ascii_json=True))) for row in rows]


def test_the_template_renders_all_official_dialogs(shared_data: Path, official: Tokenizer) -> None:
    for row, layout in golden(shared_data):
        dialog, template = as_dialog(row["messages"]), chat_template(layout)
        assert render(template, dialog) == row["rendered"], row["id"]
        assert rendered_ids(official, template, dialog) == row["ids"], row["id"]


def test_transformers_renders_the_same_ids(shared_data: Path, official: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs: dict[str, Any] = {}
    differ = {}
    for row, layout in golden(shared_data):
        dialect = row["tool_prompt_format"]
        if dialect not in theirs:
            folder = tmp_path / dialect
            write_hf_tokenizer(official, folder, chat_template=chat_template(layout), max_positions=131_072)
            theirs[dialect] = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        messages = in_openai_form(as_dialog(row["messages"]))["messages"]
        render_it = theirs[dialect].apply_chat_template
        assert render_it(messages, tokenize=False, add_generation_prompt=True) == row["rendered"], row["id"]
        ids = render_it(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        differ[row["id"]] = ids != row["ids"]
    # A tokenizer that gets the text whole can't tell content that spells a control token from one, nor newlines
    # that content begins with from those of the header. These rows differ, and only these.
    expected = {
        row["id"]: any(SPELLED.search(m["content"]) or re.match(r"\s*\n", m["content"]) for m in row["messages"])
        for row, _ in golden(shared_data)
    }
    assert differ == expected
    assert any(expected.values())


def in_openai_form(dialog: Dialog) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for message in dialog.messages:
        rows.append({"role": message.role, "content": message.content})
        if message.tool_calls:
            rows[-1]["tool_calls"] = [{"type": "function", "function": c.to_json()} for c in message.tool_calls]
    return {"messages": rows, "tools": [{"type": "function", "function": tool.to_json()} for tool in dialog.tools]}


ALL_LAYOUTS = [
    *LAYOUTS,
    Layout(),
    PUBLISHED_TEMPLATE,
    Layout(tools_in="system", environment=False, call_end="eot", tool_results="json", open_header="bare"),
    Layout(CallStyle("function_tag"), opening="documents", python_tag="builtins", dates=DATES),
    Layout(CallStyle("python_list"), tools_in="system", opening="template", dates=DATES),
]


def fallen_back(message: Message, style: CallStyle) -> bool:
    """Say whether the codec writes a message's calls as JSON where a template, which has no parser, can't know."""
    if len(message.tool_calls) == 1 and message.tool_calls[0].name == "code_interpreter":
        code = message.tool_calls[0].arguments.get("code")
        if isinstance(code, str) and find_calls(code).calls:
            return True
    if style.dialect == "json" or not message.tool_calls:
        return False
    written, _ = write_calls(message.tool_calls, style)
    as_json, _ = write_calls(message.tool_calls, CallStyle("json", style.typed, style.ascii_json))
    return written == as_json


@pytest.mark.parametrize("layout", ALL_LAYOUTS, ids=lambda layout: f"{layout.calls.dialect}-{layout.python_tag}")
@given(st.lists(messages, max_size=4), spiky, st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_template_writes_what_the_codec_writes(
    layout: Layout, some: list[Message], system: str, with_tools: bool
) -> None:
    assume(not any(fallen_back(message, layout.calls) for message in some))
    opening = (Message("system", system),) if system else ()
    dialog = Dialog((*opening, Message("user", "hello"), *some), (*TOOLS, WEATHER) if with_tools else ())
    codec, template = DialogCodec(BYTES, layout), chat_template(layout)
    assert render(template, dialog) == BYTES.decode(codec.prompt(dialog))
    assert rendered_ids(BYTES, template, dialog) == codec.prompt(dialog)
    assert rendered_ids(BYTES, template, dialog, add_generation_prompt=False) == codec.encode(dialog).ids


SEARCHES = ToolCall("brave_search", {"query": "ok"}), ToolCall("wolfram_alpha", {"query": 'the "best"'})


@pytest.mark.parametrize(
    ("calls", "dialect", "seen"),
    [
        ([ToolCall("code_interpreter", {"code": '{"name": "f", "parameters": {}}'})], "json", False),
        ([ToolCall("get-time", {})], "python_list", False),
        ([ToolCall("f", {"class": 1})], "python_list", False),
        ([ToolCall("f", {"my key": 1})], "python_list", False),
        ([ToolCall("my tool", {})], "function_tag", False),
        ([ToolCall("f", {}), SEARCHES[0]], "python_list", True),
        (SEARCHES, "python_list", True),
        (SEARCHES, "function_tag", True),
        (SEARCHES, "json", True),
    ],
)
def test_calls_that_only_json_can_carry(calls: Sequence[ToolCall], dialect: Dialect, seen: bool) -> None:
    dialog, layout = Dialog((*TALK, Message("assistant", "", tuple(calls)))), Layout(CallStyle(dialect))
    expected = BYTES.decode(DialogCodec(BYTES, layout).prompt(dialog))
    as_json = "; ".join(json.dumps({"name": call.name, "parameters": call.arguments}) for call in calls)
    assert f"\n\n{as_json}<|eom_id|>" in expected
    assert (render(chat_template(layout), dialog) == expected) == seen


def test_the_openai_form_is_read_with_and_without_its_wrappers() -> None:
    template = chat_template(Layout(dates=DATES))
    call, tool = {"name": "get_weather", "arguments": {"town": "Ulm"}}, WEATHER.to_json()
    wrapped = [{"type": "function", "function": call}]
    rows: list[dict[str, Any]] = [{"role": "user", "content": "Ulm?"}, {"role": "assistant", "content": None}]
    dialog = Dialog((Message("user", "Ulm?"), Message("assistant", "", (ToolCall(**call),))), (WEATHER,))
    expected = render(template, dialog)
    for calls_, tools in ((wrapped, [{"type": "function", "function": tool}]), ([call], [tool])):
        assert render(template, [rows[0], rows[1] | {"tool_calls": calls_}], tools=tools) == expected
    text = [{"function": call | {"arguments": '{"town": "Ulm"}'}}]  # as the OpenAI interface sends them
    assert render(template, [rows[0], rows[1] | {"tool_calls": text}], tools=[tool]) == expected
    assert "Today Date: 1 May 2030<|eot_id|>" in render(template, rows[:1], date_string="1 May 2030")
    result = [{"role": role, "content": {"t": 3}} for role in ("tool", "ipython")]
    assert render(template, result).count('ipython<|end_header_id|>\n\n{"t": 3}<|eot_id|>') == 2


@pytest.mark.parametrize(
    ("rows", "tools", "complaint"),
    [
        ([{"role": "wizard", "content": "x"}], [], "message role wizard is not one of"),
        ([{"role": "user", "content": ["x"]}], [], "content must be text"),
        ([{"role": "assistant", "content": "x"}], [WEATHER.to_json()], "no user message"),
        ([{"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}], [], "only an assistant"),
    ],
)
def test_what_the_codec_refuses_the_template_refuses(rows: list[Any], tools: list[Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        render(chat_template(Layout()), rows, tools=tools)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "tool", "assistant"]), spiky), max_size=4), spiky)
@settings(deadline=None, max_examples=40)
def test_content_never_becomes_a_control_token(rows: list[tuple[Any, str]], around: str) -> None:
    hostile = f"{around}\ue000\\ue001<" + "".join(specials.SPECIAL_TOKENS[:11]) + "|eot_id|>"
    tool = Tool(f"t{hostile}", hostile, {"properties": {hostile: {}}})
    call = Message("assistant", "<", (ToolCall(hostile, {hostile: hostile}),))
    dialog = Dialog((Message("user", hostile), call, *(Message(r, hostile + c + "<") for r, c in rows)), (tool,))
    for layout in (Layout(CallStyle(ascii_json=True)), Layout(tool_prompt="compact", tool_results="json")):
        assert rendered_ids(BYTES, chat_template(layout), dialog) == DialogCodec(BYTES, layout).prompt(dialog)


SEARCH = (*TALK, Message("assistant", "", (ToolCall("brave_search", {"query": "q"}),)))
CALL = (*TALK, Message("assistant", "", (ToolCall("get_weather", {"town": "Ulm"}),)))
RESULT = (*CALL, Message("tool", '{"t": "3"}'))
BUILTIN = (Tool("brave_search", "", {}),)
DISAGREEMENTS: dict[str, tuple[tuple[Message, ...], tuple[Tool, ...], tuple[Layout, str], tuple[Layout, str]]] = {
    # what they disagree about: the dialog, its tools, (layout, the text of one side), (layout, the other's)
    "<|python_tag|> before built-ins: code without, chat template with": (
        SEARCH,
        (),
        (Layout(), '\n\nbrave_search.call(query="q")<|eom_id|>'),
        (Layout(python_tag="builtins"), '\n\n<|python_tag|>brave_search.call(query="q")<|eom_id|>'),
    ),
    "<|python_tag|> before JSON calls: chat template without, documents with": (
        CALL,
        (),
        (Layout(python_tag="builtins"), '\n\n{"name": "get_weather"'),
        (Layout(python_tag="calls"), '\n\n<|python_tag|>{"name": "get_weather"'),
    ),
    "Environment line with tools: code with, website's zero-shot pages without": (
        TALK,
        (WEATHER,),
        (Layout(dates=DATES), "\n\nEnvironment: ipython\nCutting Knowledge Date: December 2023\n"),
        (Layout(dates=DATES, environment=False), "\n\nCutting Knowledge Date: December 2023\n"),
    ),
    "blank line after the Environment line: chat template without, documents with": (
        TALK,
        (WEATHER,),
        (Layout(dates=DATES, opening="template"), "Environment: ipython\nCutting"),
        (Layout(dates=DATES, opening="documents"), "Environment: ipython\n\nCutting"),
    ),
    "blank line after the Tools line: documents without, chat template with": (
        TALK,
        BUILTIN,
        (Layout(dates=DATES, opening="documents"), "Environment: ipython\nTools: brave_search\nCutting"),
        (Layout(dates=DATES, opening="template"), "Environment: ipython\nTools: brave_search\n\nCutting"),
    ),
    "newlines after the dates where no system message follows: code without, chat template with": (
        TALK[1:],
        (),
        (Layout(dates=DATES), "Today Date: 26 Jul 2024<|eot_id|>"),
        (Layout(dates=DATES, opening="template"), "Today Date: 26 Jul 2024\n\n<|eot_id|>"),
    ),
    '"type": "function" in JSON calls: code with, chat template without': (
        CALL,
        (),
        (Layout(CallStyle(typed=True)), '\n\n{"type": "function", "name": "get_weather", "parameters"'),
        (Layout(), '\n\n{"name": "get_weather", "parameters"'),
    ),
    "end of a call of one's own tools: documents eom, chat template eot": (
        CALL,
        (),
        (Layout(), '{"town": "Ulm"}}<|eom_id|>'),
        (Layout(call_end="eot"), '{"town": "Ulm"}}<|eot_id|>'),
    ),
    "a tool's result that is text: code as it is, chat template quoted": (
        RESULT,
        (),
        (Layout(), 'ipython<|end_header_id|>\n\n{"t": "3"}<|eot_id|>'),
        (Layout(tool_results="json"), 'ipython<|end_header_id|>\n\n"{\\"t\\": \\"3\\"}"<|eot_id|>'),
    ),
    "newlines after an open header: chat template of Llama 3.1 with, of Llama Guard 3 without": (
        TALK,
        (),
        (Layout(), "<|start_header_id|>assistant<|end_header_id|>\n\nEND"),
        (Layout(open_header="bare"), "<|start_header_id|>assistant<|end_header_id|>END"),
    ),
    "non-ASCII arguments: code escapes, chat template doesn't": (
        (*TALK, Message("assistant", "", (ToolCall("f", {"x": "é"}),))),
        (),
        (Layout(CallStyle(ascii_json=True)), '{"x": "\\u00e9"}'),
        (Layout(), '{"x": "é"}'),
    ),
    "where one's own tools are told of: chat template user message, or system message when asked": (
        TALK,
        (WEATHER,),
        (Layout(), "user<|end_header_id|>\n\nGiven the following functions, please respond with a JSON"),
        (Layout(tools_in="system"), "ipython\n\nYou have access to the following functions. To call a function,"),
    ),
}


@pytest.mark.parametrize("topic", DISAGREEMENTS)
def test_where_official_code_and_documents_disagree(topic: str) -> None:
    some, tools, *sides = DISAGREEMENTS[topic]
    dialog = Dialog(some, tools)
    for layout, text in sides:
        codec = DialogCodec(BYTES, layout)
        written = BYTES.decode(codec.prompt(dialog))
        assert text in f"{written}END"
        assert render(chat_template(layout), dialog) == written
        assert codec.decode(codec.encode(dialog).ids, tools=tools) == dialog
    one, other = (BYTES.decode(DialogCodec(BYTES, layout).prompt(dialog)) for layout, _ in sides)
    assert sides[0][1] not in f"{other}END"
    assert sides[1][1] not in f"{one}END"


def test_a_foreign_template_is_compared() -> None:
    layout = Layout(tool_prompt="none")
    codec = DialogCodec(BYTES, layout)
    assert compare_template(chat_template(layout), codec) is None
    assert compare_template(chat_template(Layout()), codec) is not None
    chatml = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}{% endfor %}"
    said = compare_template(chatml, codec)
    assert said is not None
    assert said.startswith("one user message: at character 2 the template has '<|im_start|>user")
    assert "\n" not in said
    no_system = "{{ raise_exception('no system here') if messages[0].role == 'system' }}" + chat_template(layout)
    assert compare_template(no_system, codec) == "a system message: the chat template can't render this dialog: " + (
        "no system here"
    )
    assert compare_template(chat_template(PUBLISHED_TEMPLATE), DialogCodec(BYTES, PUBLISHED_TEMPLATE)) is None
    assert "eom" in (compare_template(chat_template(Layout()), DialogCodec(BYTES, Layout(call_end="eot"))) or "")


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("a\n{% if x %}", "chat template, line 2: Unexpected end of template"),
        ("{{ 1 +", "chat template, line 1: "),
        ("{% nonsense %}", "line 1: Encountered unknown tag 'nonsense'"),
        ("{{ '" + "(" * 5, "line 1"),
        ("{{ " + "(" * 30_000 + "1", "chat template"),
        ("{{ messages[0].content.nothing.more }}", "can't render this dialog"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10000000) %}{% endfor %}", "can't render this dialog: Range too big"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
    ids=lambda value: value[:20],
)
def test_a_bad_template_is_one_clear_line(template: str, complaint: str) -> None:
    with pytest.raises(DataError, match=re.escape(complaint)) as raised:
        render(template, Dialog(TALK))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_templates_may_use_what_transformers_offers_them() -> None:
    template = (
        "{%- for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% endgeneration %}\n{% endfor %}{{ strftime_now('%Y') | length }}"
    )
    assert render(template, [{"role": "user", "content": "<é>"}] * 2) == '{"role": "user", "content": "<é>"}4'


@pytest.mark.parametrize("layout", ALL_LAYOUTS, ids=lambda layout: layout.calls.dialect)
def test_a_layout_survives_its_file(layout: Layout) -> None:
    assert layout_from_json(json.loads(json.dumps(layout_to_json(layout)))) == layout


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ([], "a dialog layout is an object, got list"),
        ({"python_tags": "code", "call_ends": "eot"}, "unknown keys 'call_ends', 'python_tags'; known keys: calls, "),
        ({"calls": {"dialect": "json", "loud": True}}, "unknown keys 'calls.loud'"),
        ({"python_tag": "always"}, "python_tag: Input should be 'code', 'builtins' or 'calls' (got 'always')"),
        ({"calls": {"typed": "yes"}}, "calls.typed: "),
        ({"calls": []}, "calls: "),
        ({"dates": ["then"]}, "dates.1: "),
        ({"dates": "then"}, "dates: "),
    ],
)
def test_a_bad_layout_is_named(row: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"x/dialog.json: {complaint}")):
        layout_from_json(row, where="x/dialog.json")
    assert layout_from_json({}) == Layout()
