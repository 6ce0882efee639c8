"""One answer read event by event: text that is certain and free of stop strings, and the calls at the end.

id --StreamDecoder--> text, less what may become a stop string --OutputStream--> text that is no call
"""

from typing import Protocol

from herd.base.messages import ToolCall
from herd.engine.request import Event
from herd.tokenizer.bpe import StreamDecoder, Tokenizer
from herd.tokenizer.stream import OutputStream


class Reader(Protocol):
    """Takes a request's events in order."""

    def push(self, event: Event) -> str:
        """Return the text that became certain."""
        ...

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """Return the rest of the text, and the calls."""
        ...


class TextReader:
    """Reads an answer as text, without stop ids and stop strings."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._held = ""
        self._stopped = False

    def push(self, event: Event) -> str:
        """See Reader."""
        if event.token is not None and event.token.id not in self._tokenizer.stop_ids:
            self._held += self._decoder.push(event.token.id)
        self._stopped = event.finish_reason is not None and event.cut > 0
        end = max(0, len(self._held) - event.cut)
        text, self._held = self._held[:end], self._held[end:]
        return text

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """See Reader."""
        return "" if self._stopped else self._held + self._decoder.flush(), ()


class DialogReader:
    """Reads an answer through the dialog codec."""

    def __init__(self, tokenizer: Tokenizer, output: OutputStream) -> None:
        self._tokenizer = tokenizer
        self._text = TextReader(tokenizer)
        self._output = output

    def push(self, event: Event) -> str:
        """See Reader."""
        if event.token is not None and event.token.id == self._tokenizer.python_tag_id:
            before, _ = self._text.finish()
            return self._output.push_text(before) + self._output.push(event.token.id)
        return self._output.push_text(self._text.push(event))

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """See Reader."""
        tail, _ = self._text.finish()
        text = self._output.push_text(tail)
        rest, parsed = self._output.finish()
        return text + rest, parsed.message.tool_calls
