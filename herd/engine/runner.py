"""The model's part of a round: ids of many sequences in one pass, scores and log-probabilities out."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from herd.engine.scheduler import Share
from herd.model.cache import PagedCache, Row
from herd.model.transformer import Transformer

_SCORED_PLACES = 8192
_SCORED_AT_ONCE = 512  # rows of scores in memory


class Runner(Protocol):
    """A model and the cache of its keys and values, on some kind of machine."""

    def run(self, shares: Sequence[Share]) -> Tensor:
        """Run each share; return float32 scores [b, vocab] after the last `scored` ids of each, in their order.

        Log-probabilities of prompt ids that are due are added to their sequences.
        """

    def score(self, sequences: Sequence[Sequence[int]], *, on_done: Callable[[int], None]) -> list[list[float]]:
        """Return log p(id | ids before it) for every id but the first of each sequence."""

    def refresh(self) -> None:
        """Take note that the model's weights were changed in place."""


class TorchRunner:
    """Runs the model itself: any device, any number format, any change of its weights."""

    def __init__(self, model: Transformer, *, blocks: int, block_size: int) -> None:
        self._model, self._blocks, self._block_size = model, blocks, block_size

    @cached_property
    def _cache(self) -> PagedCache:
        # made with the first request: whoever only scores needs none
        parameter = next(self._model.parameters())
        return PagedCache(
            self._model.config,
            blocks=self._blocks,
            block_size=self._block_size,
            dtype=parameter.dtype,
            device=parameter.device,
        )

    def run(self, shares: Sequence[Share]) -> Tensor:
        """Run each share in one pass over all."""
        rows, ids, lasts = [], [], []
        for share in shares:
            rows.append(Row(share.sequence.table, share.sequence.stored, share.count))
            ids += share.ids
            lasts += range(len(ids) - share.scored, len(ids))
        tokens = torch.tensor([ids], device=self._cache.keys.device)
        hidden_te = self._model(tokens, cache=self._cache.view(rows))[0]
        note_prompts(self._model.logits, hidden_te, shares)
        return self._model.logits(hidden_te[lasts]).float()

    def score(self, sequences: Sequence[Sequence[int]], *, on_done: Callable[[int], None]) -> list[list[float]]:
        """Score them without a cache, those of like length together."""
        return score(self._model, sequences, on_done=on_done)

    def refresh(self) -> None:
        """Do nothing: the model is read anew in each round."""


def note_prompts(logits: Callable[[Tensor], Tensor], hidden_te: Tensor, shares: Sequence[Share]) -> None:
    """Add the log-probabilities of prompt ids that are due, from the states of all ids of the shares."""
    first = 0
    for share in shares:
        sequence, start = share.sequence, share.sequence.stored
        if sequence.logprobs_due:
            known = len(sequence.prompt_logprobs)
            targets = sequence.request.prompt[known + 1 : start + share.count + 1]
            places = slice(first + known - start, first + known - start + len(targets))
            wanted = torch.tensor(targets, device=hidden_te.device)
            sequence.prompt_logprobs += target_logprobs(logits, hidden_te[places], wanted).tolist()
        first += share.count


def target_logprobs(logits: Callable[[Tensor], Tensor], hidden_te: Tensor, targets_t: Tensor) -> Tensor:
    """Return log p of targets [t], with the scores of few places at a time in memory."""
    pieces = []
    for hidden, targets in zip(hidden_te.split(_SCORED_AT_ONCE), targets_t.split(_SCORED_AT_ONCE), strict=True):
        scores = logits(hidden).float()
        pieces.append(scores.gather(1, targets.unsqueeze(1)).squeeze(1) - scores.logsumexp(-1))
    return torch.cat(pieces)


def score(
    model: Transformer, sequences: Sequence[Sequence[int]], *, on_done: Callable[[int], None]
) -> list[list[float]]:
    """Return log p(id | ids before it) for every id but the first of each sequence, without a cache."""
    results: list[list[float]] = [[] for _ in sequences]
    # sequences of like length go together, as many as a budget of places allows
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    start = 0
    while start < len(order):
        count = max(1, _SCORED_PLACES // max(1, len(sequences[order[start]])))
        group = order[start : start + count]
        rows = _padded([sequences[i][:-1] for i in group], model)
        targets = _padded([sequences[i][1:] for i in group], model)
        chosen = target_logprobs(model.logits, model(rows).flatten(0, 1), targets.flatten()).view_as(targets).tolist()
        for i, row in zip(group, chosen, strict=True):
            results[i] = row[: max(0, len(sequences[i]) - 1)]
        start += count
        on_done(min(start, len(order)))
    return results


def _padded(rows: Sequence[Sequence[int]], model: Transformer) -> Tensor:
    """Return ids [b, longest], 0 behind the shorter ones: causal attention never lets a real id see them."""
    longest = max(1, max(map(len, rows)))
    padded = [[*row, *[0] * (longest - len(row))] for row in rows]
    return torch.tensor(padded, device=next(model.parameters()).device)
