"""The model under test: an engine and a codec behind the few questions that tasks ask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from herd.base.messages import Dialog, Message, parse_dialog
from herd.engine.backend import Backend
from herd.engine.request import Request, Sampling
from herd.guard.shield import Shield
from herd.tokenizer.codec import DialogCodec

ROOM = 64  # tokens kept free for an answer
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Subject:
    """`chat` says whether dialogs are asked (instruct models) or plain text is continued (base models)."""

    name: str
    engine: Backend
    codec: DialogCodec
    chat: bool
    shield: Shield | None = None
    advance: Advance = field(default=lambda done, total: None)

    def fits(self, item: Mapping[str, Any]) -> bool:
        """Say whether an item's prompt leaves room for a short answer."""
        if self.chat:
            prompt = self.codec.prompt(parse_dialog(item))
        else:
            prompt = self.codec.tokenizer.encode(item["context"], bos=True)
        return len(prompt) + ROOM <= self.engine.capacity

    def answer(self, dialogs: Sequence[Dialog], *, max_tokens: int = ROOM) -> list[Message]:
        """Return the assistant's answers, through the shield when there is one."""
        if self.shield is not None:
            return [shielded.message for shielded in self.shield.answer(dialogs)]
        return answers(self.engine, self.codec, dialogs, max_tokens=max_tokens, advance=self.advance)

    def continue_text(self, contexts: Sequence[str], *, max_tokens: int = 16) -> list[str]:
        """Return greedy continuations of plain text, up to a line break or the end of the text."""
        tokenizer = self.codec.tokenizer
        stop = frozenset(tokenizer.stop_ids)
        requests = [
            Request(tuple(tokenizer.encode(text, bos=True)), Sampling(max_tokens=max_tokens), stop) for text in contexts
        ]
        done = self.engine.generate(requests, on_done=lambda n: self.advance(n, len(requests)))
        return [c.text(tokenizer).split("\n")[0] for c in done]

    def choice_logprobs(self, prompts: Sequence[Sequence[int]], choices: Sequence[Sequence[int]]) -> list[float]:
        """Return the summed log-probability of each choice after its prompt."""
        scored = self.engine.score([[*p, *c] for p, c in zip(prompts, choices, strict=True)])
        return [sum(row[len(p) - 1 :]) for p, row in zip(prompts, scored, strict=True)]


def answers(
    engine: Backend,
    codec: DialogCodec,
    dialogs: Sequence[Dialog],
    *,
    max_tokens: int,
    advance: Advance = lambda a, b: None,
) -> list[Message]:
    """Answer dialogs greedily and parse what was said."""
    stop = frozenset(codec.tokenizer.stop_ids)
    requests = [Request(tuple(codec.prompt(d)), Sampling(max_tokens=max_tokens), stop) for d in dialogs]
    done = engine.generate(requests, on_done=lambda n: advance(n, len(requests)))
    return [codec.parse(c.ids, tools=d.tools) for c, d in zip(done, dialogs, strict=True)]
