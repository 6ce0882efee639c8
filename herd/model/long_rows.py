"""Attention over long packed rows, in memory that grows with the row and not with its square.

As in `pieces.py` a piece of queries meets only the keys from the first to the last that one of them may see. But a
piece's bias is made when it is needed, and its probabilities are computed again in the backward pass: nothing of t x s
is kept.

Shape legend: b batch, t query position, s key position, h head, k key/value head, g heads that share one, d head size,
n queries of a piece.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from herd.model.pieces import additive

_QUERIES = 128


@dataclass(frozen=True)
class Span:
    """Some queries and the keys they may see; `alone` where in each row all of these are one document."""

    queries: slice
    keys: slice
    alone: bool


@dataclass(frozen=True)
class LongRows:
    """Who sees whom in packed rows, in t numbers a row: equal ones attend to each other, causally."""

    documents_bt: Tensor
    spans: tuple[Span, ...]

    @property
    def scores(self) -> int:
        """How many scores of a head are computed."""
        return sum((s.queries.stop - s.queries.start) * (s.keys.stop - s.keys.start) for s in self.spans)

    @torch.compiler.disable  # each pattern of documents would be another program
    def attend(self, q_bhtd: Tensor, k_bhsd: Tensor, v_bhsd: Tensor) -> Tensor:
        """Return softmax(q k / sqrt(d) + mask) v, [b, h, t, d]; heads that share keys become rows of one product."""
        return _Long.apply(q_bhtd, k_bhsd, v_bhsd, self)

    def mark(self, scores_bkgns: Tensor, span: Span) -> None:
        """Set scores to -inf where a query may not see a key."""
        if span.alone:
            n = scores_bkgns.shape[-2]
            corner = torch.ones(n, n, dtype=torch.bool, device=scores_bkgns.device).tril()
            scores_bkgns[..., -n:].add_(additive(corner, scores_bkgns.dtype))
            return
        queries, keys = self.documents_bt[:, span.queries], self.documents_bt[:, span.keys]
        places = torch.arange(self.documents_bt.shape[1], device=keys.device)
        seen = (queries.unsqueeze(2) == keys.unsqueeze(1)) & (places[span.queries].unsqueeze(1) >= places[span.keys])
        scores_bkgns.add_(additive(seen, scores_bkgns.dtype)[:, None, None])


def spans_of(documents_bt: Tensor) -> LongRows:
    """Cut rows into spans, by the first place of each query's document."""
    b, t = documents_bt.shape
    places = torch.arange(t, device=documents_bt.device).expand(b, t)
    names = documents_bt - documents_bt.min()
    first = torch.full((b, int(names.max()) + 1), t, device=documents_bt.device)
    first_bt = first.scatter_reduce(1, names, places, "amin").gather(1, names)
    spans = []
    for start in range(0, t, _QUERIES):
        queries = slice(start, min(start + _QUERIES, t))
        keys = slice(int(first_bt[:, queries].min()), queries.stop)
        spans.append(Span(queries, keys, bool((first_bt[:, keys] == keys.start).all())))
    return LongRows(documents_bt, tuple(spans))


class _Long(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_bhtd: Tensor, k: Tensor, v: Tensor, rows: LongRows) -> Tensor:
        b, h, t, d = q_bhtd.shape
        q = (q_bhtd * d**-0.5).unflatten(1, (k.shape[1], -1))
        k, v = k.contiguous(), v.contiguous()  # every product would first copy what isn't dense
        out = q_bhtd.new_empty(b, t, h, d).transpose(1, 2)  # laid out as the next product reads it
        out_bkgtd = out.unflatten(1, (k.shape[1], -1))
        for span in rows.spans:
            found = _chances(q, k, rows, span) @ v[:, :, span.keys]
            out_bkgtd[:, :, :, span.queries] = found.unflatten(2, (q.shape[2], -1))
        ctx.save_for_backward(q, k, v)
        ctx.rows = rows
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v = ctx.saved_tensors
        above = grads[0].unflatten(1, (k.shape[1], -1))
        # a key's gradient is a sum over spans
        q_grad, k_grad, v_grad = torch.empty_like(q), torch.zeros_like(k).float(), torch.zeros_like(v).float()
        for span in ctx.rows.spans:
            chances, keys = _chances(q, k, ctx.rows, span), span.keys
            out_grad = above[:, :, :, span.queries].flatten(2, 3)
            v_grad[:, :, keys] += chances.transpose(-1, -2) @ out_grad
            grad = out_grad @ v[:, :, keys].transpose(-1, -2)
            grad = torch.ops.aten._softmax_backward_data(grad, chances, -1, chances.dtype)
            q_grad[:, :, :, span.queries] = (grad @ k[:, :, keys]).unflatten(2, (q.shape[2], -1))
            k_grad[:, :, keys] += grad.transpose(-1, -2) @ q[:, :, :, span.queries].flatten(2, 3)
        scaled = q_grad.flatten(1, 2) * q.shape[-1] ** -0.5
        return scaled, k_grad.to(k.dtype), v_grad.to(v.dtype), None


def _chances(q_bkgtd: Tensor, k_bksd: Tensor, rows: LongRows, span: Span) -> Tensor:
    """Return [b, k, g n, s], the same each time."""
    scores = q_bkgtd[:, :, :, span.queries].flatten(2, 3) @ k_bksd[:, :, span.keys].transpose(-1, -2)
    rows.mark(scores.unflatten(2, (q_bkgtd.shape[2], -1)), span)
    return scores.softmax(-1)
