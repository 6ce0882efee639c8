"""The guard model behind an engine: conversations in, verdicts out. An unreadable answer counts as unsafe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from herd.base.hazards import PROMPT_HAZARDS
from herd.base.messages import Message
from herd.engine.backend import Backend
from herd.engine.request import Completion, Request, Sampling
from herd.tokenizer.codec import DialogCodec
from herd.tokenizer.guard_dialect import GuardForm, guard_dialog, read_answer

_ROOM = 16  # tokens of a guard's answer
_SPARE = 16


@dataclass(frozen=True)
class Verdict:
    """Safe or not, which hazards, and the probability that the guard gave to `unsafe`."""

    safe: bool
    hazards: tuple[str, ...] = ()
    p_unsafe: float = 0.0


class Guard:
    """Classifies the last message of conversations; `threshold` is on the probability of `unsafe`.

    herd's own guards are asked in the compact form, Llama Guard 3 in the official one.
    """

    def __init__(
        self,
        engine: Backend,
        codec: DialogCodec,
        *,
        threshold: float = 0.5,
        form: GuardForm = "compact",
        hazards: Mapping[str, str] = PROMPT_HAZARDS,
    ) -> None:
        self._engine, self._codec, self._threshold = engine, codec, threshold
        self._form, self._hazards = form, hazards
        self._unsafe = codec.tokenizer.encode("unsafe")[0]
        self._safe = codec.tokenizer.encode("safe")[0]

    def classify(self, conversations: Sequence[Sequence[Message]]) -> list[Verdict]:
        """Return one verdict for each conversation, in order."""
        stop = frozenset(self._codec.tokenizer.stop_ids)
        prompts = [self._prompts(messages) for messages in conversations]
        requests = [Request(tuple(prompt), Sampling(max_tokens=_ROOM), stop) for own in prompts for prompt in own]
        verdicts = map(self._verdict, self._engine.generate(requests))
        # what had to be judged in pieces is as bad as its worst piece
        return [max(islice(verdicts, len(own)), key=lambda v: (not v.safe, v.p_unsafe)) for own in prompts]

    def _prompts(self, messages: Sequence[Message]) -> list[list[int]]:
        """Return what the guard is asked: one prompt, or several where its context can't hold even the last message.

        The oldest messages are left out first. Pieces overlap by half.
        """
        talk = [message for message in messages if message.role in ("user", "assistant")]
        room = self._engine.capacity - _ROOM
        prompt = self._prompt(talk)
        while len(prompt) > room and len(talk) > 1:
            talk = talk[1:]
            prompt = self._prompt(talk)
        if len(prompt) <= room:
            return [prompt]
        encode, decode = self._codec.tokenizer.encode, self._codec.tokenizer.decode
        role, ids = talk[-1].role, encode(talk[-1].content)
        # a piece's ends may be encoded anew: a little is kept free for that
        size = room - len(self._prompt([Message(role, "")])) - _SPARE
        if size < 2:
            return [prompt]  # the engine says what is wrong
        pieces = (ids[start : start + size] for start in range(0, len(ids) - size // 2, size // 2))
        return [self._prompt([Message(role, decode(piece))]) for piece in pieces]

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        return self._codec.prompt(guard_dialog(messages, form=self._form, hazards=self._hazards))

    def _verdict(self, completion: Completion) -> Verdict:
        first = completion.tokens[0]
        p_first = math.exp(first.logprob)
        # the two answers are all that the guard was trained to give; what it gave to neither counts as unsafe
        p_unsafe = 1 - p_first if first.id == self._safe else p_first if first.id == self._unsafe else 1.0
        answer, _ = read_answer(self._codec.parse(completion.ids).content)
        if answer is None:
            return Verdict(False, (), 1.0)
        safe = p_unsafe < self._threshold
        return Verdict(safe, () if safe else answer.hazards, p_unsafe)
