"""A reader for the literals that models write in tool calls: JSON and Python's literals in one small grammar.

It tells 'cut short' (more text may complete it) from 'wrong' (nothing can), which a stream needs to know.
Nothing is ever evaluated.
"""

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 64

_SPACE = re.compile(r"\s*")
_NUMBER_RUN = re.compile(r"[-+0-9.eE]+")
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_WORD = re.compile(r"\w+")
_STRING = {'"': re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL), "'": re.compile(r"'(?:[^'\\]|\\.)*'", re.DOTALL)}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


class Wrong(ValueError):
    """The text can't be what is being read, whatever follows."""


class CutShort(ValueError):
    """The text ended while it still could be what is being read."""


class Reader:
    """A cursor over text; every method moves past what it read, or raises Wrong or CutShort."""

    def __init__(self, text: str, at: int = 0) -> None:
        self.text = text
        self.at = at
        self._start = at

    @property
    def done(self) -> bool:
        return self.at >= len(self.text)

    def peek(self) -> str:
        """Return the next character. Raises CutShort at the end."""
        if self.done:
            raise CutShort("the call is cut short")
        return self.text[self.at]

    def space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def literal(self, expected: str) -> None:
        """Read exactly this text."""
        found = self.text[self.at : self.at + len(expected)]
        if found != expected:
            if expected.startswith(found) and self.at + len(found) >= len(self.text):
                raise CutShort("the call is cut short")
            self.wrong(f"expected {expected!r}")
        self.at += len(expected)

    def run(self, pattern: re.Pattern[str], what: str) -> str:
        """Read the longest run of the pattern; a run that touches the end may go on."""
        match = pattern.match(self.text, self.at)
        if match is None or not match.group():
            if self.done:
                raise CutShort("the call is cut short")
            self.wrong(f"expected {what}")
        if match.end() >= len(self.text):
            raise CutShort("the call is cut short")
        self.at = match.end()
        return match.group()

    def wrong(self, why: str) -> NoReturn:
        raise Wrong(f"malformed call: {why} at its character {self.at - self._start}")

    def value(self, depth: int = 0) -> Any:
        """Read one JSON or Python literal: text, number, true/false/null, list, or object with text keys."""
        if depth > MAX_DEPTH:
            self.wrong(f"nested more than {MAX_DEPTH} deep")
        first = self.peek()
        if first in "\"'":
            return self.string()
        if first == "{":
            return self.mapping(depth)
        if first == "[":
            return self.sequence(depth)
        if first in "-+.0123456789":
            return self._number()
        word = self.run(_WORD, "a value")
        if word not in _CONSTANTS:
            self.wrong(f"unquoted {word[:20]!r}")
        return _CONSTANTS[word]

    def mapping(self, depth: int = 0) -> dict[str, Any]:
        """Read {"key": value, ...}."""
        self.literal("{")
        found: dict[str, Any] = {}
        self.space()
        if self.peek() == "}":
            self.at += 1
            return found
        while True:
            self.space()
            if self.peek() not in "\"'":
                self.wrong("expected a quoted key")
            key = self.string()
            self.space()
            self.literal(":")
            self.space()
            found[key] = self.value(depth + 1)
            if self.closes("}"):
                return found

    def sequence(self, depth: int = 0) -> list[Any]:
        """Read [value, ...]."""
        self.literal("[")
        found: list[Any] = []
        self.space()
        if self.peek() == "]":
            self.at += 1
            return found
        while True:
            self.space()
            found.append(self.value(depth + 1))
            if self.closes("]"):
                return found

    def closes(self, bracket: str) -> bool:
        """Read a comma (False) or the closing bracket (True)."""
        self.space()
        if self.peek() == bracket:
            self.at += 1
            return True
        self.literal(",")
        return False

    def string(self) -> str:
        """Read a quoted text; JSON's escapes and Python's are understood."""
        pattern = _STRING.get(self.peek())
        if pattern is None:
            self.wrong("expected a quoted text")
        match = pattern.match(self.text, self.at)
        if match is None:
            raise CutShort("the call is cut short")
        self.at = match.end()
        raw = match.group()
        if "\\" not in raw:
            return raw[1:-1]
        if raw[0] == '"':
            try:
                return json.loads(raw, strict=False)
            except ValueError:
                pass  # not JSON's escapes: read it as Python does
        return _ESCAPE.sub(_unescape, raw[1:-1])

    def _number(self) -> int | float:
        text = self.run(_NUMBER_RUN, "a number")
        match = _NUMBER.fullmatch(text)
        if match is None:
            self.wrong(f"{text[:20]!r} is not a number")
        if match.group(1) is None and match.group(2) is None:
            if len(text) > 1000:
                self.wrong("a number of more than 1,000 digits")
            return int(text)
        number = float(text)
        if not math.isfinite(number):
            self.wrong(f"{text[:20]!r} is too large")
        return number


def _unescape(match: re.Match[str]) -> str:
    for group in (1, 2, 3):
        if match.group(group) is not None:
            code = int(match.group(group), 16)
            return chr(code) if code <= 0x10FFFF else match.group()
    character = match.group(4)
    if character in "\\'\"/":
        return character
    return _ESCAPES.get(character, match.group())
