"""The one dialog codec: a conversation to ids with a loss weight per token, and ids back to the conversation.

    <|begin_of_text|>                                                weight 0, control
    <|start_header_id|>user<|end_header_id|>\\n\\n  Hello  <|eot_id|>  weight 0; header and eot are control
    <|start_header_id|>assistant<|end_header_id|>\\n\\n                weight 0, control
    Hi!  <|eot_id|>                                                  weight 1; eot is control
    {"name": "f", "parameters": {}}  <|eom_id|>                      weight 1; a call awaits its result

Content is encoded apart from the layout, so no text can become a control token.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from herd.base.errors import DataError
from herd.base.messages import Dialog, Message, Role, Tool
from herd.tokenizer import specials
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.layout import Layout
from herd.tokenizer.official_reading import read_officially
from herd.tokenizer.tool_dialects import find_calls, is_builtin, read_tagged, write_calls
from herd.tokenizer.tool_prompts import builtin_line, tool_prompt

Stop = Literal["end_of_turn", "end_of_message", "out_of_tokens"]

_ROLE_NAMES: dict[Role, str] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "ipython",
}
_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "ipython": "tool"}
AFTER_HEADER = "\n\n"
_ASSISTANT_HEADER = f"{specials.START_HEADER}assistant{specials.END_HEADER}"


@dataclass(frozen=True)
class Encoded:
    """One dialog as ids. All three lists have the same length.

    weights are loss weights; control marks special and header tokens, which preference training masks
    (section 4.1.4).
    """

    ids: list[int]
    weights: list[float]
    control: list[bool]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Parsed:
    """An assistant's output: the message, how it stopped, and why text that began like a call is not one."""

    message: Message
    stop: Stop
    reason: str | None = None


