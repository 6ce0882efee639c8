"""The two kinds of pass that a GPU runs: one new token a row at fixed shapes, and prompts of any lengths in one row.

decode   ids, lengths and block tables lie in one buffer that never moves: a captured graph reads what it holds then
prompt   rows one after the other; of each, the stored positions are gathered (or read in place where its blocks are
         neighbours) and attention is causal, aligned to the end:    new        [##]
                                                                     stored  [######]
Every kernel is an argument, so that the same passes run, and are tested, on a processor.
Shape legend: t new tokens, s stored positions of all rows, p a cache's positions, h head, d head size, w blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from herd.engine import kernels
from herd.model.cache import PagedCache, Pass, Row
from herd.model.rope import rotate, turning

_QUERIES = 512  # of a row at once, where scores are written out


@dataclass(frozen=True)
class Spans:
    """Where each row begins and ends among new tokens and among stored positions: r + 1 numbers each, from 0."""

    new: tuple[int, ...]
    stored: tuple[int, ...]


# (q_thd, k_shd, v_shd, spans, the same as int32 [2, r + 1] on the device) -> [t, h, d]
PackedAttention = Callable[[Tensor, Tensor, Tensor, Spans, Tensor], Tensor]


@dataclass(frozen=True)
class DecodeKernels:
    """How a decode pass computes.

    whole: attention works through the whole table, so that the table should be no wider than its longest row.
    """

    store: Callable[..., Tensor]
    attend: Callable[..., Tensor]
    gate: Callable[[Tensor, Tensor], Tensor] | None
    whole: bool


class DecodePass(Pass):
    """One new token a row. rows_tw: int32 [t, 2 + w], a row's id, its length with the new token, its blocks."""

    def __init__(self, cache: PagedCache, rows_tw: Tensor, kernels: DecodeKernels) -> None:
        self._cache, self._kernels = cache, kernels
        self.ids = rows_tw[:, 0].unsqueeze(0)
        self._lengths, self._table = rows_tw[:, 1], rows_tw[:, 2:]
        places = self._lengths.long() - 1
        self.positions = places.unsqueeze(0)
        blocks = self._table.gather(1, (places // cache.block_size).unsqueeze(1)).squeeze(1)
        self._places = blocks * cache.block_size + places % cache.block_size

    def attend(self, layer: int, q_thd: Tensor, k_thd: Tensor, v_thd: Tensor, cos_td: Tensor, sin_td: Tensor) -> Tensor:
        """Turn, store and attend by the kernels given."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        turned = self._kernels.store(
            q_thd, k_thd, v_thd, cos_td, sin_td, places_t=self._places, keys_hpd=keys, values_hpd=values
        )
        return self._kernels.attend(
            turned, keys, values, table_tw=self._table, lengths_t=self._lengths, block_size=self._cache.block_size
        )


class PromptPass(Pass):
    """New tokens of `rows`, one row after the other; see `CacheView` for what the rows must be."""

    def __init__(self, cache: PagedCache, rows: Sequence[Row], attention: PackedAttention) -> None:
        self._cache, self._attention = cache, attention
        device, size = cache.keys.device, cache.block_size
        new, stored = (np.cumsum([0, *counts]) for counts in ([r.count for r in rows], [r.end for r in rows]))
        self._spans = Spans(tuple(new.tolist()), tuple(stored.tolist()))
        where = [_where(row, size) for row in rows]
        places = np.concatenate([held[row.start :] for row, held in zip(rows, where, strict=True)])
        positions = np.concatenate([np.arange(row.start, row.end) for row in rows])
        self.positions = torch.from_numpy(positions).to(device).unsqueeze(0)
        self._places = torch.from_numpy(places).to(device)
        self._edges = torch.from_numpy(np.stack((new, stored)).astype(np.int32)).to(device)
        held = np.concatenate(where)
        first, last = int(held[0]), int(held[-1])
        run = len(rows) == 1 and last - first + 1 == len(held) and bool((np.diff(held) == 1).all())
        self._held = slice(first, last + 1) if run else torch.from_numpy(held).to(device)

    def attend(self, layer: int, q_thd: Tensor, k_thd: Tensor, v_thd: Tensor, cos_td: Tensor, sin_td: Tensor) -> Tensor:
        """Turn and store, then attend over what is held of each row."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        q_thd = store_plain(
            q_thd, k_thd, v_thd, cos_td, sin_td, places_t=self._places, keys_hpd=keys, values_hpd=values
        )
        held = [stored[:, self._held].transpose(0, 1).to(q_thd.dtype) for stored in (keys, values)]
        return self._attention(q_thd, held[0], held[1], self._spans, self._edges)


def _where(row: Row, size: int) -> np.ndarray:
    blocks = np.asarray(row.table[: -(-row.end // size)], dtype=np.int64)
    return (blocks[:, None] * size + np.arange(size)).ravel()[: row.end]


def store_plain(
    q_thd: Tensor, k_thd: Tensor, v_thd: Tensor, cos_td: Tensor, sin_td: Tensor, *,
    places_t: Tensor, keys_hpd: Tensor, values_hpd: Tensor,
) -> Tensor:  # fmt: skip
    """As `kernels.turn_and_store`, by PyTorch's own operators."""
    table = turning(cos_td.unsqueeze(0), sin_td.unsqueeze(0), q_thd.dtype)
    q_htd, k_htd = (rotate(x.transpose(0, 1).unsqueeze(0), *table)[0] for x in (q_thd, k_thd))
    keys_hpd.index_copy_(1, places_t, k_htd.to(keys_hpd.dtype))
    values_hpd.index_copy_(1, places_t, v_thd.transpose(0, 1).to(values_hpd.dtype))
    return q_htd.transpose(0, 1)


def attend_plain(
    q_thd: Tensor, keys_hpd: Tensor, values_hpd: Tensor, *, table_tw: Tensor, lengths_t: Tensor, block_size: int
) -> Tensor:
    """As `kernels.attend`, by PyTorch's own operators: every block of the table is gathered and masked."""
    rows, heads, size = q_thd.shape
    kv = keys_hpd.shape[0]

    def gathered(stored_hpd: Tensor) -> Tensor:
        blocks = stored_hpd.view(kv, -1, block_size * size).index_select(1, table_tw.flatten())
        return blocks.view(kv, rows, -1, size).transpose(0, 1).to(q_thd.dtype)

    keys, values = gathered(keys_hpd), gathered(values_hpd)
    scores = q_thd.view(rows, kv, heads // kv, size) @ keys.transpose(2, 3) * size**-0.5
    unseen = torch.arange(keys.shape[2], device=q_thd.device) >= lengths_t.unsqueeze(1)
    scores = scores.float().masked_fill(unseen.view(rows, 1, 1, -1), float("-inf"))
    return (scores.softmax(-1).to(q_thd.dtype) @ values).view(rows, heads, size)


def packed_flash(q_thd: Tensor, k_shd: Tensor, v_shd: Tensor, spans: Spans, edges: Tensor) -> Tensor:
    """Attend by PyTorch's FlashAttention over rows of any lengths: CUDA, 16-bit formats."""
    new, stored = (max(b - a for a, b in pairwise(s)) for s in (spans.new, spans.stored))
    # what torch.nn.attention.varlen calls: varlen_attn's own arguments differ between 2.11 and 2.13. `True`: causal
    flash = torch.ops.aten._flash_attention_forward
    return flash(q_thd, k_shd, v_shd, edges[0], edges[1], new, stored, 0.0, True, False)[0]


def packed_rows(q_thd: Tensor, k_shd: Tensor, v_shd: Tensor, spans: Spans, edges: Tensor) -> Tensor:
    """Attend row by row by PyTorch's fused kernels, also in float32, without a mask of new x stored on a GPU."""
    out = torch.empty_like(q_thd)
    for new, q, k, v in _rows(q_thd, k_shd, v_shd, spans):
        bias = causal_lower_right(q.shape[1], k.shape[1])
        found = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias)  # type: ignore[arg-type]
        out[new] = found[0].transpose(0, 1)
    return out


def packed_plain(q_thd: Tensor, k_shd: Tensor, v_shd: Tensor, spans: Spans, edges: Tensor) -> Tensor:
    """Attend row by row, some queries at a time, by products and a softmax: on any device and in any format."""
    out = torch.empty_like(q_thd)
    for new, q, k, v in _rows(q_thd, k_shd, v_shd, spans):
        places = torch.arange(k.shape[1], device=q.device)
        for start in range(0, q.shape[1], _QUERIES):
            part = q[:, start : start + _QUERIES]
            last = places[k.shape[1] - q.shape[1] + start :][: part.shape[1]]  # that each query may see
            scores = (part @ k.transpose(1, 2) * q.shape[2] ** -0.5).float()
            scores.masked_fill_(places > last.unsqueeze(1), float("-inf"))
            at = new.start + start
            out[at : at + part.shape[1]] = (scores.softmax(-1).to(v.dtype) @ v).transpose(0, 1)
    return out


def _rows(q_thd: Tensor, k_shd: Tensor, v_shd: Tensor, spans: Spans) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield each row's place among the new tokens, and its queries, keys and values, [h, t or s, d] of all heads."""
    heads = q_thd.shape[1] // k_shd.shape[1]
    for new, stored in zip(pairwise(spans.new), pairwise(spans.stored), strict=True):
        q, k, v = (x.transpose(0, 1) for x in (q_thd[slice(*new)], k_shd[slice(*stored)], v_shd[slice(*stored)]))
        yield slice(*new), q, k.repeat_interleave(heads, 0), v.repeat_interleave(heads, 0)


PLAIN = DecodeKernels(store_plain, attend_plain, None, whole=True)
TRITON = DecodeKernels(kernels.turn_and_store, kernels.attend, kernels.gate, whole=False)
