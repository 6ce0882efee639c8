"""The guard model behind an engine: conversations in, verdicts out. An unreadable answer counts as unsafe."""

import math
from collections.abc import Sequence

from herd.base.messages import Message
from herd.engine.engine import Engine
from herd.engine.request import Completion, Request, Sampling
from herd.guard.prompt import Verdict, question, read_answer
from herd.tokenizer.codec import DialogCodec


class Guard:
    """Classifies the last message of conversations; `threshold` is on the probability of `unsafe`."""

    def __init__(self, engine: Engine, codec: DialogCodec, *, threshold: float = 0.5) -> None:
        self._engine, self._codec, self._threshold = engine, codec, threshold
        self._unsafe = codec.tokenizer.encode("unsafe")[0]
        self._safe = codec.tokenizer.encode("safe")[0]

    def classify(self, conversations: Sequence[Sequence[Message]]) -> list[Verdict]:
        """Return one verdict for each conversation, in order."""
        stop = frozenset(self._codec.tokenizer.stop_ids)
        requests = [
            Request(tuple(self._codec.prompt(question(messages))), Sampling(max_tokens=16), stop)
            for messages in conversations
        ]
        return [self._verdict(completion) for completion in self._engine.generate(requests)]

    def _verdict(self, completion: Completion) -> Verdict:
        first = completion.tokens[0]
        p_first = math.exp(first.logprob)
        # the two answers are all that the guard was trained to give; what it gave to neither counts as unsafe
        p_unsafe = 1 - p_first if first.id == self._safe else p_first if first.id == self._unsafe else 1.0
        read = read_answer(self._codec.parse(completion.ids).content)
        if read is None:
            return Verdict(False, (), 1.0)
        safe = p_unsafe < self._threshold
        return Verdict(safe, () if safe else read[1], p_unsafe)
