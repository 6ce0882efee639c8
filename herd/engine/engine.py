"""The engine: prompts in, tokens out, over the same transformer that was trained.

waiting -> slot -> prompt run (all new prompts of a round in one batch) -> one token a round for every slot -> done
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from herd.base.errors import HerdError
from herd.engine.request import Completion, Request, Token
from herd.engine.sampler import choose
from herd.engine.scheduler import Scheduler
from herd.engine.scheduler import Sequence as Running
from herd.model.cache import Cache
from herd.model.transformer import Transformer

_SCORED_PLACES = 8192


class Engine:
    """Generates and scores with one model. `slots` requests decode together, each up to `capacity` positions."""

    def __init__(self, model: Transformer, *, slots: int = 32, capacity: int | None = None) -> None:
        self.model = model.eval()
        self.capacity = capacity or model.config.max_positions
        self._slots = slots

    def generate(
        self, requests: Sequence[Request], *, on_done: Callable[[int], None] = lambda done: None
    ) -> list[Completion]:
        """Complete all requests, in their order. Raises HerdError on a prompt that leaves no room for an answer."""
        completions: dict[int, Completion] = {}
        for sequence in self._run(requests, slots=min(self._slots, max(1, len(requests)))):
            reason = sequence.finish_reason(self._limit(requests))
            if reason is not None:
                completions[sequence.number] = sequence.completion(reason)
                on_done(len(completions))
        return [completions[number] for number in range(len(requests))]

    def stream(self, request: Request) -> Iterator[Token]:
        """Yield the tokens of one request as they are chosen."""
        for sequence in self._run([request], slots=1):
            yield sequence.tokens[-1]

    @torch.inference_mode()
    def score(
        self, sequences: Sequence[Sequence[int]], *, on_done: Callable[[int], None] = lambda done: None
    ) -> list[list[float]]:
        """Return log p(id | ids before it) for every id but the first of each sequence."""
        results: list[list[float]] = [[] for _ in sequences]
        # sequences of like length go together, as many as a budget of places allows
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        start = 0
        while start < len(order):
            count = max(1, _SCORED_PLACES // max(1, len(sequences[order[start]])))
            group = order[start : start + count]
            rows = _padded([sequences[i][:-1] for i in group], self.model)
            targets = _padded([sequences[i][1:] for i in group], self.model)
            chosen = self._target_logprobs(self.model(rows), targets).tolist()
            for i, row in zip(group, chosen, strict=True):
                results[i] = row[: len(sequences[i]) - 1]
            start += count
            on_done(min(start, len(order)))
        return results

    def _target_logprobs(self, hidden_bte: Tensor, targets_bt: Tensor) -> Tensor:
        """Return log p of targets [b, t], with the scores of few places at a time in memory."""
        pieces = []
        for hidden, targets in zip(hidden_bte.flatten(0, 1).split(512), targets_bt.flatten().split(512), strict=True):
            scores = self.model.logits(hidden).float()
            pieces.append(scores.gather(1, targets.unsqueeze(1)).squeeze(1) - scores.logsumexp(-1))
        return torch.cat(pieces).view_as(targets_bt)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take new weights, by the model's own parameter names, without rebuilding anything."""
        self.model.load_state_dict(dict(weights), strict=not self.model.config.tie_embeddings)

    def _limit(self, requests: Sequence[Request]) -> int:
        wanted = max((len(r.prompt) + r.sampling.max_tokens for r in requests), default=1)
        return min(self.capacity, wanted)

    @torch.inference_mode()
    def _run(self, requests: Sequence[Request], *, slots: int) -> Iterator[Running]:
        """Yield a sequence each time it gained a token."""
        for request in requests:
            if not request.prompt or len(request.prompt) >= self.capacity:
                raise HerdError(
                    f"a prompt of {len(request.prompt)} tokens doesn't fit: this model holds {self.capacity} "
                    "positions and needs at least one on each side; shorten the conversation"
                )
        limit = self._limit(requests)
        parameter = next(self.model.parameters())
        cache = Cache(self.model.config, slots=slots, capacity=limit, dtype=parameter.dtype, device=parameter.device)
        scheduler = Scheduler(requests, slots=slots)
        while scheduler.waiting or scheduler.running:
            for sequences, inputs in self._rounds(scheduler, cache):
                scores = self._forward(inputs, sequences, cache)
                samplings = [s.request.sampling for s in sequences]
                picks = choose(scores, samplings, [s.generator for s in sequences])
                for sequence, (token, logprob) in zip(sequences, picks, strict=True):
                    sequence.tokens.append(Token(token, logprob))
                    if sequence.finish_reason(limit) is not None:
                        scheduler.release(sequence)
                    yield sequence

    def _rounds(self, scheduler: Scheduler, cache: Cache) -> Iterator[tuple[list[Running], list[Sequence[int]]]]:
        """Yield the batches of one round: running sequences with their newest token, then new prompts."""
        running = list(scheduler.running)
        if running:
            yield running, [[s.tokens[-1].id] for s in running]
        admitted = scheduler.admit()
        if admitted:
            for sequence in admitted:
                cache.lengths[sequence.slot] = 0
            yield admitted, [s.request.prompt for s in admitted]

    def _forward(self, inputs: list[Sequence[int]], sequences: list[Running], cache: Cache) -> Tensor:
        """Run new ids of each sequence; return float32 scores [b, vocab] after each one's last id."""
        tokens = _padded(inputs, self.model)
        counts = torch.tensor([len(ids) for ids in inputs], device=tokens.device)
        view = cache.view(torch.tensor([s.slot for s in sequences], device=tokens.device))
        hidden = self.model(tokens, cache=view)
        view.advance(counts)
        last = hidden[torch.arange(len(inputs), device=tokens.device), counts - 1]
        return self.model.logits(last).float()


def _padded(rows: Sequence[Sequence[int]], model: Transformer) -> Tensor:
    """Return ids [b, longest], 0 behind the shorter ones: causal attention never lets a real id see them."""
    longest = max(1, *(len(row) for row in rows)) if len(rows) > 1 else max(1, len(rows[0]))
    padded = [[*row, *[0] * (longest - len(row))] for row in rows]
    return torch.tensor(padded, device=next(model.parameters()).device)
