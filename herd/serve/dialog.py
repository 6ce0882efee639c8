"""A chat request as herd's own values: the dialog, its tools, and the grammar that the answer is held to."""

import json
from collections.abc import Sequence
from typing import Any

from herd.base.messages import Dialog, Message, Tool, ToolCall
from herd.engine.constraint import Constraint
from herd.engine.grammar import json_constraint, tool_constraint
from herd.serve.errors import ApiError
from herd.serve.schema import ChatMessage, ChatRequest, EarlierCall, NamedChoice, TextPart
from herd.tokenizer.codec import DialogCodec


def dialog_of(request: ChatRequest) -> Dialog:
    """Return the conversation with the tools that may be called. Raises ApiError naming the field at fault."""
    messages = tuple(_message(message, f"messages.{i}") for i, message in enumerate(request.messages))
    return Dialog(messages, _tools(request))


def constraint_of(request: ChatRequest, dialog: Dialog, codec: DialogCodec) -> Constraint | None:
    """Return the grammar of the answer, None where any text will do.

    Raises HerdError on a schema that can't be followed, or where the library for grammars is missing.
    """
    wanted = request.response_format
    kind = wanted.type if wanted else "text"
    if dialog.tools and kind != "text":
        raise ApiError("a JSON answer and tools at once: use tool_choice 'none'", param="response_format")
    if kind == "json_object":
        return json_constraint(codec.tokenizer, None)
    if wanted and kind == "json_schema":
        if wanted.json_schema is None:
            raise ApiError("type 'json_schema' needs the field json_schema", param="response_format.json_schema")
        return json_constraint(codec.tokenizer, wanted.json_schema.schema_ or {})
    choice = request.tool_choice
    must_call = choice not in (None, "auto")
    if not dialog.tools or not (must_call or any(tool.function.strict for tool in request.tools or ())):
        return None
    return tool_constraint(
        codec.tokenizer,
        dialog.tools,
        codec.layout,
        required=must_call,
        name=choice.function.name if isinstance(choice, NamedChoice) else None,
        parallel=request.parallel_tool_calls is not False,
    )


def _tools(request: ChatRequest) -> tuple[Tool, ...]:
    choice, offered = request.tool_choice, request.tools or []
    names = [tool.function.name for tool in offered]
    if len(set(names)) < len(names):
        raise ApiError("two tools have the same name", param="tools")
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise ApiError(f"tool_choice names {choice.function.name!r:.80}, which is not in tools", param="tool_choice")
    if choice == "required" and not names:
        raise ApiError("tool_choice 'required' needs tools", param="tool_choice")
    if choice == "none":
        return ()
    functions = [tool.function for tool in offered]
    return tuple(
        Tool(f.name, f.description or "", f.parameters or {"type": "object", "properties": {}}) for f in functions
    )


def _message(message: ChatMessage, where: str) -> Message:
    role = "system" if message.role == "developer" else message.role
    calls = message.tool_calls or []
    if calls and role != "assistant":
        raise ApiError(f"only an assistant calls tools, not role {role!r}", param=f"{where}.tool_calls")
    if message.content is None and not calls and role != "assistant":
        raise ApiError(f"a message of role {message.role!r} needs content", param=f"{where}.content")
    return Message(
        role, _text(message.content), tuple(_call(c, f"{where}.tool_calls.{i}") for i, c in enumerate(calls))
    )


def _text(content: str | Sequence[TextPart] | None) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content or ())


def _call(call: EarlierCall, where: str) -> ToolCall:
    try:
        arguments: Any = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError("arguments must be a JSON object in a string", param=f"{where}.function.arguments")
    return ToolCall(call.function.name, arguments)
