"""Cross-entropy that computes its gradient at once, piece by piece, in the memory of the scores themselves.

PyTorch's log-softmax keeps a float32 copy of all scores for the backward pass; here a piece of a few hundred rows
is worked in float32 while it is in the processor's cache, and its gradient replaces the scores.

With a teacher, the target is a mixture of the next token and of the teacher's distribution, known as its k most
likely tokens and the mass of the rest (the tail). Writing q for the student, p for the teacher and K for those k,
    KL = sum_K p log(p / q) + p_tail log(p_tail / q_tail),     dKL/dscore = q - p on K,  q (1 - p_tail / q_tail) off K
which is the dense KL when k is the whole vocabulary (a test proves it).
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from herd.train.vocabulary import sharded_cross_entropy

_PIECE = 1 << 21  # scores, of which a processor's caches hold the float32 copy
_ROWS = 512
_TINY = 1.2e-38


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        targets: Tensor,
        weights: Tensor,
        top_ids: Tensor | None,
        top_logprobs: Tensor | None,
        share: float,
    ) -> tuple[Tensor, Tensor]:
        keep = ctx.needs_input_grad[0]
        sums = replace_by_gradient(scores, targets, weights, top_ids, top_logprobs, share, keep=keep)
        if keep:
            ctx.save_for_backward(scores)
        ctx.mark_non_differentiable(sums[1])
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grads[0]), None, None, None, None, None


def replace_by_gradient(
    scores: Tensor,
    targets: Tensor,
    weights: Tensor,
    top_ids: Tensor | None,
    top_logprobs: Tensor | None,
    share: float,
    *,
    keep: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return what `cross_entropy` does, and put the gradient where the scores are, unless it isn't kept."""
    nll = torch.zeros((), dtype=torch.float32, device=scores.device)
    divergence = torch.zeros_like(nll)
    most = max(1, min(_ROWS, _PIECE // scores.shape[1], scores.shape[0]))
    wide, found = (scores.new_empty(most, scores.shape[1], dtype=torch.float32) for _ in range(2))
    # on a GPU asking would cost more than the product
    alike = scores.device.type == "cpu" and bool((weights == 1).all())
    for start in range(0, scores.shape[0], most):
        rows = slice(start, start + most)
        target, weight = targets[rows, None], weights[rows, None]
        wide, q = wide[: len(target)], found[: len(target)]
        torch.softmax(wide.copy_(scores[rows]), -1, out=q)
        # float32 keeps a small probability's digits down to 1e-38, so a loss is exact up to 87 nats
        nll -= (q.gather(1, target).clamp_min(_TINY).log() * weight).sum()
        if top_ids is not None and top_logprobs is not None:
            divergence += _towards_teacher(q, top_ids[rows], top_logprobs[rows].float(), weight, share)
        if keep:
            q.scatter_add_(1, target, torch.full_like(weight, share - 1.0))
            scores[rows].copy_(q if alike else q.mul_(weight))
    return (1 - share) * nll + share * divergence, divergence


def _towards_teacher(q: Tensor, ids: Tensor, logprobs: Tensor, weight: Tensor, share: float) -> Tensor:
    """Subtract `share` of the teacher from q in place (see the module docstring); return the weighted sum of KL."""
    p, q_top = logprobs.exp(), q.gather(1, ids)
    p_tail = (1 - p.sum(1, keepdim=True)).clamp_min(0.0)
    q_tail = (1 - q_top.sum(1, keepdim=True)).clamp_min(1e-9)
    kl = (p * (logprobs - q_top.clamp_min(_TINY).log())).sum(1, keepdim=True)
    kl += p_tail * (p_tail.clamp_min(_TINY) / q_tail).log()
    q.mul_(1 - share * p_tail / q_tail)
    q.scatter_(1, ids, q_top - share * p)
    return (kl * weight).sum()


def cross_entropy(
    scores: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    teacher: tuple[Tensor, Tensor] | None = None,
    share: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return two weighted sums in nats and float32: (1 - share) NLL + share KL(teacher, model), and the KL alone.

    scores [n, vocab] are overwritten with their gradient when one is needed; targets and weights are [n];
    teacher is (ids, log-probabilities), each [n, k]. Without a teacher the first is the plain cross-entropy.
    """
    if scores.requires_grad and scores.is_leaf:
        scores = scores.clone()
    if isinstance(scores, DTensor):  # tensor parallel: a rank has the scores of a part of the vocabulary
        group = scores.device_mesh.get_group()
        return sharded_cross_entropy(scores.to_local(), targets, weights, group=group, teacher=teacher, share=share)
    ids, logprobs = teacher or (None, None)
    return _CrossEntropy.apply(scores, targets, weights, ids, logprobs, share if teacher else 0.0)
