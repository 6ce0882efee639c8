"""Attention on a processor: pieces of 64 queries, each over just the keys that one of its queries may see.

             keys 0 .......... s
    queries 0     [##          ]     In packed rows nearly all scores lie outside the documents, the more the
            :     [ ###        ]     longer the row, and PyTorch's kernel works through every one of them.
            t     [        ####]

Shape legend: b batch, t query position, s key position, h head, k key/value head, g heads that share one, d head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_QUERIES = 64


@dataclass(frozen=True)
class Piece:
    """Some queries, the keys from the first to the last that any of them may see, and the bias between the two.

    The bias is of the last of these keys; those before them every query sees.
    """

    queries: slice
    keys: slice
    bias_b11ts: Tensor

    def add_to(self, scores_bkgts: Tensor) -> None:
        """Add the bias to scores of these queries and keys."""
        keys, biased = scores_bkgts.shape[-1], self.bias_b11ts.shape[-1]
        scores_bkgts[..., keys - biased :].add_(self.bias_b11ts)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where the mask is true and -inf elsewhere: one conversion a forward pass instead of one a layer."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def cut(mask_b1ts: Tensor, dtype: torch.dtype) -> tuple[Piece, ...]:
    """Cut a mask of any pattern into pieces. Every query must see a key."""
    pieces = []
    for start in range(0, mask_b1ts.shape[2], _QUERIES):
        queries = slice(start, start + _QUERIES)
        rows = mask_b1ts[:, :, queries]
        keys = slice(0, rows.shape[-1])
        if mask_b1ts.shape[2] > _QUERIES:  # of a single piece all keys are kept: a part of them would be copied first
            seen = rows.flatten(0, 2).any(0).nonzero()
            keys = slice(int(seen[0]), int(seen[-1]) + 1)
        hidden = (~rows[..., keys]).flatten(0, 2).any(0).nonzero()
        # whole vectors of a processor: half as many numbers would take longer
        first = int(hidden[0]) // 64 * 64 if len(hidden) else keys.stop - keys.start
        pieces.append(Piece(queries, keys, additive(rows[..., keys][..., first:], dtype).unsqueeze(1)))
    return tuple(pieces)


@torch.compiler.disable  # each pattern of documents would be another program
def attend_in_pieces(q_bhtd: Tensor, k_bksd: Tensor, v_bksd: Tensor, pieces: tuple[Piece, ...]) -> Tensor:
    """Return softmax(q k / sqrt(d) + bias) v, [b, h, t, d]; heads that share keys become rows of one product."""
    return _Pieces.apply(q_bhtd, k_bksd, v_bksd, pieces)


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_bhtd: Tensor, k: Tensor, v: Tensor, pieces: tuple[Piece, ...]) -> Tensor:
        b, h, t, d = q_bhtd.shape
        q = q_bhtd.unflatten(1, (k.shape[1], -1))
        k, v = k.contiguous(), v.contiguous()  # every product would first copy what isn't dense
        # laid out as the next product reads it, [b, t, h, d]
        out = q_bhtd.new_empty(b, t, h, d).transpose(1, 2)
        out_bkgtd, kept = out.unflatten(1, (k.shape[1], -1)), []
        for piece in pieces:
            rows = _rows(q, piece)
            scores = _product(rows, k[:, :, piece.keys].transpose(-1, -2), d**-0.5)
            piece.add_to(_heads(scores, q))
            chance = scores.softmax(-1)
            out_bkgtd[:, :, :, piece.queries] = _heads(chance @ v[:, :, piece.keys], q)
            kept += [rows, chance]
        ctx.save_for_backward(k, v, *kept)
        ctx.pieces = pieces
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        k, v, *kept = ctx.saved_tensors
        above, scale = grads[0].unflatten(1, (k.shape[1], -1)), k.shape[-1] ** -0.5
        # a key's gradient is a sum over pieces
        k_grad, v_grad = (torch.zeros_like(part, dtype=torch.float32) for part in (k, v))
        q_grad = torch.empty_like(grads[0].transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        q_heads = q_grad.unflatten(1, (k.shape[1], -1))
        for piece, q_rows, chance in zip(ctx.pieces, kept[::2], kept[1::2], strict=True):
            rows, keys = _rows(above, piece), piece.keys
            v_grad[:, :, keys] += chance.transpose(-1, -2) @ rows
            grad = torch.ops.aten._softmax_backward_data(
                rows @ v[:, :, keys].transpose(-1, -2), chance, -1, chance.dtype
            )
            q_heads[:, :, :, piece.queries] = _heads(_product(grad, k[:, :, keys], scale), above)
            k_grad[:, :, keys] += _product(grad.transpose(-1, -2), q_rows, scale)
        return q_grad, k_grad.to(k.dtype), v_grad.to(v.dtype), None


def _product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return scale x left @ right [b, k, rows, columns], scaled inside the product, before it is rounded."""
    left, right, shape = left.flatten(0, 1), right.flatten(0, 1), left.shape[:2]
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale).unflatten(0, shape)


def _rows(x_bkgtd: Tensor, piece: Piece) -> Tensor:
    return x_bkgtd[:, :, :, piece.queries].flatten(2, 3)


def _heads(x_bkrs: Tensor, q_bkgtd: Tensor) -> Tensor:
    return x_bkrs.unflatten(2, (q_bkgtd.shape[2], -1))
