"""Choosing the next token from scores: penalties, biases and grammar first, then greedy or by the request's own dice.

Drafted ids need no rule of their own: each place behind one is chosen as any other, while what was drafted is what
was chosen. So the tokens are those that would have come without a draft, by the same dice.

    scores -> (adjusted: only rows that ask) -> argmax
                                             \\-> / temperature -> top-k, min-p -> softmax -> top-p -> one draw

Shape legend: b requests, v vocabulary.
"""

import copy
import math
from collections import Counter
from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from herd.engine.request import Request, Token

_NUCLEUS = 1024  # ids sorted for top-p before all of the vocabulary is


class Picker:
    """What one request's next choice depends on besides the scores: settings, dice, what was said, grammar."""

    def __init__(self, request: Request) -> None:
        self.sampling = sampling = request.sampling
        # a copy: the same request may be asked again
        self.constraint = request.constraint.fork() if request.constraint is not None else None
        self.draws = sampling.temperature > 0
        self._dice = Random(sampling.seed) if self.draws else None
        self._said: Counter[int] = Counter()
        self._prompt = frozenset(request.prompt) if sampling.repetition_penalty != 1 else frozenset()
        self._penalised = bool(sampling.frequency_penalty or sampling.presence_penalty)
        self._counting = self._penalised or sampling.repetition_penalty != 1
        self.adjusts = self._counting or bool(sampling.logit_bias) or self.constraint is not None

    def accept(self, token_id: int) -> None:
        """Take the id that was chosen."""
        if self._counting:
            self._said[token_id] += 1
        if self.constraint is not None:
            self.constraint.accept(token_id)

    def fork(self) -> "Picker":
        """Return a copy that goes its own way, with dice that fall alike."""
        other = copy.copy(self)
        other.constraint = self.constraint.fork() if self.constraint is not None else None
        other._said = self._said.copy()
        other._dice = copy.copy(self._dice)
        return other

    def roll(self) -> float:
        """Return a number in [0, 1): the next one of this request's own."""
        assert self._dice is not None
        return self._dice.random()

    def adjust(self, scores_v: Tensor) -> bool:
        """Apply penalties, biases and grammar in place; say whether any id is left to choose from."""
        sampling, device = self.sampling, scores_v.device
        if sampling.repetition_penalty != 1 and (seen := self._prompt | self._said.keys()):
            ids = torch.tensor(sorted(seen), device=device)
            values = scores_v[ids]
            penalty = sampling.repetition_penalty
            scores_v[ids] = torch.where(values > 0, values / penalty, values * penalty)
        if self._penalised and self._said:
            ids = torch.tensor(list(self._said), device=device)
            counts = torch.tensor(list(self._said.values()), device=device, dtype=scores_v.dtype)
            scores_v[ids] -= sampling.frequency_penalty * counts + sampling.presence_penalty
        if sampling.logit_bias:
            ids = torch.tensor(list(sampling.logit_bias), device=device)
            scores_v[ids] += torch.tensor(list(sampling.logit_bias.values()), device=device)
        allowed = self.constraint.allowed() if self.constraint is not None else None
        if allowed is None:
            return True
        scores_v.masked_fill_(~allowed.to(device), float("-inf"))
        return bool(allowed.any())


class Choices:
    """Scores [b, vocab] to choose from, float32, row by row in any order; `pickers` has the asker of each row.

    Rows that are plainly greedy cost one argmax over all, whoever else is in the batch.
    """

    def __init__(self, scores_bv: Tensor, pickers: Sequence[Picker]) -> None:
        self._scores, self._pickers = scores_bv, pickers
        best = scores_bv.max(-1)
        self._total = scores_bv.logsumexp(-1)
        self._ids = best.indices.tolist()
        self._logprobs = (best.values - self._total).tolist()
        self._tops = _tops(scores_bv, self._total, [picker.sampling.top_logprobs for picker in pickers])

    def at(self, rows: Sequence[int]) -> list[Token | None]:
        """Return the token of each of these rows; None where its grammar leaves nothing."""
        asking = [row for row in rows if self._pickers[row].adjusts or self._pickers[row].draws]
        found = self._ask(asking) if asking else {}
        pairs = ((row, found.get(row, (self._ids[row], self._logprobs[row]))) for row in rows)
        return [None if pair is None else Token(*pair, self._tops[row]) for row, pair in pairs]

    def _ask(self, asking: list[int]) -> dict[int, tuple[int, float] | None]:
        """Return the ids and log-probabilities of rows whose pickers adjust scores or draw."""
        pickers = [self._pickers[row] for row in asking]
        rows = self._scores[asking]
        alive = [not picker.adjusts or picker.adjust(row) for picker, row in zip(pickers, rows, strict=True)]
        chosen = rows.argmax(-1)
        drawn = [n for n, picker in enumerate(pickers) if picker.draws and alive[n]]
        if drawn:
            chosen[drawn] = _draw(rows[drawn], [pickers[n] for n in drawn])
        logprobs = self._scores[asking, chosen] - self._total[asking]
        pairs = zip(chosen.tolist(), logprobs.tolist(), strict=True)
        return {row: pair if fine else None for row, pair, fine in zip(asking, pairs, alive, strict=True)}


