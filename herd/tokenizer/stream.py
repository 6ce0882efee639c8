"""An assistant's output read id by id: text as soon as it is certain, calls at the end.

The pieces of text joined, and the calls, equal what `DialogCodec.read` gives for all ids at once.
"""

from collections.abc import Iterable

from herd.base.errors import ConfigError
from herd.base.messages import Message, Tool
from herd.tokenizer.bpe import StreamDecoder
from herd.tokenizer.codec import AFTER_HEADER, DialogCodec, Parsed, Stop, stop_of
from herd.tokenizer.tool_dialects import CallFinder, read_tagged


class OutputStream:
    """Reads what follows an open assistant header. Text that may yet become a call is held back.

    calls: False where nobody offered a tool: then all text is content, whatever it looks like.
    """

    def __init__(self, codec: DialogCodec, *, tools: Iterable[Tool] = (), calls: bool = True) -> None:
        if codec.layout.reading != "exact":
            raise ConfigError("a stream can't be read the official way, which drops text already shown: use 'exact'")
        self._tokenizer = codec.tokenizer
        self._names = [tool.name for tool in tools]
        self._decoder = StreamDecoder(self._tokenizer)
        self._finder = CallFinder(self._names)
        self._calls = calls
        if not calls:
            self._finder.release()
        self._given: list[str] = []
        self._tagged: list[str] | None = None
        self._stop: Stop | None = None
        self._opening = AFTER_HEADER if codec.layout.open_header == "bare" else ""  # still to be dropped
        self._held = ""  # what may be the beginning of that

    def push(self, token_id: int) -> str:
        """Take one id and return the text that became certain. Ids after the end token are ignored."""
        if self._stop is not None:
            return ""
        if token_id in self._tokenizer.stop_ids:
            self._stop = stop_of(self._tokenizer, token_id)
            return ""
        if self._tagged is None and self._calls and token_id == self._tokenizer.python_tag_id:
            self._tagged = []
            text = self._opened(self._decoder.flush(), final=True)
            return self._note(self._finder.push(text) + self._finder.release())
        return self.push_text(self._decoder.push(token_id))

    def push_text(self, text: str) -> str:
        """Take text that the caller decoded from ids itself, so as to cut it at a stop string; see `push`."""
        if self._tagged is not None:
            self._tagged.append(text)
            return ""
        return self._note(self._finder.push(self._opened(text)))

    def finish(self) -> tuple[str, Parsed]:
        """Return the text not given out yet, and the whole output read."""
        tail = self._decoder.flush()
        if self._tagged is not None:
            found = read_tagged("", "".join(self._tagged) + tail, self._names)
            rest = found.content
        else:
            rest = self._finder.push(self._opened(tail, final=True))
            found = self._finder.finish()
            rest += found.content
        self._note(rest)
        message = Message("assistant", "".join(self._given), found.calls)
        return rest, Parsed(message, self._stop or "out_of_tokens", found.reason)

    def _opened(self, piece: str, *, final: bool = False) -> str:
        """Return the text without the newlines that a bare header leaves to the model."""
        if not self._opening:
            return piece
        self._held += piece
        if not final and self._held != self._opening and self._opening.startswith(self._held):
            return ""
        text, self._held, self._opening = self._held.removeprefix(self._opening), "", ""
        return text

    def _note(self, text: str) -> str:
        if text:
            self._given.append(text)
        return text
