"""Answers in the JSON of the OpenAI API: whole, and as the chunks of a stream."""

import json
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from herd.base.messages import ToolCall
from herd.engine.request import Token
from herd.serve.answering import Delta, Finish
from herd.tokenizer.bpe import Tokenizer

Json = dict[str, Any]
Scored = tuple[int, float | None, tuple[tuple[int, float], ...]]  # an id, its log-probability, and those of others
_LEAST = -9999.0  # as the API does: JSON has no infinity
_ARGUMENT_PIECE = 24  # characters of a call's arguments in one chunk


class Shape(Protocol):
    """One kind of answer."""

    prefix: str
    whole_kind: str
    chunk_kind: str

    def opening(self, choices: int) -> Iterator[Json]:
        """Yield the choices of the chunks before the first text."""
        ...

    def pieces(self, delta: Delta) -> Iterator[Json]:
        """Yield the choices of the chunks that a delta makes."""
        ...

    def choice(self, said: "Said") -> Json:
        """Return one choice of a whole answer."""
        ...


@dataclass
class Said:
    """All deltas of one choice, put together."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    calls: tuple[ToolCall, ...] = ()
    finish: Finish | None = None

    def add(self, delta: Delta) -> None:
        """Take the next delta."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.calls += delta.calls
        self.finish = delta.finish or self.finish


@dataclass
class ChatShape:
    """chat.completion. `logprobs`: whether they were asked for."""

    tokenizer: Tokenizer
    logprobs: bool
    prefix: str = "chatcmpl-"
    whole_kind: str = "chat.completion"
    chunk_kind: str = "chat.completion.chunk"

    def opening(self, choices: int) -> Iterator[Json]:
        """See Shape."""
        for index in range(choices):
            yield _chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def pieces(self, delta: Delta) -> Iterator[Json]:
        """See Shape."""
        logprobs = self._logprobs(delta.tokens)
        if delta.text or (logprobs and delta.tokens):
            yield _chunk(delta.index, {"content": delta.text}) | {"logprobs": logprobs}
        for number, call in enumerate(delta.calls):
            whole = _call(call)
            arguments = whole["function"]["arguments"]
            whole["function"]["arguments"] = ""
            yield _chunk(delta.index, {"tool_calls": [{"index": number, **whole}]})
            for start in range(0, len(arguments), _ARGUMENT_PIECE):
                piece = {"arguments": arguments[start : start + _ARGUMENT_PIECE]}
                yield _chunk(delta.index, {"tool_calls": [{"index": number, "function": piece}]})
        if delta.finish is not None:
            yield _chunk(delta.index, {}) | {"finish_reason": delta.finish}

    def choice(self, said: Said) -> Json:
        """See Shape."""
        message: Json = {"role": "assistant", "content": said.text, "refusal": None}
        if said.calls:
            message |= {"content": said.text or None, "tool_calls": [_call(call) for call in said.calls]}
        logprobs = self._logprobs(said.tokens)
        return {"index": said.index, "message": message, "logprobs": logprobs, "finish_reason": said.finish}

    def _logprobs(self, tokens: Iterable[Token]) -> Json | None:
        if not self.logprobs:
            return None
        stops = self.tokenizer.stop_ids
        rows = [
            _logprob(self.tokenizer, token.id, token.logprob)
            | {"top_logprobs": [_logprob(self.tokenizer, *pair) for pair in token.top]}
            for token in tokens
            if token.id not in stops
        ]
        return {"content": rows, "refusal": None}


@dataclass
class TextShape:
    """text_completion. `shown`: what an echoed prompt puts before each prompt's answers, with its tokens.

    per_prompt: choices of each prompt. silent: what is generated is left out (max_tokens 0).
    """

    tokenizer: Tokenizer
    logprobs: bool
    shown: Sequence[str]
    per_prompt: int
    silent: bool = False
    prefix: str = "cmpl-"
    whole_kind: str = "text_completion"
    chunk_kind: str = "text_completion"
    echoed: dict[int, list[Scored]] = field(default_factory=dict)  # the prompt's ids, by choice
    _offsets: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def opening(self, choices: int) -> Iterator[Json]:
        """See Shape."""
        for index in range(choices):
            if shown := self._shown(index):
                self._offsets[index] = len(shown)
                yield {"index": index, "text": shown, "logprobs": None, "finish_reason": None}

    def pieces(self, delta: Delta) -> Iterator[Json]:
        """See Shape."""
        logprobs = self._logprobs(delta.index, _scored(delta.tokens))
        yield {"index": delta.index, "text": delta.text, "logprobs": logprobs, "finish_reason": delta.finish}

    def choice(self, said: Said) -> Json:
        """See Shape."""
        text, tokens = ("", []) if self.silent else (said.text, said.tokens)
        logprobs = self._logprobs(said.index, [*self.echoed.get(said.index, []), *_scored(tokens)])
        text, finish = self._shown(said.index) + text, "length" if self.silent else said.finish
        return {"index": said.index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _shown(self, index: int) -> str:
        return self.shown[index // self.per_prompt] if self.shown else ""

    def _logprobs(self, index: int, scored: Iterable[Scored]) -> Json | None:
        if not self.logprobs:
            return None
        rows: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token_id, logprob, top in scored:
            if token_id in self.tokenizer.stop_ids:
                continue
            text = _text_of(self.tokenizer, token_id)
            rows["tokens"].append(text)
            rows["token_logprobs"].append(logprob)
            rows["top_logprobs"].append({_text_of(self.tokenizer, i): max(p, _LEAST) for i, p in top})
            rows["text_offset"].append(self._offsets[index])
            self._offsets[index] += len(text)
        return rows


def whole(shape: Shape, deltas: Sequence[Delta], choices: int) -> list[Json]:
    """Return the choices of a whole answer."""
    said = [Said(index) for index in range(choices)]
    for delta in deltas:
        said[delta.index].add(delta)
    return [shape.choice(each) for each in said]


def to_bytes(value: Any) -> bytes:
    """Return JSON as UTF-8; a lone surrogate that a client sent becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def _chunk(index: int, delta: Json) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _call(call: ToolCall) -> Json:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _scored(tokens: Iterable[Token]) -> list[Scored]:
    return [(token.id, max(token.logprob, _LEAST), token.top) for token in tokens]


def _text_of(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.decode_bytes((token_id,)).decode("utf-8", "replace")


def _logprob(tokenizer: Tokenizer, token_id: int, logprob: float) -> Json:
    return {
        "token": _text_of(tokenizer, token_id),
        "logprob": max(logprob, _LEAST),
        "bytes": list(tokenizer.decode_bytes((token_id,))),
    }