def choose(scores_bv: Tensor, pickers: Sequence[Picker]) -> list[Token | None]:
    """Return each row's token from float32 scores [b, vocab]; None where its grammar leaves nothing."""
    return Choices(scores_bv, pickers).at(range(len(pickers)))


def _tops(scores_bv: Tensor, total_b: Tensor, counts: list[int]) -> list[tuple[tuple[int, float], ...]]:
    most = min(max(counts, default=0), scores_bv.shape[1])
    if most == 0:
        return [()] * len(counts)
    found = scores_bv.topk(most)
    values = (found.values - total_b.unsqueeze(1)).tolist()
    return [
        tuple(zip(row[:count], value[:count], strict=True))
        for row, value, count in zip(found.indices.tolist(), values, counts, strict=True)
    ]


def _draw(scores_bv: Tensor, pickers: Sequence[Picker]) -> Tensor:
    """Return an id for each row, by one roll of each request's dice."""
    settings = [picker.sampling for picker in pickers]

    def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, device=scores_bv.device, dtype=dtype).unsqueeze(1)

    scores_bv = scores_bv / column([s.temperature for s in settings])
    lowest = torch.full_like(scores_bv[:, :1], float("-inf"))
    if any(s.top_k for s in settings):
        counts = [min(s.top_k, scores_bv.shape[1]) for s in settings]
        best = scores_bv.topk(max(counts)).values
        kth = best.gather(1, column([max(0, n - 1) for n in counts], torch.long))
        lowest = torch.where(column([float(n) for n in counts]) > 0, kth, lowest)
    if any(s.min_p for s in settings):
        share = column([math.log(s.min_p) if s.min_p else float("-inf") for s in settings])
        lowest = torch.maximum(lowest, scores_bv.amax(-1, keepdim=True) + share)
    chances_bv = scores_bv.masked_fill(scores_bv < lowest, float("-inf")).softmax(-1)
    nucleus = [i for i, s in enumerate(settings) if s.top_p < 1]
    if nucleus:
        chances_bv[nucleus] = _nucleus(chances_bv[nucleus], column([settings[i].top_p for i in nucleus]))
    # in the vocabulary's order: were ids sorted by chance, rounding could swap two near ones and change the draw
    sums_bv = chances_bv.double().cumsum(-1)
    whole_b1 = sums_bv[:, -1:]
    rolled_b1 = column([picker.roll() for picker in pickers], torch.float64) * whole_b1
    found_b1 = torch.searchsorted(sums_bv, rolled_b1, right=True)
    # a product rounded up to the whole must not choose an id of no chance at the end
    return torch.minimum(found_b1, (sums_bv < whole_b1).sum(-1, keepdim=True)).squeeze(1)


def _nucleus(chances_bv: Tensor, top_p_b1: Tensor) -> Tensor:
    """Keep the smallest set of likeliest ids whose chances reach top_p."""
    values, order = chances_bv.topk(min(_NUCLEUS, chances_bv.shape[1]))
    if bool((values.sum(-1, keepdim=True) < top_p_b1).any()):
        values, order = chances_bv.sort(descending=True)
    # an id stays while the mass before it is below top_p, so the likeliest one always stays
    values = values.masked_fill(values.cumsum(-1) - values >= top_p_b1, 0.0)
    return torch.zeros_like(chances_bv).scatter(1, order, values)
