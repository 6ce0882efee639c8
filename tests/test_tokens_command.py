"""`herd tokens`: what is drawn is what is trained on, and only that, whatever a dialog holds; forms and mistakes."""

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from toys import TOY, byte_tokenizer, toy_model

from herd.__main__ import main
from herd.base.errors import DataError
from herd.base.messages import Dialog, Message, Tool, ToolCall, parse_dialog
from herd.base.run import RunFolder
from herd.model.hf import write_hf
from herd.model.source import WeightsSource
from herd.stages.export import write_hf_files
from herd.stages.recipe import load_recipe
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.codec import DialogCodec
from herd.tokenizer.drawing import Drawing, draw, joined, pieces, to_html
from herd.tokenizer.layout import Layout, layout_to_json

CODEC = DialogCodec(byte_tokenizer(), Layout())
USER, ANSWER = Message("user", "How warm\nis it?"), Message("assistant", "21 °C")
TALK = Dialog((USER, ANSWER))
SCHEMA = {"type": "object", "properties": {"town": {"type": "string"}}}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    return CODEC.tokenizer.save(tmp_path)


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, ranks: Path) -> Run:
    """Run `herd tokens` on a JSON value, or on text as it stands; return its status and what it said."""
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(content: Any, *options: str, name: str = "dialog.json", tokenizer: bool = True) -> tuple[int, str, str]:
        file = tmp_path / name
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        given = ["--tokenizer", str(ranks)] if tokenizer else []
        monkeypatch.setattr(sys, "argv", ["herd", "tokens", str(file), *given, *options])
        with pytest.raises(SystemExit) as stop:
            main()
        out = capsys.readouterr()
        return int(stop.value.code or 0), out.out, out.err

    return run


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, tokens: Run) -> Callable[..., Text]:
    """Run it as on a terminal of 60 columns; return what it showed, with styles."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")

    def run(dialog: Dialog, *options: str) -> Text:
        status, out, _ = tokens(dialog.to_json(), *options)
        assert status == 0
        assert not re.search("[\x00-\x09\x0b-\x1a\x7f-\x9f\u202a-\u202e]", out)
        return Text.from_ansi(out)

    return run


def test_the_cells_are_the_codecs_ids_weights_and_marks() -> None:
    dialog = Dialog((Message("system", "Be kind."), USER, ANSWER, Message("user", "x", weight=0.5)))
    encoded, cells = CODEC.encode(dialog), draw(CODEC, dialog).cells
    assert [cell.id for cell in cells] == encoded.ids
    assert [cell.weight for cell in cells] == encoded.weights
    assert [cell.control for cell in cells] == encoded.control
    assert [cell.index for cell in cells] == list(range(len(encoded)))
    assert [block.role for block in draw(CODEC, dialog).blocks] == ["", "system", "user", "assistant", "user"]
    assert "1 with loss of weight 0.5" not in draw(CODEC, dialog).blocks[-1].note
    assert "2 with loss of weight 0.5" in draw(CODEC, dialog).blocks[-1].note


def test_a_prompt_ends_in_an_open_header_and_carries_no_loss() -> None:
    drawing = draw(CODEC, Dialog((USER,)), prompt=True)
    assert [cell.id for cell in drawing.cells] == CODEC.prompt(Dialog((USER,)))
    assert drawing.blocks[-1].role == "assistant"
    assert all(cell.control for cell in drawing.blocks[-1].cells)
    assert not any(cell.weight for cell in draw(CODEC, TALK, prompt=True).cells)
    assert not drawing.warnings
    assert "with loss" not in drawing.figures


@given(st.text())
def test_clusters_are_whole_characters_and_lose_none(text: str) -> None:
    block = draw(CODEC, Dialog((Message("user", text),))).blocks[1]
    content = [cluster for cluster in block.clusters if not cluster[0].control]
    characters = [b"".join(cell.data for cell in cluster).decode() for cluster in content]  # strict: never half of one
    assert "".join(characters) == text
    for shown in map(joined, content):
        assert all(c.isprintable() or c in " \n\t\u200c\u200d" for c in shown)


@pytest.mark.parametrize(
    ("text", "clusters"),
    [
        ("ab", ["a", "b"]),
        ("é", ["é"]),
        ("दुनिया ok", ["दु", "नि", "या", " ", "o", "k"]),
        ("स्ते", ["स्ते"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("👩‍👧x👍🏽", ["👩‍👧", "x", "👍🏽"]),
        ("\u0301a", ["\u0301", "a"]),
    ],
)
def test_letters_keep_their_marks(text: str, clusters: list[str]) -> None:
    block = draw(CODEC, Dialog((Message("user", text),))).blocks[1]
    assert [joined(cluster) for cluster in block.clusters if not cluster[0].control] == clusters


def test_what_cannot_be_seen_is_told() -> None:
    assert pieces(b" \xe0\xa4") == [("space", " "), ("bytes", "e0 a4")]
    assert pieces(b"a\n\n\tb") == [("text", "a"), ("newline", "\n\n"), ("tab", "\t"), ("text", "b")]
    assert pieces("\x1b\u202e\xa0".encode()) == [("unseen", "U+001B U+202E U+00A0")]


def warned(*messages: Message, tools: tuple[Tool, ...] = ()) -> list[str]:
    return draw(CODEC, Dialog(messages, tools)).warnings


def test_warnings_are_for_wrong_masks_and_pasted_prompts() -> None:
    assert warned(USER, ANSWER) == []
    assert "no token carries loss" in warned(USER)[0]
    assert "no token carries loss" in warned(USER, Message("assistant", "x", weight=0))[0]
    assert "no prompt is masked" in warned(Message("user", "x", weight=1), ANSWER)[0]
    (pasted,) = warned(Message("user", "<|begin_of_text|><|eot_id|>Hi"), ANSWER)
    assert pasted.startswith("block 1 (user) spells <|begin_of_text|>, <|eot_id|> as text")


def test_figures_count_content_apart() -> None:
    figures = draw(CODEC, Dialog((Message("user", "é"), Message("assistant", "ab")))).figures
    control = 1 + (2 + len("user") + 2 + 1) + (2 + len("assistant") + 2 + 1)
    expected = {"tokens": control + 4, "with loss": 3, "control": control, "characters per token": "0.75"}
    assert figures == {name: str(value) for name, value in expected.items()}


def test_piped_it_is_one_line_a_token(tokens: Run) -> None:
    status, out, err = tokens(Dialog((USER, Message("assistant", "é", weight=0.5))).to_json())
    *lines, summary = out.splitlines()
    encoded = CODEC.encode(Dialog((USER, Message("assistant", "é", weight=0.5))))
    rows = [line.split(None, 4) for line in lines]
    assert [int(row[1]) for row in rows] == encoded.ids
    assert [row[2] == "C" for row in rows] == encoded.control
    assert [{"-": 0, "L": 1, "L*0.5": 0.5}[row[3]] for row in rows] == encoded.weights
    assert [row[4] for row in rows[-3:]] == [r"b'\xc3'", r"b'\xa9'", "<|eot_id|>"]
    assert (status, err, summary[:2]) == (0, "", "# ")


def test_a_terminal_underlines_what_carries_loss(terminal: Callable[..., Text]) -> None:
    shown = terminal(Dialog((Message("user", "a b\n\tc"), Message("assistant", "yes sir"))))
    underlined = [shown.plain[span.start : span.end] for span in shown.spans if "underline" in str(span.style)]
    assert "".join(underlined) == "yes·sir<|eot_id|>8 with loss"
    assert "a·b↵\n⇥c<|eot_id|>" in shown.plain
    assert all(len(line) <= 60 for line in shown.plain.splitlines()[:-1])


def test_a_terminal_shows_ids_under_tokens(terminal: Callable[..., Text]) -> None:
    lines = terminal(Dialog((Message("user", "a b"), ANSWER)), "--ids").plain.splitlines()
    (upper,) = [i for i, line in enumerate(lines) if line.startswith("a ")]
    assert lines[upper].split()[:3] == ["a", "·", "b"]
    assert lines[upper + 1].split()[:3] == ["97", "32", "98"]
    assert [lines[upper].index(mark) for mark in "a·b"] == [lines[upper + 1].index(n) for n in ("97", "32", "98")]


def test_a_terminal_shortens_long_messages_unless_told_not_to(terminal: Callable[..., Text]) -> None:
    dialog = Dialog((Message("user", "z" * 1000), ANSWER))
    short, whole = terminal(dialog).plain, terminal(dialog, "--all").plain
    assert "… 709 tokens more; --all shows them" in short  # 1,009 in the message, 300 shown
    assert (short.count("z"), whole.count("z")) == (1000 - 709, 1000)


def test_nothing_in_a_dialog_reaches_the_terminal_as_a_command(terminal: Callable[..., Text]) -> None:
    evil = "\x1b[31mred\x1b]0;title\x07\r\x00\u202etxt\x9b2J"
    shown = terminal(Dialog((Message("user", evil), Message("assistant", evil))))
    assert "⟨U+001B⟩[31mred" in shown.plain


class Page(HTMLParser):
    """What a page shows, and what it would load or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.reaches: list[tuple[str, str | None]] = []
        self.classes: list[list[str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.reaches += [(key, value) for key, value in attrs if key in ("src", "href") or key.startswith("on")]
        if dict(attrs).get("data-note"):
            self.classes.append((dict(attrs)["class"] or "").split())

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_every_token_and_runs_nothing(tokens: Run, tmp_path: Path) -> None:
    evil = '<script>alert("x")</script><img src=http://x onerror=y>\'">{{ 7*7 }}'
    dialog = Dialog((Message("user", evil), Message("assistant", evil)))
    status, out, err = tokens(dialog.to_json(), "--html", str(tmp_path / "out.html"))
    page = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    encoded = CODEC.encode(dialog)
    assert (status, err) == (0, "")
    assert str(tmp_path / "out.html") in out
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert page.reaches == []
    assert "url(" not in page.text
    assert page.text.count(evil) == 2
    assert ["loss" in names for names in page.classes] == [weight > 0 for weight in encoded.weights]
    assert ["control" in names for names in page.classes] == encoded.control


def test_a_page_keeps_scripts_readable() -> None:
    page = to_html(draw(CODEC, Dialog((Message("user", "ที่ दुनिया"), ANSWER))), title="\udc80<b>", setting="<i>")
    shown = Page(page).text
    assert all(f"{text}⟨" in shown for text in ("ที่", "दु", "नि", "या"))
    assert "?<b>" in shown  # a file's name that isn't UTF-8


def test_every_form_of_a_dialog_is_the_same_dialog() -> None:
    arguments = {"town": "Ulm", "days": 2}
    expected = Dialog(
        (USER, Message("assistant", "", (ToolCall("weather", arguments),))), (Tool("weather", "Of a town", SCHEMA),)
    )
    wrapped = {"name": "weather", "arguments": json.dumps(arguments)}
    call = {"id": "call_1", "type": "function", "function": wrapped}
    spoken = {"role": "assistant", "content": None, "tool_calls": [call]}
    tool = {"type": "function", "function": {"name": "weather", "description": "Of a town", "parameters": SCHEMA}}
    assert parse_dialog(expected.to_json()) == expected
    assert parse_dialog({"messages": [USER.to_json(), spoken], "tools": [tool]}) == expected
    assert parse_dialog([USER.to_json(), spoken]).messages == expected.messages
    spoken["tool_calls"] = [{"name": "weather", "arguments": arguments}, {"function": {"name": "f", "arguments": ""}}]
    assert parse_dialog([spoken]).messages[0].tool_calls == (ToolCall("weather", arguments), ToolCall("f", {}))


@pytest.mark.parametrize("bad", [None, [], {"messages": {}}, {"messages": "x"}, {"messages": [1]}, [[]], 3])
def test_what_is_no_dialog_is_refused(bad: Any) -> None:
    with pytest.raises(DataError, match=r"a dialog needs a non-empty list|message 0: a message is an object"):
        parse_dialog(bad)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "robot"}, "message 0: message role 'robot' is not one of system, user, assistant, tool"),
        ({"role": ["user"]}, "message role"),
        ({"role": "user", "content": 0}, "content must be text, got int"),
        ({"role": "user", "weight": "1"}, "weight must be a number of 0 or more, got '1'"),
        ({"role": "user", "weight": True}, "weight must be"),
        ({"role": "user", "weight": -1}, "weight must be"),
        ({"role": "user", "weight": float("nan")}, "weight must be"),
        ({"role": "user", "weight": 10**400}, "weight must be"),
        ({"role": "assistant", "tool_calls": {"name": "f"}}, '"tool_calls" must be a list'),
        ({"role": "assistant", "tool_calls": ["f"]}, 'needs a "name"'),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}, 'needs a "name"'),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "are text but not JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "must be an object"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}, "must be an object"),
    ],
)
def test_a_bad_message_is_named(message: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        parse_dialog([message])


@pytest.mark.parametrize(
    "tools", ["f", {"name": "f"}, ["f"], [{"name": "f", "parameters": []}], [{"description": "x"}]]
)
def test_bad_tools_are_refused(tools: Any) -> None:
    with pytest.raises(DataError, match="tool"):
        parse_dialog({"messages": [USER.to_json()], "tools": tools})


SEVERAL = [Dialog((Message("user", text), ANSWER)).to_json() for text in ("first", "second")]
NO_USER = {"messages": [ANSWER.to_json()], "tools": [{"name": "f"}]}


@pytest.mark.parametrize("as_lines", [True, False])
def test_one_of_several_dialogs_is_chosen(tokens: Run, as_lines: bool) -> None:
    content = "\n\n".join(map(json.dumps, SEVERAL)) if as_lines else SEVERAL
    name = "several.jsonl" if as_lines else "several.json"
    letters = [
        "".join(re.findall(r"- -     '(\w)'", tokens(content, "--row", row, name=name)[1])) for row in ("0", "1")
    ]
    assert letters == ["first", "second"]
    assert "no dialog 2; it has 2, and --row counts from 0" in tokens(content, "--row", "2", name=name)[2]


def test_standard_input_is_a_dash(monkeypatch: pytest.MonkeyPatch, capsys: Any, ranks: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in SEVERAL)
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(lines.encode())))
    monkeypatch.setattr(sys, "argv", ["herd", "tokens", "-", "--row", "1", "--tokenizer", str(ranks)])
    with pytest.raises(SystemExit):
        main()
    assert "".join(re.findall(r"- -     '(\w)'", capsys.readouterr().out)) == "second"


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ('{"messages":\n [}', (), "dialog.json, line 2: not JSON"),
        ("", (), "line 1: not JSON"),
        ("[" * 100_000, (), "line 1: not readable as JSON"),
        ("1" * 5000, (), "line 1: not readable as JSON"),
        ({"messages": []}, (), 'needs a non-empty list "messages"'),
        ([{"role": "robot"}], (), "dialog.json: message 0: message role 'robot'"),
        (NO_USER, (), "has tools but no user message"),
        ([{"role": "user", "tool_calls": [{"name": "f"}]}], (), "only an assistant can call tools"),
        ([USER.to_json()], ("--row", "1"), "no dialog 1; it has 1"),
        ([USER.to_json()], ("--layout", "pretty"), "--layout 'pretty' is neither official, template, compact nor a"),
        ([USER.to_json()], ("--layout", __file__), "test_tokens_command.py, line 1: not JSON"),
        ([USER.to_json()], ("--html", "/dev/null/x.html"), "can't be written"),
        ([USER.to_json()], ("--tokenizer", "nowhere"), "nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tokens: Run, content: Any, options: tuple[str, ...], said: str) -> None:
    status, out, err = tokens(content, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("herd: ")
    assert said in err


def test_missing_and_foreign_files(tokens: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    for name, said in [("none.json", "none.json: can't be read (No such"), ("latin.json", "not UTF-8 text (byte 2)")]:
        monkeypatch.setattr(sys, "argv", ["herd", "tokens", str(tmp_path / name)])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert said in capsys.readouterr().err


def test_the_line_of_a_broken_row_is_told(tokens: Run) -> None:
    content = f"\n{json.dumps(SEVERAL[0])}\n{{]"
    assert "rows.jsonl, line 3: not JSON" in tokens(content, "--row", "1", name="rows.jsonl")[2]


TOLD = Dialog((USER, ANSWER), (Tool("f", "Does it", SCHEMA),))


def ids_of(out: str) -> list[int]:
    return [int(line.split()[1]) for line in out.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("option", "layout"),
    [("official", Layout()), ("compact", Layout(tool_prompt="compact")), ("FILE", Layout(tools_in="system"))],
)
def test_the_layout_is_chosen(tokens: Run, tmp_path: Path, option: str, layout: Layout) -> None:
    (tmp_path / "dialog_layout.json").write_text(json.dumps(layout_to_json(layout)))
    option = str(tmp_path / "dialog_layout.json") if option == "FILE" else option
    expected = DialogCodec(CODEC.tokenizer, layout)
    assert ids_of(tokens(TOLD.to_json(), "--layout", option)[1]) == expected.encode(TOLD).ids
    assert ids_of(tokens(TOLD.to_json(), "--layout", option, "--prompt")[1]) == expected.prompt(TOLD)


def test_a_run_brings_its_tokenizer_and_layout(tokens: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = tokens(TOLD.to_json(), tokenizer=False)
    assert (status, err[:50]) == (2, "herd: no runs/meadow here to take a tokenizer from")
    run = RunFolder(tmp_path / "runs/meadow")  # before any model is trained
    run.claim(load_recipe("meadow", []).model_dump(mode="json"))
    CODEC.tokenizer.save(run / "tokenizer")
    compact = DialogCodec(CODEC.tokenizer, Layout(tool_prompt="compact"))
    assert ids_of(tokens(TOLD.to_json(), tokenizer=False)[1]) == compact.encode(TOLD).ids
    assert ids_of(tokens(TOLD.to_json(), "--layout", "official", tokenizer=False)[1]) == CODEC.encode(TOLD).ids


def test_official_rows_are_drawn_as_they_are_trained_on(shared_data: Path) -> None:
    codec = DialogCodec(Tokenizer.load(shared_data / "tokenizer"), Layout())
    drawing: Drawing = draw(codec, Dialog((Message("user", "वह कहाँ रहता है? เขาอยู่ที่ไหน"), ANSWER)))
    content = [cluster for cluster in drawing.blocks[1].clusters if not cluster[0].control]
    assert "".join(map(joined, content)) == "वह कहाँ रहता है? เขาอยู่ที่ไหน"
    assert max(map(len, content)) > 1  # tokens do cut letters from their marks there


def test_a_model_folder_brings_its_own_layout(tokens: Run, tmp_path: Path) -> None:
    config, codec = TOY.model_copy(update={"vocab_size": 512}), DialogCodec(CODEC.tokenizer, Layout(tools_in="system"))
    write_hf(WeightsSource(dict(toy_model(config).named_parameters()), config), tmp_path / "model", dtype=torch.float32)
    write_hf_files(tmp_path / "model", config, codec, dtype=torch.float32, chat=True)
    out = tokens(TOLD.to_json(), "--tokenizer", str(tmp_path / "model"), tokenizer=False)[1]
    assert ids_of(out) == codec.encode(TOLD).ids
