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
    """Some queries, the keys from the first to the last that any of them may see, and the bias between the two."""

    queries: slice
    keys: slice
    bias_b11ts: Tensor


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
        pieces.append(Piece(queries, keys, additive(rows[..., keys], dtype).unsqueeze(1)))
    return tuple(pieces)


@torch.compiler.disable  # each pattern of documents would be another program
def attend_in_pieces(q_bhtd: Tensor, k_bksd: Tensor, v_bksd: Tensor, pieces: tuple[Piece, ...]) -> Tensor:
    """Return softmax(q k / sqrt(d) + bias) v, [b, h, t, d]; heads that share keys become rows of one product."""
    return _Pieces.apply(q_bhtd, k_bksd, v_bksd, pieces)


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_bhtd: Tensor, k: Tensor, v: Tensor, pieces: tuple[Piece, ...]) -> Tensor:
        b, h, t, d = q_bhtd.shape
        q = (q_bhtd * d**-0.5).unflatten(1, (k.shape[1], -1))
        if len(pieces) > 1:  # every product would first copy what isn't dense
            k, v = k.contiguous(), v.contiguous()
        # laid out as the next product reads it, [b, t, h, d]
        out = q_bhtd.new_empty(b, t, h, d).transpose(1, 2)
        out_bkgtd, chances = out.unflatten(1, (k.shape[1], -1)), []
        for piece in pieces:
            scores = _rows(q, piece) @ k[:, :, piece.keys].transpose(-1, -2)
            _heads(scores, q).add_(piece.bias_b11ts)
            chance = _heads(scores, q).softmax(-1).view(scores.shape)
            out_bkgtd[:, :, :, piece.queries] = _heads(chance @ v[:, :, piece.keys], q)
            chances.append(chance)
        ctx.save_for_backward(q, k, v, *chances)
        ctx.pieces = pieces
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, *chances = ctx.saved_tensors
        above = grads[0].unflatten(1, (k.shape[1], -1))
        # a key's gradient is a sum over pieces
        q_grad, k_grad, v_grad = torch.empty_like(q), torch.zeros_like(k).float(), torch.zeros_like(v).float()
        for piece, chance in zip(ctx.pieces, chances, strict=True):
            rows, keys = _rows(above, piece), piece.keys
            v_grad[:, :, keys] += chance.transpose(-1, -2) @ rows
            grad = torch.ops.aten._softmax_backward_data(
                rows @ v[:, :, keys].transpose(-1, -2), chance, -1, chance.dtype
            )
            q_grad[:, :, :, piece.queries] = _heads(grad @ k[:, :, keys], q)
            k_grad[:, :, keys] += grad.transpose(-1, -2) @ _rows(q, piece)
        scaled = q_grad.flatten(1, 2) * q.shape[-1] ** -0.5
        return scaled, k_grad.to(k.dtype), v_grad.to(v.dtype), None


def _rows(x_bkgtd: Tensor, piece: Piece) -> Tensor:
    return x_bkgtd[:, :, :, piece.queries].flatten(2, 3)


def _heads(x_bkrs: Tensor, q_bkgtd: Tensor) -> Tensor:
    return x_bkrs.unflatten(2, (q_bkgtd.shape[2], -1))