class DialogCodec:
    """Conversation to ids and back, in the Llama 3.1 format."""

    def __init__(self, tokenizer: Tokenizer, layout: Layout | None = None) -> None:
        self.tokenizer = tokenizer
        self.layout = layout or Layout()
        self._start, self._end = (tokenizer.special_ids[name] for name in (specials.START_HEADER, specials.END_HEADER))
        self._headers: dict[Role, list[int]] = {
            role: [self._start, *tokenizer.encode(name), self._end, *tokenizer.encode(AFTER_HEADER)]
            for role, name in _ROLE_NAMES.items()
        }

    def encode(self, dialog: Dialog) -> Encoded:
        """Return the dialog as a training example: begin_of_text, then every message with its end token.

        Weight 1 on what an assistant writes, its end token included, 0 elsewhere; `Message.weight` overrides.
        Raises DataError.
        """
        out = Encoded([], [], [])
        _add(out, [self.tokenizer.bos_id], 0.0, control=True)
        for message in self._laid_out(dialog):
            _add(out, self._headers[message.role], 0.0, control=True)
            weight = message.weight if message.weight is not None else float(message.role == "assistant")
            for ids, control in self._body(message):
                _add(out, ids, weight, control=control)
        return out

    def prompt(self, dialog: Dialog) -> list[int]:
        """Return the ids of the dialog and an open assistant header to go on from. Raises DataError."""
        header = self._headers["assistant"]
        bare = self.layout.open_header == "bare"
        return [*self.encode(dialog).ids, *(header[: header.index(self._end) + 1] if bare else header)]

    def parse(self, output: Sequence[int] | str, *, tools: Iterable[Tool] = ()) -> Message:
        """Return an assistant's output as a message. See `read`."""
        return self.read(output, tools=tools).message

    def read(self, output: Sequence[int] | str, *, tools: Iterable[Tool] = ()) -> Parsed:
        """Read an assistant's output, ids or text, with or without its header and end token.

        With `tools`, only calls of those are calls, and text may stand before them. In text, the names of
        special tokens count as the tokens. Never raises on content.
        """
        if self.layout.reading == "official":
            text = output if isinstance(output, str) else self.tokenizer.decode(output)
            text = text.strip(" ").removeprefix(f"{_ASSISTANT_HEADER}{AFTER_HEADER}")
            before, tagged, stop = _take_text_apart(text)
            if before and tagged is not None:  # the official decoder sees the tag only at the start
                before, tagged = before + specials.PYTHON_TAG + tagged, None
            found = read_officially(before if tagged is None else tagged, tagged=tagged is not None)
        else:
            before, tagged, stop = self._take_apart(output)
            names = [tool.name for tool in tools]
            found = find_calls(before, names) if tagged is None else read_tagged(before, tagged, names)
        return Parsed(Message("assistant", found.content, found.calls), stop, found.reason)

    def decode(self, ids: Sequence[int], *, tools: Sequence[Tool] = ()) -> Dialog:
        """Return the dialog that `encode` gave these ids for; `tools` are those it had. Raises DataError.

        Weights, identifiers and an empty system message are not in the ids.
        """
        messages: list[Message] = []
        at = 1 if len(ids) and ids[0] == self.tokenizer.bos_id else 0
        ends = set(self.tokenizer.stop_ids)
        while at < len(ids):
            if ids[at] != self._start:
                raise DataError(f"no message header at token {at}: found id {ids[at]}")
            stop = next((i for i in range(at, len(ids)) if ids[i] in ends), len(ids))
            messages.append(self._message(ids[at : min(stop + 1, len(ids))], tools))
            at = stop + 1
        return Dialog(tuple(self._without_prompts(messages, tools)), tuple(tools))

    def _laid_out(self, dialog: Dialog) -> list[Message]:
        """Return the messages with the system lines and the tool prompt worked in."""
        messages = list(dialog.messages)
        opening = self._system_opening(dialog.tools)
        if opening:
            if not messages or messages[0].role != "system":
                messages.insert(0, Message("system", ""))
            first = messages[0]
            blank = first.content or self.layout.opening == "template"
            content = f"{opening}\n\n{first.content}" if blank else opening
            messages[0] = Message("system", content, first.tool_calls, first.weight)
        told = self._user_opening(dialog.tools)
        if told:
            i = next((i for i, message in enumerate(messages) if message.role == "user"), None)
            if i is None:
                raise DataError(f"dialog {dialog.id!r} has tools but no user message for them: use tools_in='system'")
            messages[i] = Message("user", f"{told}\n\n{messages[i].content}", (), messages[i].weight)
        return messages

    def _system_opening(self, tools: Sequence[Tool]) -> str:
        layout, environment, builtins, dates = self.layout, "", "", ""
        if tools and layout.tool_prompt == "full":
            environment = "Environment: ipython" if layout.environment else ""
            builtins = builtin_line(tools)
        if layout.dates:
            dates = f"Cutting Knowledge Date: {layout.dates[0]}\nToday Date: {layout.dates[1]}"
        head = "\n".join(filter(None, [environment, builtins]))
        blank = not builtins if layout.opening == "documents" else layout.opening == "template" and builtins
        lines = ("\n\n" if blank else "\n").join(filter(None, [head, dates]))
        told = self._told(tools) if layout.tools_in == "system" else ""
        return "\n\n".join(filter(None, [lines, told]))

    def _user_opening(self, tools: Sequence[Tool]) -> str:
        return self._told(tools) if self.layout.tools_in == "user" else ""

    def _told(self, tools: Sequence[Tool]) -> str:
        layout = self.layout
        return tool_prompt(tools, style=layout.tool_prompt, dialect=layout.calls.dialect, place=layout.tools_in)

    def _without_prompts(self, messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
        """Undo `_laid_out`."""
        opening, told = self._system_opening(tools), self._user_opening(tools)
        if opening and messages and messages[0].role == "system":
            if messages[0].content in (opening, f"{opening}\n\n"):
                messages = messages[1:]
            else:
                content = messages[0].content.removeprefix(f"{opening}\n\n")
                messages = [Message("system", content), *messages[1:]]
        if told:
            i = next((i for i, message in enumerate(messages) if message.role == "user"), None)
            if i is not None:
                messages[i] = Message("user", messages[i].content.removeprefix(f"{told}\n\n"))
        return messages

    def _body(self, message: Message) -> list[tuple[list[int], bool]]:
        """Return a message's content and end token in parts, each with whether it is control."""
        end = self.tokenizer.eot_id
        quoted = message.role == "tool" and self.layout.tool_results == "json"
        content = json.dumps(message.content, ensure_ascii=False) if quoted else message.content
        parts = [(self.tokenizer.encode(content), False)]
        if message.tool_calls:
            if message.role != "assistant":
                raise DataError(f"only an assistant can call tools, not role {message.role!r}")
            text, is_code = write_calls(message.tool_calls, self.layout.calls)
            if is_code or message.content or self._is_tagged(message):
                parts.append(([self.tokenizer.python_tag_id], True))
            parts.append((self.tokenizer.encode(text), False))
            if self.layout.call_end == "eom":
                end = self.tokenizer.eom_id
        return [*parts, ([end], True)]

    def _is_tagged(self, message: Message) -> bool:
        """Say whether the layout puts <|python_tag|> before calls that need none."""
        tag = self.layout.python_tag
        return tag == "calls" or (tag == "builtins" and all(map(is_builtin, message.tool_calls)))

    def _message(self, ids: Sequence[int], tools: Sequence[Tool]) -> Message:
        """Read one message: header, content and, where not cut short, its end token."""
        end = next((i for i, token in enumerate(ids) if token == self._end), None)
        name = self.tokenizer.decode(ids[1:end]) if end is not None else ""
        if end is None or name not in _ROLES:
            raise DataError(f"message header {self.tokenizer.decode(ids[:8])!r} is not one of {', '.join(_ROLES)}")
        role = _ROLES[name]
        if role == "assistant":
            return self.parse(ids, tools=tools)
        body = ids[end + 1 : -1] if ids[-1] in self.tokenizer.stop_ids else ids[end + 1 :]
        content = self.tokenizer.decode(body).removeprefix(AFTER_HEADER)
        return Message(role, _unquoted(content) if role == "tool" and self.layout.tool_results == "json" else content)

    def _take_apart(self, output: Sequence[int] | str) -> tuple[str, str | None, Stop]:
        """Return text before <|python_tag|>, text after it (None without one), and how the output stopped."""
        bare = self.layout.open_header == "bare"  # then an output without its header begins with the newlines
        if isinstance(output, str):
            text = output.removeprefix(_ASSISTANT_HEADER)
            return _take_text_apart(text.removeprefix(AFTER_HEADER) if bare or text != output else text)
        ids, tokenizer = list(output), self.tokenizer
        header = bool(ids) and ids[0] == self._start and self._end in ids
        if header:
            ids = ids[ids.index(self._end) + 1 :]
        end = next((i for i, token in enumerate(ids) if token in tokenizer.stop_ids), None)
        stop: Stop = "out_of_tokens" if end is None else stop_of(tokenizer, ids[end])
        ids = ids[:end]
        tag = ids.index(tokenizer.python_tag_id) if tokenizer.python_tag_id in ids else None
        before = tokenizer.decode(ids[:tag])
        after = None if tag is None else tokenizer.decode(ids[tag + 1 :])
        return (before.removeprefix(AFTER_HEADER) if header or bare else before), after, stop


def stop_of(tokenizer: Tokenizer, token_id: int) -> Stop:
    """Return how an output stopped, by its last id."""
    return "end_of_message" if token_id == tokenizer.eom_id else "end_of_turn"


def _unquoted(text: str) -> str:
    """Return the text of a quoted JSON string; any other text as it is."""
    try:
        value = json.loads(text) if text.startswith('"') else text
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def _take_text_apart(text: str) -> tuple[str, str | None, Stop]:
    stop: Stop = "out_of_tokens"
    for name in specials.STOP_TOKENS:
        if text.endswith(name):
            text, stop = text.removesuffix(name), "end_of_message" if name == specials.EOM else "end_of_turn"
            break
    before, tag, after = text.partition(specials.PYTHON_TAG)
    return before, after if tag else None, stop


def _add(out: Encoded, ids: list[int], weight: float, *, control: bool) -> None:
    out.ids.extend(ids)
    out.weights.extend([weight] * len(ids))
    out.control.extend([control] * len(ids))
