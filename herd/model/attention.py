"""Grouped-query attention over packed rows (training) or a cache (inference): the same mathematics.

Shape legend: b batch, t position, h head, d head size, e model width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from herd.model.cache import CacheView, Pass
from herd.model.config import ModelConfig
from herd.model.linear import project
from herd.model.long_rows import spans_of
from herd.model.pieces import Piece, additive, attend_in_pieces, cut
from herd.model.rope import rotate
from herd.model.varlen import Varlen

# scores a head (t x s) up to which a processor works in pieces, which are kept for the backward pass
_MOST_PLAIN = 1 << 20
# the largest mask (b x t x t) that is made elsewhere, where a fused kernel reads it
_MOST_MASK = 1 << 28


class Reach(Protocol):
    """Who sees whom in packed rows, with attention of its own: where a rank holds a part of each row, say."""

    def attend(self, q_bhtd: Tensor, k_bhsd: Tensor, v_bhsd: Tensor) -> Tensor:
        """Return attention [b, h, t, d] for the positions at hand."""
        ...


Bias = Tensor | tuple[Piece, ...] | Reach | None  # what `attend` adds to the scores; None: plain causal


@dataclass(frozen=True)
class Step:
    """What every layer of one forward pass shares: rotation table, who sees whom (None: plain causal), cache.

    With a view of a cache there is one bias for each of its groups, without a cache there is one. The table is cos and
    sin [b, t, d] for a Pass, which turns in its own way, and else what `rotate` takes.
    """

    table: tuple[Tensor, Tensor]
    biases: tuple[Bias, ...]
    cache: CacheView | Pass | None


def document_mask(documents_bt: Tensor) -> Tensor:
    """Return [b, 1, t, t]: causal, and no token sees another document (section 3.2)."""
    length = documents_bt.shape[1]
    same = documents_bt.unsqueeze(2) == documents_bt.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=documents_bt.device).tril()
    return (same & causal).unsqueeze(1)


def rows_bias(documents_bt: Tensor, dtype: torch.dtype) -> Bias:
    """Return who sees whom in packed rows, as `attend` takes it; for long rows nothing of t x t is made."""
    if Varlen.fits(documents_bt, dtype):
        return Varlen(documents_bt)
    b, t = documents_bt.shape
    if documents_bt.device.type == "cpu":
        if t * t > _MOST_PLAIN:
            long = spans_of(documents_bt)
            if long.scores > _MOST_PLAIN:
                return long
    elif b * t * t > _MOST_MASK:
        return spans_of(documents_bt)
    return bias_of(document_mask(documents_bt), dtype)


def bias_of(mask_b1ts: Tensor, dtype: torch.dtype) -> Tensor | tuple[Piece, ...]:
    """Return a mask as `attend` takes it: pieces on a processor, unless they are too much to keep; else 0 and -inf."""
    # a subclass, such as a tensor without memory, can't say where the mask is empty
    if type(mask_b1ts) is Tensor and mask_b1ts.device.type == "cpu":
        pieces = cut(mask_b1ts, dtype)
        if sum(piece.bias_b11ts[0].numel() for piece in pieces) <= _MOST_PLAIN:
            return pieces
    return additive(mask_b1ts, dtype)


def attend(q_bhtd: Tensor, k_bhsd: Tensor, v_bhsd: Tensor, bias: Bias) -> Tensor:
    """Return attention [b, h, t, d]; `bias` [b, 1, t, s] is added to the scores, None means causal.

    In pieces where `bias_of` or `rows_bias` made some: PyTorch's fused CPU kernel took 2 to 5 times as long on rows of
    128 and 256 (docs/log.md). Everything else is scaled_dot_product_attention.
    """
    if isinstance(bias, tuple):
        return attend_in_pieces(q_bhtd, k_bhsd, v_bhsd, bias)
    if bias is None or isinstance(bias, Tensor):
        return scaled_dot_product_attention(
            q_bhtd, k_bhsd, v_bhsd, attn_mask=bias, is_causal=bias is None, enable_gqa=True
        )
    return bias.attend(q_bhtd, k_bhsd, v_bhsd)


def attend_cached(q_1htd: Tensor, cache: CacheView, layer: int, biases: tuple[Bias, ...]) -> Tensor:
    """Return attention [1, h, t, d] of the new tokens of many sequences over what the cache holds of each."""
    q_thd = q_1htd[0].transpose(0, 1)
    out_thd = torch.empty(q_thd.shape, dtype=q_thd.dtype, device=q_thd.device)
    for group, bias in zip(cache.groups, biases, strict=True):
        keys, values = cache.load(layer, group)
        q_nhmd = q_thd[group.tokens].unflatten(0, (group.rows, -1)).transpose(1, 2)
        found = attend(q_nhmd, keys.to(q_thd.dtype), values.to(q_thd.dtype), bias).transpose(1, 2).flatten(0, 1)
        if group.real is None:
            out_thd[group.tokens] = found
        else:
            which, where = group.real
            out_thd[where] = found[which]
    return out_thd.transpose(0, 1).unsqueeze(0)


class Attention(nn.Module):
    """Queries of n_heads over keys and values of n_kv_heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_size = config.head_size
        self.wq = nn.Linear(config.dim, config.n_heads * config.head_size, bias=False)
        self.wk = nn.Linear(config.dim, config.n_kv_heads * config.head_size, bias=False)
        self.wv = nn.Linear(config.dim, config.n_kv_heads * config.head_size, bias=False)
        self.wo = nn.Linear(config.n_heads * config.head_size, config.dim, bias=False)
        self.joined: Callable[[Tensor], tuple[Tensor, ...]] | None = None  # see herd/model/together.py

    def forward(self, x_bte: Tensor, step: Step) -> Tensor:
        """Return [b, t, e]."""
        joined = None if torch.is_grad_enabled() else self.joined
        q_bt, k_bt, v_bt = joined(x_bte) if joined else project(x_bte, self.wq, self.wk, self.wv)
        if isinstance(step.cache, Pass):
            q_thd, k_thd, v_thd = (part[0].unflatten(-1, (-1, self.head_size)) for part in (q_bt, k_bt, v_bt))
            out_thd = step.cache.attend(self.layer, q_thd, k_thd, v_thd, *(part[0] for part in step.table))
            return self.wo(out_thd.flatten(1).unsqueeze(0))
        q_bhtd = rotate(self._heads(q_bt), *step.table)
        k_bhtd = rotate(self._heads(k_bt), *step.table)
        v_bhtd = self._heads(v_bt)
        if step.cache is None:
            out_bhtd = attend(q_bhtd, k_bhtd, v_bhtd, step.biases[0])
        else:
            step.cache.store(self.layer, k_bhtd, v_bhtd)
            out_bhtd = attend_cached(q_bhtd, step.cache, self.layer, step.biases)
        return project(out_bhtd.transpose(1, 2).flatten(2), self.wo)[0]

    def _heads(self, x_bt: Tensor) -> Tensor:
        # -1: under tensor parallelism a rank holds only some of the heads
        return x_bt.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
