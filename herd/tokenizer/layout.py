"""What the official code, documents and chat template of Llama 3.1 leave open or disagree about, as one set of choices.

A model folder carries its choices in `dialog.json`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from herd.base.errors import DataError
from herd.tokenizer.tool_dialects import CallStyle
from herd.tokenizer.tool_prompts import Place, ToolPrompt

LAYOUT_FILE = "dialog.json"


@dataclass(frozen=True)
class Layout:
    """How dialogs are laid out. Here 'code' is llama-models, 'documents' its prompt format pages.

    calls         how tool calls are written (every dialect is read)
    tool_prompt   'full': the official wording; 'compact': one line a tool, for small contexts; 'none'
    tools_in      which message tells of the tools: the first user message, or the system message
    environment   whether the full tool prompt opens the system message with "Environment: ipython", as code,
                  documents and chat template do; the pages for small models and zero-shot calls leave it out
    opening       blank lines among the lines before the system message: 'lines' has none; 'documents' has one
                  after the environment where no "Tools:" line follows; 'template' (the published chat template)
                  has one after the "Tools:" line, and one at the end even when no system message follows
    python_tag    'code': <|python_tag|> before code only, as the official code does; 'builtins': before calls of
                  built-in tools too, as the chat template does; 'calls': before every call, as the documents
                  show. It always stands between text and calls of a message
    call_end      how a message with calls ends: the 3.1 documents use eom where an environment answers
    tool_results  'text' as the code gives them; 'json': as a quoted JSON string, as the chat template does
    open_header   'newlines': a prompt ends with the assistant's header and its two newlines, as in code and chat
                  template; 'bare': without them, as in Llama Guard's template; the model writes them itself
    dates         knowledge cut-off and today's date for the system message; none unless given
    reading       'exact' loses nothing; 'official' reads as the official decoder does
    """

    calls: CallStyle = field(default_factory=CallStyle)
    tool_prompt: ToolPrompt = "full"
    tools_in: Place = "user"
    environment: bool = True
    opening: Literal["lines", "documents", "template"] = "lines"
    python_tag: Literal["code", "builtins", "calls"] = "code"
    call_end: Literal["eom", "eot"] = "eom"
    tool_results: Literal["text", "json"] = "text"
    open_header: Literal["newlines", "bare"] = "newlines"
    dates: tuple[str, str] | None = None
    reading: Literal["exact", "official"] = "exact"


# What the chat template published with Llama 3.1 renders, for messages without white space around their content.
PUBLISHED_TEMPLATE = Layout(
    opening="template",
    python_tag="builtins",
    call_end="eot",
    tool_results="json",
    dates=("December 2023", "26 Jul 2024"),
)


def layout_to_json(layout: Layout) -> dict[str, Any]:
    """Return the layout as plain data, every choice spelled out."""
    return asdict(layout) | {"dates": list(layout.dates) if layout.dates else None}


def layout_from_json(row: Any, *, where: str = LAYOUT_FILE) -> Layout:
    """Read a layout; choices left out have their defaults. Raises DataError naming unknown keys and bad values."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a dialog layout is an object, got {type(row).__name__}")
    calls = row.get("calls")
    unknown = sorted(set(row) - {f.name for f in fields(Layout)})
    if isinstance(calls, Mapping):
        unknown += sorted(f"calls.{key}" for key in set(calls) - {f.name for f in fields(CallStyle)})
    if unknown:
        known = ", ".join(f.name for f in fields(Layout))
        raise DataError(f"{where}: unknown keys {', '.join(map(repr, unknown))}; known keys: {known}")
    try:
        return TypeAdapter(Layout).validate_json(json.dumps(row), strict=True)
    except (ValidationError, RecursionError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        place = ".".join(map(str, first["loc"])) or "the layout"
        raise DataError(f"{where}: {place}: {first['msg']} (got {first.get('input')!r:.80})") from None
