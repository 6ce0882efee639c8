"""Tool calls as text, in the dialects of Llama 3.1: written, read back, and found in a streamed answer.

    json            {"name": "f", "parameters": {"x": 1}}        typed: {"type": "function", "name": ...
    function_tag    <function=f>{"x": 1}</function>
    python_list     [f(x=1), g(y="z")]
    built-in        brave_search.call(query="...")       code: <|python_tag|>print(1)

Every dialect is read, whichever is written. Text that isn't a whole call stays text; nothing is evaluated.
"""

import json
import keyword
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from herd.base.errors import DataError
from herd.base.messages import ToolCall
from herd.tokenizer.literals import CutShort, Reader, Wrong

Dialect = Literal["json", "function_tag", "python_list"]

BUILTINS = ("brave_search", "wolfram_alpha", "photogen")
CODE = "code_interpreter"

_KEYS = r"\{\s*[\"'](?:name|type|parameters|arguments)[\"']"
# Names before ".call" are ASCII and short, so that a stream never holds back a Thai sentence as one 'word'.
_WORD_START = r"(?<![A-Za-z0-9_])[A-Za-z_][A-Za-z0-9_]{0,63}"
_OPENER = re.compile(rf"<function=|{_KEYS}|\[\s*(?:{_KEYS}|[^\W\d][\w.]{{0,127}}\()|{_WORD_START}\.call\(")
_KEYS_TAIL = r"\{\s*(?:[\"'][a-z]*)?"
# What may become an opener when more text follows; only ever at the end.
_TAIL = re.compile(
    r"(?:<(?:f(?:u(?:n(?:c(?:t(?:i(?:on?)?)?)?)?)?)?)?"
    rf"|{_KEYS_TAIL}|\[\s*(?:[\w.]{{0,128}}|{_KEYS_TAIL})|{_WORD_START}(?:\.(?:c(?:a(?:ll?)?)?)?)?)\Z"
)
_FUNCTION_NAME = re.compile(r"[^<>{}\s\"']+")
_CALL_NAME = re.compile(r"[^\W\d][\w.]*")
_ARGUMENT = re.compile(r"[^\W\d]\w*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class CallStyle:
    """How calls are written. `typed` adds "type": "function"; `ascii_json` escapes non-ASCII characters.

    The official code does both.
    """

    dialect: Dialect = "json"
    typed: bool = False
    ascii_json: bool = False


def is_builtin(call: ToolCall) -> bool:
    """Say whether a call is one of a built-in tool, with a query and nothing else."""
    return call.name in BUILTINS and _only_text(call, "query")


def write_calls(calls: Sequence[ToolCall], style: CallStyle) -> tuple[str, bool]:
    """Return the text of the calls, and whether it is code, which must follow <|python_tag|>.

    A call that its dialect can't carry without loss is written as JSON. Raises DataError when that can't.
    """
    if len(calls) == 1 and calls[0].name == CODE and _only_text(calls[0], "code"):
        code = calls[0].arguments["code"]
        if not find_calls(code).calls:
            return code, True
    text = _write(calls, style)
    if text is not None and _reads_back(text, calls):
        return text, False
    text = "; ".join(_write_json(call, style) for call in calls)
    if not _reads_back(text, calls):
        raise DataError(
            f"tool call {calls[0].name!r} can't be written as JSON without loss: {calls[0].arguments!r:.80}"
        )
    return text, False


def _write(calls: Sequence[ToolCall], style: CallStyle) -> str | None:
    """Write calls in the style's dialect, or return None where it has no words for them."""
    builtin = [is_builtin(call) for call in calls]
    if style.dialect == "python_list" and not any(builtin):
        if not all(_CALL_NAME.fullmatch(c.name) and all(map(_is_argument, c.arguments)) for c in calls):
            return None
        return f"[{', '.join(_write_python(call) for call in calls)}]"
    parts = []
    for call, built_in in zip(calls, builtin, strict=True):
        if built_in:
            parts.append(f'{call.name}.call(query="{call.arguments["query"]}")')
        elif style.dialect == "function_tag":
            parts.append(f"<function={call.name}>{_dumps(call.arguments, style)}</function>")
        elif style.dialect == "json":
            parts.append(_write_json(call, style))
        else:
            return None
    return "; ".join(parts)


def _write_json(call: ToolCall, style: CallStyle) -> str:
    body = {"name": call.name, "parameters": call.arguments}
    return _dumps({"type": "function", **body} if style.typed else body, style)


def _dumps(value: Any, style: CallStyle) -> str:
    try:
        return json.dumps(value, ensure_ascii=style.ascii_json, allow_nan=False, default=dict)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"tool call arguments must be JSON values: {error}") from error


