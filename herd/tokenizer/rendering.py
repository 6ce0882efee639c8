"""Chat templates rendered as transformers renders them, in a sandbox, and held against the dialog codec.

dialog --render(template)--> text           content that spells a control token looks like one
dialog --rendered_ids------> ids            content is shielded while the template runs, so it stays text
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from herd.base.errors import DataError
from herd.base.messages import Dialog, Message, Tool, ToolCall
from herd.tokenizer import specials
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.codec import AFTER_HEADER, DialogCodec

_CONTROL = re.compile(f"({'|'.join(map(re.escape, specials.SPECIAL_TOKENS))})")
_PRIVATE_USE = range(0xE000, 0xF900)


def render(
    template: str,
    dialog: Dialog | Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    date_string: str | None = None,
) -> str:
    """Return the text that a chat template gives for a dialog, or for messages and tools in the OpenAI form.

    A dialog brings its own tools. The sandbox bounds what a template can reach, not how long it runs. Raises
    DataError where the template has a syntax error, or fails.
    """
    messages = dialog
    if isinstance(dialog, Dialog):
        messages, tools = _messages(dialog), _tools(dialog)
    values = {} if date_string is None else {"date_string": date_string}
    compiled = _compiled(template)
    try:
        return compiled.render(
            messages=messages,
            tools=tools or None,
            add_generation_prompt=add_generation_prompt,
            bos_token=specials.BEGIN_OF_TEXT,
            **values,
        )
    except Exception as error:  # a template can fail in any way that Python can
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise DataError(f"the chat template can't render this dialog: {reason:.300}") from error


def rendered_ids(
    tokenizer: Tokenizer, template: str, dialog: Dialog, *, add_generation_prompt: bool = True
) -> list[int]:
    """Return the ids of a dialog rendered by a template, where only the template writes control tokens.

    With the layout's own template these are the ids of the codec, whatever the content spells. Raises DataError.
    """
    mark = _unused_mark(dialog)
    escaped = f"\\u{ord(mark):04x}"  # the mark as JSON in ASCII has it
    shielded = _mapped(dialog, lambda text: text.replace("|", f"{mark}|"))
    text = render(template, shielded, add_generation_prompt=add_generation_prompt)
    ids: list[int] = []
    after_header = False
    for piece in _CONTROL.split(text):
        if piece in tokenizer.special_ids:
            ids.append(tokenizer.special_ids[piece])
        else:
            if after_header and piece.startswith(AFTER_HEADER):  # the codec encodes the header apart from content
                ids += tokenizer.encode(AFTER_HEADER)
                piece = piece.removeprefix(AFTER_HEADER)
            ids += tokenizer.encode(piece.replace(mark, "").replace(escaped, ""))
        after_header = piece == specials.END_HEADER
    return ids


def check_template(template: str) -> None:
    """Raise DataError where a chat template has a syntax error."""
    _compiled(template)


def compare_template(template: str, codec: DialogCodec) -> str | None:
    """Say in one line where a template first differs from a codec, over a handful of dialogs; None where nowhere.

    White space around content is no part of them: the published templates trim it, herd never does.
    """
    dates = codec.layout.dates
    for name, dialog in _probes().items():
        expected = codec.tokenizer.decode(codec.prompt(dialog))
        try:
            text = render(template, dialog, date_string=dates[1] if dates else None)
        except DataError as error:
            return f"{name}: {error}"
        if text != expected:
            at = next((i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), None)
            at = min(len(text), len(expected)) if at is None else at
            here = slice(max(0, at - 20), at + 30)
            return f"{name}: at character {at} the template has {text[here]!r} where herd has {expected[here]!r}"
    return None


def _probes() -> dict[str, Dialog]:
    """Return small dialogs that between them use all that a chat template must know."""
    system, user = Message("system", "You are a helpful assistant."), Message("user", "How warm is it in Ulm?")
    schema = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
    tools = (Tool("get_weather", "The weather of a town", schema),)
    call = Message("assistant", "", (ToolCall("get_weather", {"town": "Ulm", "days": 2}),))
    talk = (user, Message("assistant", "Warm."), Message("user", "Thank you."))
    return {
        "one user message": Dialog((user,)),
        "a system message": Dialog((system, user)),
        "several turns": Dialog((system, *talk)),
        "tools": Dialog((system, user), tools),
        "a tool call": Dialog((system, user, call), tools),
        "a tool's result": Dialog((system, user, call, Message("tool", '{"celsius": 21}')), tools),
    }


class _Generation(Extension):
    """The tag of transformers around what an assistant writes: its content, as it is."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(template, {"raise_exception": _raise, "strftime_now": _now})
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"chat template, line {error.lineno}: {error.message}") from None
    except (RecursionError, SyntaxError, ValueError, OverflowError) as error:  # nested beyond what Python compiles
        raise DataError(f"chat template: {' '.join(str(error).split()):.300}") from None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _messages(dialog: Dialog) -> list[dict[str, Any]]:
    rows = []
    for message in dialog.messages:
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            row["tool_calls"] = [{"type": "function", "function": _plain(c.to_json())} for c in message.tool_calls]
        rows.append(row)
    return rows


def _tools(dialog: Dialog) -> list[dict[str, Any]]:
    return [{"type": "function", "function": _plain(tool.to_json())} for tool in dialog.tools]


def _plain(value: Any, change: Callable[[str], str] = str) -> Any:
    """Return JSON data with plain dictionaries and lists, every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_plain(key, change): _plain(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, change) for item in value]
    return value


def _mapped(dialog: Dialog, change: Callable[[str], str]) -> Dialog:
    """Return the dialog with every text in it changed."""
    messages = tuple(
        Message(
            message.role,
            change(message.content),
            tuple(ToolCall(change(call.name), _plain(call.arguments, change)) for call in message.tool_calls),
        )
        for message in dialog.messages
    )
    tools = tuple(Tool(change(t.name), change(t.description), _plain(t.parameters, change)) for t in dialog.tools)
    return Dialog(messages, tools, dialog.id)


def _unused_mark(dialog: Dialog) -> str:
    """Return a private-use character that the dialog has neither as itself nor as JSON escapes it."""
    seen: list[str] = []
    _mapped(dialog, lambda text: seen.append(text) or text)
    used = "".join(seen)
    for code in _PRIVATE_USE:
        if chr(code) not in used and f"\\u{code:04x}" not in used:
            return chr(code)
    raise DataError("the dialog uses every private-use character of Unicode, so none is left to shield its content")
