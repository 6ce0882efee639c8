"""A dialog as data: messages, tool calls and the tools on offer.

The JSON form is what every dialog file of herd holds, one dialog a line:
    {"id": "...", "lang": "en", "tools": [{"name", "description", "parameters"}], "messages": [
        {"role": "user", "content": "..."},
        {"role": "assistant", "content": "", "tool_calls": [{"name", "arguments"}]}]}
"""

from collections.abc import Iterable, Mapping
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
    role = row.get("role")
    role = "tool" if role == "ipython" else role
    if role not in ROLES:
        raise DataError(f"message role {row.get('role')!r} is not one of {', '.join(ROLES)}")
    content = row.get("content") or ""
    if not isinstance(content, str):
        raise DataError(f"message content must be text, got {type(content).__name__}")
    calls = tuple(ToolCall(_name(call), call.get("arguments") or {}) for call in row.get("tool_calls") or ())
    return Message(role, content, calls, row.get("weight"))


def parse_messages(rows: Iterable[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Read a list of messages. Raises DataError."""
    return tuple(parse_message(row) for row in rows)


def parse_dialog(row: Mapping[str, Any]) -> Dialog:
    """Read one dialog from its JSON form (see the module docstring). Raises DataError."""
    if not isinstance(row, Mapping) or not isinstance(row.get("messages"), list) or not row["messages"]:
        raise DataError('a dialog needs a non-empty list "messages"')
    tools = tuple(Tool(_name(t), t.get("description", ""), t.get("parameters") or {}) for t in row.get("tools") or ())
    meta = {key: value for key, value in row.items() if key not in ("messages", "tools", "id", "lang")}
    return Dialog(parse_messages(row["messages"]), tools, str(row.get("id", "")), row.get("lang"), meta)


def _name(row: Any) -> str:
    if not isinstance(row, Mapping) or not isinstance(row.get("name"), str):
        raise DataError(f'a tool or tool call needs a "name", got {row!r:.80}')
    return row["name"]
