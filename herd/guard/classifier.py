"""The guard model behind an engine: conversations in, verdicts out. An unreadable answer counts as unsafe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from herd.base.hazards import PROMPT_HAZARDS
from herd.base.messages import Message
from herd.engine.engine import Engine
from herd.engine.request import Completion, Request, Sampling
from herd.tokenizer.codec import DialogCodec
from herd.tokenizer.guard_dialect import GuardForm, guard_dialog, read_answer


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
        engine: Engine,
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
        dialogs = [guard_dialog(messages, form=self._form, hazards=self._hazards) for messages in conversations]
        requests = [Request(tuple(self._codec.prompt(d)), Sampling(max_tokens=16), stop) for d in dialogs]
        return [self._verdict(completion) for completion in self._engine.generate(requests)]

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
