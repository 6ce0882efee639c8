"""A dialog as data: messages, tool calls and the tools on offer.

The JSON form is what every dialog file of herd holds, one dialog a line:
    {"id": "...", "lang": "en", "tools": [{"name", "description", "parameters"}], "messages": [
        {"role": "user", "content": "..."},
        {"role": "assistant", "content": "", "tool_calls": [{"name", "arguments"}]}]}
The OpenAI form is read too: a bare list of messages, calls and tools as {"type": "function", "function": {...}}, a
call's arguments as a JSON string.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from herd.base.errors import DataError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class ToolCall:
    """One call: the tool's name and its JSON arguments."""

    name: str
    arguments: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": dict(self.arguments)}


@dataclass(frozen=True)
class Tool:
    """A function on offer: name, description and JSON-schema parameters."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}


@dataclass(frozen=True)
class Message:
    """One turn. `weight` overrides the loss weight of the role (assistant 1, all others 0)."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    weight: float | None = None

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            row["tool_calls"] = [call.to_json() for call in self.tool_calls]
        if self.weight is not None:
            row["weight"] = self.weight
        return row


@dataclass(frozen=True)
class Dialog:
    """A conversation and the tools it may use. `meta` carries whatever else the file said."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    id: str = ""
    lang: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"id": self.id, "lang": self.lang, **self.meta}
        if self.tools:
            row["tools"] = [tool.to_json() for tool in self.tools]
        return row | {"messages": [message.to_json() for message in self.messages]}


def parse_message(row: Mapping[str, Any]) -> Message:
    """Read one message; `ipython` is the official name of role `tool`. Raises DataError."""
    if not isinstance(row, Mapping):
        raise DataError(f"a message is an object with a role and content, got {row!r:.80}")
    role = row.get("role")
    role = "tool" if role == "ipython" else role
    if role not in ROLES:
        raise DataError(f"message role {row.get('role')!r:.80} is not one of {', '.join(ROLES)}")
    content = row.get("content")
    if not isinstance(content, str | None):
        raise DataError(f"message content must be text, got {type(content).__name__}")
    calls = tuple(map(_call, _rows(row, "tool_calls")))
    return Message(role, content or "", calls, _weight(row.get("weight")))


def parse_messages(rows: Iterable[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Read a list of messages. Raises DataError naming the message, counted from 0."""
    messages = []
    for i, row in enumerate(rows):
        try:
            messages.append(parse_message(row))
        except DataError as error:
            raise DataError(f"message {i}: {error}") from None
    return tuple(messages)


def parse_dialog(row: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Dialog:
    """Read one dialog, or a bare list of its messages (see the module docstring). Raises DataError."""
    given: Any = {"messages": row} if isinstance(row, list) else row
    if not isinstance(given, Mapping) or not isinstance(given.get("messages"), list) or not given["messages"]:
        raise DataError('a dialog needs a non-empty list "messages"')
    meta = {key: value for key, value in given.items() if key not in ("messages", "tools", "id", "lang")}
    tools = tuple(map(_tool, _rows(given, "tools")))
    return Dialog(parse_messages(given["messages"]), tools, str(given.get("id", "")), given.get("lang"), meta)


def _rows(row: Mapping[str, Any], key: str) -> list[Any]:
    rows = row.get(key)
    if not isinstance(rows, list | None):
        raise DataError(f'"{key}" must be a list, got {rows!r:.80}')
    return rows or []


def _tool(row: Any) -> Tool:
    row = _function(row)
    description, parameters = row.get("description"), row.get("parameters")
    if not isinstance(description, str | None) or not isinstance(parameters, Mapping | None):
        raise DataError(f"tool {row['name']!r:.80}: its description must be text and its parameters an object")
    return Tool(row["name"], description or "", parameters or {})


def _call(row: Any) -> ToolCall:
    row = _function(row)
    arguments = row.get("arguments")
    arguments = {} if arguments in (None, "") else arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise DataError(f"call of {row['name']!r:.80}: its arguments are text but not JSON ({error})") from None
    if not isinstance(arguments, Mapping):
        raise DataError(f"call of {row['name']!r:.80}: its arguments must be an object, got {arguments!r:.80}")
    return ToolCall(row["name"], arguments)


def _function(row: Any) -> Mapping[str, Any]:
    """Return a tool or a tool call without the wrapper of the OpenAI form."""
    bare = row["function"] if isinstance(row, Mapping) and isinstance(row.get("function"), Mapping) else row
    if not isinstance(bare, Mapping) or not isinstance(bare.get("name"), str):
        raise DataError(f'a tool or tool call needs a "name", got {row!r:.80}')
    return bare


def _weight(value: Any) -> float | None:
    """Return a message's loss weight as the file has it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= sys.float_info.max):
        raise DataError(f"message weight must be a number of 0 or more, got {value!r:.80}")
    return value
