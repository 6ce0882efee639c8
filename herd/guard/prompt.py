"""The guard's question and answer: a conversation in, `safe` or `unsafe` and hazard codes out, as Llama Guard 3."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from herd.base.messages import Dialog, Message
from herd.guard.hazards import HAZARDS

_SPEAKERS = {"user": "User", "assistant": "Agent"}
_ANSWER = re.compile(r"\s*(?:(safe)|unsafe(?:\s*\n\s*(S\d{1,2}(?:\s*,\s*S\d{1,2})*))?)\s*")


@dataclass(frozen=True)
class Verdict:
    """Safe or not, which hazards, and the probability that the guard gave to `unsafe`."""

    safe: bool
    hazards: tuple[str, ...] = ()
    p_unsafe: float = 0.0


def question(messages: Sequence[Message]) -> Dialog:
    """Return the guard's prompt for the last message of a conversation.

    The taxonomy isn't repeated in every prompt: herd's guard models are trained on it, and a context of a few
    hundred tokens has no room for it.
    """
    lines = [f"{_SPEAKERS[m.role]}: {m.content}" for m in messages if m.role in _SPEAKERS]
    last = _SPEAKERS[messages[-1].role]
    return Dialog((Message("user", "\n\n".join(lines) + f"\n\n{last}: safe / unsafe?"),))


def answer(verdict: Verdict) -> str:
    """Return the text a guard gives for a verdict."""
    return "safe" if verdict.safe else "unsafe\n" + ",".join(verdict.hazards)


def read_answer(text: str) -> tuple[bool, tuple[str, ...]] | None:
    """Return (safe, hazards) of a guard's answer, or None when it isn't one."""
    match = _ANSWER.fullmatch(text)
    if match is None:
        return None
    codes = tuple(code.strip() for code in (match[2] or "").split(",") if code.strip())
    return bool(match[1]), tuple(code for code in codes if code in HAZARDS)
