"""Cross-entropy over scores of which each tensor parallel rank has a part of the vocabulary (arXiv:1909.08053, 3).

As in crossentropy.py the gradient is worked at once, in the scores' memory. Three numbers a position go between ranks:
the largest score, the sum of exponentials, and the target's score; with a teacher also the scores of its k ids.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_TINY = 1.2e-38


class _ShardedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, group: Any, targets: Tensor, weights: Tensor, teacher: Any, share: float
    ) -> tuple[Tensor, Tensor]:
        first = dist.get_rank(group) * scores.shape[1]
        q = _softmax(scores, group)
        weight = weights[:, None]
        own = _Own(first, scores.shape[1], group)
        nll = -(own.pick(q, targets[:, None]).clamp_min(_TINY).log() * weight).sum()
        divergence = torch.zeros_like(nll)
        if teacher is not None:
            divergence = _towards_teacher(q, own, teacher[0], teacher[1].float(), weight, share)
        if ctx.needs_input_grad[0]:
            own.add(q, targets[:, None], share - 1.0)
            # detached: what comes in is a view of a DTensor, which autograd lets nobody write to
            ctx.save_for_backward(scores.detach().copy_(q.mul_(weight)))
        ctx.mark_non_differentiable(divergence)
        return (1 - share) * nll + share * divergence, divergence

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grads[0]), None, None, None, None, None


class _Own:
    """The part of the vocabulary that this rank has."""

    def __init__(self, first: int, count: int, group: Any) -> None:
        self._first, self._count, self._group = first, count, group

    def _places(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        places = ids - self._first
        here = (places >= 0) & (places < self._count)
        return places.clamp(0, self._count - 1), here

    def pick(self, q: Tensor, ids: Tensor) -> Tensor:
        """Return the probabilities of ids [n, k], wherever they are."""
        places, here = self._places(ids)
        found = q.gather(1, places) * here
        dist.all_reduce(found, group=self._group)
        return found

    def add(self, q: Tensor, ids: Tensor, values: Tensor | float) -> None:
        """Add to the probabilities of those ids that are here."""
        places, here = self._places(ids)
        q.scatter_add_(1, places, here.to(q.dtype) * values)


def _softmax(scores: Tensor, group: Any) -> Tensor:
    q = scores.float()
    most = q.amax(1, keepdim=True)
    dist.all_reduce(most, dist.ReduceOp.MAX, group)
    q = q.sub_(most).exp_() if q is not scores else q.sub(most).exp_()
    total = q.sum(1, keepdim=True)
    dist.all_reduce(total, group=group)
    return q.div_(total)


def _towards_teacher(q: Tensor, own: _Own, ids: Tensor, logprobs: Tensor, weight: Tensor, share: float) -> Tensor:
    """Subtract `share` of the teacher from q in place (formulas: crossentropy.py); return the weighted sum of KL."""
    p, q_top = logprobs.exp(), own.pick(q, ids)
    p_tail = (1 - p.sum(1, keepdim=True)).clamp_min(0.0)
    q_tail = (1 - q_top.sum(1, keepdim=True)).clamp_min(1e-9)
    kl = (p * (logprobs - q_top.clamp_min(_TINY).log())).sum(1, keepdim=True)
    kl += p_tail * (p_tail.clamp_min(_TINY) / q_tail).log()
    ratio = 1 - share * p_tail / q_tail
    q.mul_(ratio)
    # on the teacher's own ids: q - share p, not q scaled
    own.add(q, ids, q_top * (1 - ratio) - share * p)
    return (kl * weight).sum()


def sharded_cross_entropy(
    scores: Tensor, targets: Tensor, weights: Tensor, *, group: Any, teacher: tuple[Tensor, Tensor] | None, share: float
) -> tuple[Tensor, Tensor]:
    """Return what `crossentropy.cross_entropy` does, the same on all ranks of `group`; scores are a part."""
    return _ShardedCrossEntropy.apply(scores, group, targets, weights, teacher, share if teacher else 0.0)
