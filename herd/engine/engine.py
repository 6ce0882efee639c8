"""The engine: prompts in, tokens out, over the same transformer that was trained.

    submit -> waiting -> running: each round one token for all, and a bounded chunk of new prompts -> events
              scheduler            runner (one pass over all sequences) -> sampler

Not for several threads: who serves many gives the engine one of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from herd.base.errors import HerdError
from herd.engine.blocks import BlockPool
from herd.engine.drafter import Drafter, NgramDrafter
from herd.engine.lockstep import LeadingRunner
from herd.engine.request import Completion, Event, FinishReason, Request, Stats, Token
from herd.engine.runner import Runner
from herd.engine.runners import open_runner
from herd.engine.sampler import Choices
from herd.engine.scheduler import Scheduler, Share
from herd.engine.sequence import Sequence as InFlight
from herd.engine.sibling import ModelDrafter, weights_read
from herd.engine.speculation import Speculation
from herd.model.cache import bytes_per_token
from herd.model.transformer import Transformer
from herd.runtime.device import free_memory_bytes
from herd.tokenizer.bpe import Tokenizer

_SHARE = 0.25  # of the free memory: beside the weights there may be a guard's engine, and the pages of files


class Engine:
    """Generates and scores with one model; up to `max_running` requests decode together.

    blocks, memory: size of the key/value cache, in blocks or in bytes (see `bytes_per_token`); without either it
    holds `max_running` requests of full length, or a quarter of the free memory where that is less.
    block_size: positions a block. prefill_chunk: the most prompt ids a round. tokenizer: needed for stop strings.
    prefix_reuse: whether a prompt takes what the cache knows of its beginning. keep_weights: False gives the model
    to the engine, which may keep its weights in another layout alone. After a change of weights in place: `refresh`.
    draft: what guesses ids that are then verified together, which changes no answer: a smaller
    model of the same vocabulary (its cache is as long, and `memory` is for both), "ngram" for what the text itself
    said before, or a Drafter. draft_length: always so many ids at once; None: as many as pay, or none.
    Raises HerdError where the cache holds no block, or the vocabularies differ.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        blocks: int | None = None,
        memory: int | None = None,
        block_size: int = 16,
        max_running: int = 32,
        prefill_chunk: int = 512,
        tokenizer: Tokenizer | None = None,
        prefix_reuse: bool = True,
        keep_weights: bool = True,
        draft: Transformer | Drafter | Literal["ngram"] | None = None,
        draft_length: int | None = None,
    ) -> None:
        if min(block_size, max_running, prefill_chunk) < 1:
            raise HerdError(
                f"block_size {block_size}, max_running {max_running}, prefill_chunk {prefill_chunk}: must be 1 or more"
            )
        self.model = model.eval()
        self._tokenizer, self._keep_weights = tokenizer, keep_weights
        if blocks is None:
            drafting = draft if isinstance(draft, Transformer) else None
            blocks = self._default_blocks(memory, max_running, block_size, drafting)
        if blocks < 1:
            raise HerdError("a key/value cache without a block can't hold a request; give it more memory")
        pool = BlockPool(blocks)
        self.capacity = min(model.config.max_positions, blocks * block_size)
        self._scheduler = Scheduler(
            pool, block_size=block_size, max_running=max_running, chunk=prefill_chunk, reuse=prefix_reuse
        )
        self._runner: Runner = open_runner(model, blocks=blocks, block_size=block_size, keep_weights=keep_weights)
        self._speculation: Speculation | None = None
        if draft is not None:
            if draft_length is not None and draft_length < 1:
                raise HerdError(f"draft_length {draft_length}: must be 1 or more; leave out `draft` to draft nothing")
            share = 0.0
            if isinstance(draft, Transformer):
                share = weights_read(draft) / weights_read(model)
                draft = self._sibling(
                    draft, blocks, block_size, chunk=prefill_chunk, reuse=prefix_reuse, keep_weights=keep_weights
                )
            drafter = NgramDrafter() if draft == "ngram" else draft
            self._speculation = Speculation(drafter, length=draft_length, share=share)
        self._in_flight: dict[int, InFlight] = {}
        self._timed: dict[int, InFlight] = {}
        self._events: list[Event] = []  # still to be given out by `step`
        self._handles = self._prompt_tokens = self._tokens = 0

    def _sibling(
        self, draft: Transformer, blocks: int, block_size: int, *, chunk: int, reuse: bool, keep_weights: bool
    ) -> ModelDrafter:
        ours, theirs = self.model.config.vocab_size, draft.config.vocab_size
        if theirs != ours:
            raise HerdError(
                f"a draft model of {theirs} ids can't guess for one of {ours}; take a sibling with the same tokenizer"
            )
        runner = open_runner(draft.eval(), blocks=blocks, block_size=block_size, keep_weights=keep_weights)
        most = draft.config.max_positions
        return ModelDrafter(runner, blocks=blocks, block_size=block_size, max_positions=most, chunk=chunk, reuse=reuse)

    def _default_blocks(self, memory: int | None, max_running: int, block_size: int, draft: Transformer | None) -> int:
        parameter, config = next(self.model.parameters()), self.model.config
        models = [self.model] if draft is None else [self.model, draft]
        size = block_size * sum(bytes_per_token(m.config, next(m.parameters()).dtype) for m in models)
        if memory is not None:
            if memory < size:
                raise HerdError(f"a cache of {memory:,} bytes holds no block of {size:,}; give it more memory")
            return memory // size
        wanted = max_running * -(-config.max_positions // block_size)
        return min(wanted, int(_SHARE * free_memory_bytes(parameter.device)) // size)

    def submit(self, request: Request) -> int:
        """Queue a request; its events carry the returned handle. Raises HerdError on one that can't be answered."""
        self._check(request)
        self._handles += 1
        sequence = InFlight(self._handles, request, tokenizer=self._tokenizer)
        self._in_flight[sequence.handle] = sequence
        if request.deadline is not None:
            self._timed[sequence.handle] = sequence
        self._scheduler.add(sequence)
        self._prompt_tokens += len(request.prompt)
        return sequence.handle

    def cancel(self, handle: int) -> None:
        """End a request: its blocks are free at once, its last event comes with the next step. Ended ones stay."""
        if handle in self._in_flight:
            self._events.append(self._finish(self._in_flight[handle], "cancelled"))

    def step(self) -> list[Event]:
        """Run one round: requests that are late end, prompts are run on, every running one gets a token."""
        events, self._events = self._events, []
        return events + self._advance()

    @property
    def busy(self) -> bool:
        """Whether requests are in flight or events wait to be taken."""
        return bool(self._in_flight or self._events)

    def stats(self) -> Stats:
        """Return the counts of this moment."""
        scheduler = self._scheduler
        return Stats(
            len(scheduler.waiting),
            len(scheduler.running),
            scheduler.pool.used,
            scheduler.pool.total,
            self._prompt_tokens,
            scheduler.reused_tokens,
            self._tokens,
            scheduler.preemptions,
            *(self._speculation.counts if self._speculation is not None else ()),
        )

    def generate(
        self, requests: Sequence[Request], *, on_done: Callable[[int], None] = lambda done: None
    ) -> list[Completion]:
        """Complete all requests, in their order. Raises HerdError, before any is run, on one that can't be answered."""
        completions: dict[int, Completion] = {}
        with _Owned(self, requests) as owned:
            for event in owned.events():
                if event.completion is not None:
                    completions[event.handle] = event.completion
                    on_done(len(completions))
            return [completions[handle] for handle in owned.handles]

    def stream(self, request: Request) -> Iterator[Token]:
        """Yield the tokens of one request as they are chosen; who stops asking cancels it."""
        with _Owned(self, [request]) as owned:
            yield from (event.token for event in owned.events() if event.token is not None)

    @torch.inference_mode()
    def score(
        self, sequences: Sequence[Sequence[int]], *, on_done: Callable[[int], None] = lambda done: None
    ) -> list[list[float]]:
        """Return log p(id | ids before it) for every id but the first of each sequence."""
        return self._runner.score(sequences, on_done=on_done)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take new weights, by the model's own parameter names; what is in flight goes on with them from here.

        Float weights of layers that are quantised here are quantised again. Raises HerdError without `keep_weights`.
        """
        self._check_weights()
        tied = {"output.weight": weights["tok_embeddings.weight"]} if self.model.config.tie_embeddings else {}
        self.model.load_state_dict({**tied, **weights})
        self.refresh()

    def refresh(self) -> None:
        """Take note that the model's weights have changed; what is in flight goes on with them from here.

        Raises HerdError without `keep_weights`.
        """
        self._check_weights()
        self._runner.refresh()
        self._scheduler.restart()

    def close(self) -> None:
        """Let the other ranks go, where the model lies on several; the engine runs nothing after it."""
        if isinstance(self._runner, LeadingRunner):
            self._runner.close()

    def _check_weights(self) -> None:
        if not self._keep_weights:
            raise HerdError(
                "this engine gave up the model's own weights; open it with keep_weights=True to change them"
            )

    def _check(self, request: Request) -> None:
        length, sampling, vocab_size = len(request.prompt), request.sampling, self.model.config.vocab_size
        if not 0 < length < self.capacity:
            holder = "model" if self.capacity == self.model.config.max_positions else "engine's key/value cache"
            raise HerdError(
                f"a prompt of {length} tokens doesn't fit: this {holder} holds {self.capacity} positions and needs at "
                "least one on each side; shorten the conversation"
            )
        wrong = [i for i in (*request.prompt, *sampling.logit_bias) if not 0 <= i < vocab_size]
        if wrong:
            raise HerdError(f"token id {wrong[0]} is outside this model's vocabulary of {vocab_size}")
        if "" in request.stop_strings:
            raise HerdError("an empty stop string would end every answer before it begins; leave it out")
        if request.stop_strings and self._tokenizer is None:
            raise HerdError("stop strings need the tokenizer: Engine(model, tokenizer=...)")

    @torch.inference_mode()
    def _advance(self) -> list[Event]:
        events = [self._finish(sequence, "deadline") for sequence in list(self._timed.values()) if sequence.late()]
        shares = self._scheduler.plan()
        if not shares:
            return events
        if self._speculation is not None:
            shares = self._speculation.extend(shares, self._scheduler, self.capacity)
        return events + self._choose(self._runner.run(shares), shares)

    def _choose(self, scores: Tensor, shares: list[Share]) -> list[Event]:
        """Choose place by place, every one as ever: a drafted id stands while it is the one that is chosen."""
        firsts = accumulate((share.scored for share in shares), initial=0)
        going = [(i, first) for i, (share, first) in enumerate(zip(shares, firsts, strict=False)) if share.scored]
        stood: list[list[bool]] = [[] for _ in shares]
        events, ended = list[Event](), list[tuple[InFlight, FinishReason, Token | None]]()
        choices = Choices(scores, [share.sequence.picker for share in shares for _ in range(share.scored)])
        place = 0
        while going:
            tokens = choices.at([first + place for _, first in going])
            before, going = going, []
            for (i, first), token in zip(before, tokens, strict=True):
                sequence, drafted = shares[i].sequence, shares[i].drafted
                reason = self._take(sequence, token)
                if token is not None and place < len(drafted):
                    stood[i].append(token.id == drafted[place])
                if reason is not None:
                    ended.append((sequence, reason, token))
                    continue
                events.append(Event(sequence.handle, token, cut=sequence.cut(None)))
                if place < len(drafted) and stood[i][place]:
                    going.append((i, first))
            place += 1
        for share in shares:
            self._scheduler.advance(share)
        if self._speculation is not None:
            self._speculation.note(shares, stood)
        return events + [self._finish(*each) for each in ended]

    def _take(self, sequence: InFlight, token: Token | None) -> FinishReason | None:
        if token is None:  # the grammar is at its end, and no stop id was among what it allows
            return "stop"
        sequence.append(token)
        self._tokens += 1
        return sequence.finish_reason(self.capacity)

    def _finish(self, sequence: InFlight, reason: FinishReason, token: Token | None = None) -> Event:
        self._scheduler.remove(sequence)
        del self._in_flight[sequence.handle]
        self._timed.pop(sequence.handle, None)
        if self._speculation is not None:
            self._speculation.forget(sequence)
        completion = sequence.completion(reason)
        return Event(sequence.handle, token, reason, completion.cut, completion)


class _Owned:
    """Requests that one caller waits for; events of all others are kept for `step`, and nothing is left behind."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        for request in requests:
            engine._check(request)
        self._engine = engine
        self.handles = [engine.submit(request) for request in requests]

    def __enter__(self) -> "_Owned":
        return self

    def events(self) -> Iterator[Event]:
        """Yield their events until all have ended."""
        left = set(self.handles)
        while left:
            events = self._engine.step()
            self._engine._events += [event for event in events if event.handle not in left]
            for event in [event for event in events if event.handle in left]:
                if event.finish_reason is not None:
                    left.remove(event.handle)
                yield event

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            self._engine.cancel(handle)
        own = set(self.handles)
        self._engine._events = [event for event in self._engine._events if event.handle not in own]
