"""Assistant text read exactly as the official Llama decoder reads it, losses included.

It drops text around a call, keeps only the first of several, and mends single quotes by replacing them all.
herd's own reading (`tool_dialects.find_calls`) loses nothing; this one is for comparison.
"""

import json
import re
from typing import Any

from herd.base.messages import ToolCall
from herd.tokenizer.tool_dialects import BUILTINS, CODE, Found, find_calls

_BUILTIN = re.compile(r'\b(?P<name>\w+)\.call\(query="(?P<query>[^"]*)"\)')
_CUSTOM = re.compile(r"<function=(?P<name>[^}<]+)>(?P<arguments>{.*?})")


def read_officially(text: str, *, tagged: bool) -> Found:
    """Return the one call of an answer, or its text; `tagged` says that <|python_tag|> opened it."""
    call = _custom_call(text)
    if call is not None:
        if call.name in (*BUILTINS, CODE) and call.arguments:
            call = ToolCall(call.name, {"query": next(iter(call.arguments.values()))})
        return Found("", (call,))
    builtin = _BUILTIN.search(text)
    if builtin:
        return Found("", (ToolCall(builtin["name"], {"query": builtin["query"]}),))
    return Found("", (ToolCall(CODE, {"code": text}),)) if tagged else Found(text)


def _custom_call(text: str) -> ToolCall | None:
    match = _CUSTOM.search(text)
    if match:
        arguments = _json_object(match["arguments"].replace("'", '"'))
        return None if arguments is None else ToolCall(match["name"], arguments)
    row = _json_object(text)
    if row is not None:
        name, arguments = row.get("name"), row.get("parameters")
        return ToolCall(name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None
    if not text.lstrip().startswith("["):
        return None
    calls = find_calls(text).calls
    return calls[0] if calls else None


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