def _write_python(call: ToolCall) -> str:
    return f"{call.name}({', '.join(f'{key}={_python(value)}' for key, value in call.arguments.items())})"


def _python(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_python(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_python(key)}: {_python(item)}' for key, item in value.items())}}}"
    return _dumps(value, CallStyle())


def _is_argument(name: str) -> bool:
    return bool(_ARGUMENT.fullmatch(name)) and not keyword.iskeyword(name)


def _only_text(call: ToolCall, key: str) -> bool:
    return set(call.arguments) == {key} and isinstance(call.arguments[key], str)


def _reads_back(text: str, calls: Sequence[ToolCall]) -> bool:
    return find_calls(text).calls == tuple(ToolCall(call.name, dict(call.arguments)) for call in calls)


@dataclass(frozen=True)
class Found:
    """An answer taken apart: text, the calls after it, and why text that began like a call is not one."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    reason: str | None = None


def find_calls(text: str, names: Collection[str] = ()) -> Found:
    """Find the calls that an answer ends with.

    With `names` (the tools on offer) only calls of those count, and text may stand before the first. Without,
    the whole answer must be calls.
    """
    finder = CallFinder(names)
    shown = finder.push(text)
    rest = finder.finish()
    return Found(shown + rest.content, rest.calls, rest.reason)


def read_tagged(before: str, body: str, names: Collection[str] = ()) -> Found:
    """Take apart an answer with <|python_tag|>: `body` after it is calls of any name, or else code."""
    found = find_calls(body)
    if found.calls:
        return Found(before, found.calls)
    if names and CODE not in names:
        return Found(before + body, (), found.reason or "neither a call nor code that is on offer")
    return Found(before, (ToolCall(CODE, {"code": body}),))


class CallFinder:
    """`find_calls` for text that comes in pieces: gives out text as soon as it can't belong to a call."""

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = frozenset(names)
        self._text = ""  # what is not yet given out, after at most one character of context
        self._at = 0  # where that starts
        self._blank = True  # nothing but white space so far: held back, as a call may follow
        self._plain = False  # no call can come any more
        self._reason: str | None = None
        self._look_again = 0  # held length at which an unfinished call is read again; grows, so time stays linear

    def push(self, piece: str) -> str:
        """Take a piece of the answer and return the text that is certainly content."""
        self._text += piece
        if not self._plain and len(self._text) - self._at < self._look_again:
            return ""
        given, _ = self._advance(final=False)
        return given

    def release(self) -> str:
        """Return all text held back as content, without looking for calls in it."""
        self._plain = True
        return self._give(len(self._text), force=True)

    def finish(self) -> Found:
        """Say what the text held back was: calls, or content after all."""
        given, calls = self._advance(final=True)
        if calls:
            return Found(given, calls)
        return Found(given + self._give(len(self._text), force=True), (), self._reason)

    def _advance(self, *, final: bool) -> tuple[str, tuple[ToolCall, ...]]:
        given = ""
        self._look_again = 0
        while not self._plain:
            opener = _OPENER.search(self._text, self._at)
            tail = None if opener or final else _TAIL.search(self._text, self._at)
            found = opener or tail
            start = found.start() if found else len(self._text)
            if not self._names and (not self._blank or self._text[self._at : start].strip()):
                break
            if opener is None:
                return given + self._give(start), ()
            state, calls, end = self._read(start)
            if state == "cut" and final:
                state, self._reason = "wrong", self._reason or "the call is cut short"
            if state != "wrong":
                given += self._give(start)
                self._look_again = (len(self._text) - self._at) * 9 // 8 + 1
                return given, calls if final else ()
            given += self._give(end)
        self._plain = True
        return given + self._give(len(self._text), force=True), ()

    def _read(self, start: int) -> tuple[Literal["whole", "cut", "wrong"], tuple[ToolCall, ...], int]:
        """Read calls up to the end of the text. The last value is where to look on when they are wrong."""
        reader = Reader(self._text, start)
        calls: list[ToolCall] = []
        end = start + 1
        try:
            while True:
                for call in _read_item(reader):
                    if self._names and call.name not in self._names:
                        raise Wrong(f"no tool is named {call.name!r}")
                    calls.append(call)
                end = reader.at
                reader.space()
                if not reader.done and reader.peek() in ";,":
                    reader.at += 1
                    reader.space()
                if reader.done:
                    return "whole", tuple(calls), end
        except Wrong as error:
            self._reason = self._reason or str(error)
            return "wrong", (), end
        except CutShort:
            return "cut", (), end

    def _give(self, end: int, *, force: bool = False) -> str:
        given = self._text[self._at : end]
        if not given or (self._blank and not force and not given.strip()):
            return ""
        self._blank = False
        self._text, self._at = self._text[end - 1 :], 1
        return given


def _read_item(reader: Reader) -> Iterable[ToolCall]:
    """Read one call, or one list of calls, in any dialect."""
    first = reader.peek()
    if first == "<":
        return (_read_function_tag(reader),)
    if first == "{":
        return (_as_call(reader),)
    if first != "[":
        return (_read_builtin(reader),)
    reader.literal("[")
    calls = []
    while True:
        reader.space()
        calls.append(_as_call(reader) if reader.peek() == "{" else _read_python(reader))
        if reader.closes("]"):
            return calls


def _as_call(reader: Reader) -> ToolCall:
    row = reader.mapping()
    name, arguments = row.get("name"), row.get("parameters", row.get("arguments"))
    if not isinstance(name, str) or not name or row.get("type", "function") != "function":
        raise Wrong("malformed call: no name of a function")
    if not isinstance(arguments, dict):
        raise Wrong(f"malformed call: the parameters of {name!r} are not an object")
    return ToolCall(name, arguments)


def _read_function_tag(reader: Reader) -> ToolCall:
    reader.literal("<function=")
    name = reader.run(_FUNCTION_NAME, "a function's name")
    reader.literal(">")
    reader.space()
    arguments = reader.mapping()
    reader.space()
    reader.literal("</function>")
    return ToolCall(name, arguments)


def _read_python(reader: Reader) -> ToolCall:
    name = reader.run(_CALL_NAME, "a function's name")
    reader.literal("(")
    arguments: dict[str, Any] = {}
    reader.space()
    if reader.peek() == ")":
        reader.at += 1
        return ToolCall(name, arguments)
    while True:
        reader.space()
        key = reader.run(_ARGUMENT, "name=value")
        reader.space()
        reader.literal("=")
        reader.space()
        arguments[key] = reader.value()
        if reader.closes(")"):
            return ToolCall(name, arguments)


def _read_builtin(reader: Reader) -> ToolCall:
    name = reader.run(_WORD, "a call")
    reader.literal('.call(query="')
    end = reader.text.find('"', reader.at)
    if end < 0:
        raise CutShort
    query, reader.at = reader.text[reader.at : end], end + 1
    reader.literal(")")
    return ToolCall(name, {"query": query})
