"""Choosing the next token from scores: greedy, or temperature with top-k and top-p, by the request's own generator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from herd.engine.request import Sampling


def choose(
    scores_bv: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]
) -> list[tuple[int, float]]:
    """Return the chosen id and its log-probability for each row of float32 scores [b, vocab]."""
    logprobs = scores_bv.log_softmax(-1)
    ids = scores_bv.argmax(-1)
    for row, (sampling, generator) in enumerate(zip(samplings, generators, strict=True)):
        if sampling.temperature > 0:
            ids[row] = _sample(scores_bv[row], sampling, generator)
    chosen = logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)
    return list(zip(ids.tolist(), chosen.tolist(), strict=True))


def _sample(scores_v: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    scores = scores_v / sampling.temperature
    if sampling.top_k:
        kth = scores.topk(min(sampling.top_k, scores.numel())).values[-1]
        scores = scores.masked_fill(scores < kth, float("-inf"))
    probabilities = scores.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        # a token stays while the mass before it is below top_p, so the most likely one always stays
        ordered[ordered.cumsum(0) - ordered >= sampling.top_p] = 0.0
        probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(0)
