"""Grouped-query attention over packed rows (training) or a cache (inference): the same mathematics.

Shape legend: b batch, t position, h head, d head size, e model width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from herd.model.cache import CacheView
from herd.model.config import ModelConfig
from herd.model.rope import rotate

# score entries a head (t x s) up to which plain matrix products are used on a processor
_MOST_PLAIN = 1 << 20


@dataclass(frozen=True)
class Step:
    """What every layer of one forward pass shares: rotation table, attention bias (None: plain causal), cache."""

    cos_btd: Tensor
    sin_btd: Tensor
    bias: Tensor | None
    cache: CacheView | None


def document_mask(documents_bt: Tensor) -> Tensor:
    """Return [b, 1, t, t]: causal, and no token sees another document (section 3.2)."""
    length = documents_bt.shape[1]
    same = documents_bt.unsqueeze(2) == documents_bt.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=documents_bt.device).tril()
    return (same & causal).unsqueeze(1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where the mask is true and -inf elsewhere: one conversion a forward pass instead of one a layer."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def attend(q_bhtd: Tensor, k_bhsd: Tensor, v_bhsd: Tensor, bias: Tensor | None) -> Tensor:
    """Return attention [b, h, t, d]; `bias` [b, 1, t, s] is added to the scores, None means causal.

    Short rows on a processor go through plain matrix products: PyTorch's fused CPU kernel took 2 to 5 times as long
    on rows of 128 and 256 (docs/log.md). Everything else is scaled_dot_product_attention.
    """
    b, h, t, d = q_bhtd.shape
    kv, s = k_bhsd.shape[1:3]
    if bias is None or q_bhtd.device.type != "cpu" or t * s > _MOST_PLAIN:
        return scaled_dot_product_attention(
            q_bhtd, k_bhsd, v_bhsd, attn_mask=bias, is_causal=bias is None, enable_gqa=True
        )
    # the queries that share a key/value head become rows of one product
    q = (q_bhtd * d**-0.5).reshape(b, kv, h // kv * t, d)
    scores = (q @ k_bhsd.transpose(-1, -2)).view(b, kv, h // kv, t, s) + bias.unsqueeze(1)
    out = scores.softmax(-1).view(b, kv, h // kv * t, s) @ v_bhsd
    return out.view(b, h, t, d)


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

    def forward(self, x_bte: Tensor, step: Step) -> Tensor:
        """Return [b, t, e]."""
        q_bhtd = rotate(self._heads(self.wq(x_bte)), step.cos_btd, step.sin_btd)
        k_bhtd = rotate(self._heads(self.wk(x_bte)), step.cos_btd, step.sin_btd)
        v_bhtd = self._heads(self.wv(x_bte))
        if step.cache is not None:
            k_bhtd, v_bhtd = step.cache.extend(self.layer, k_bhtd, v_bhtd)
            k_bhtd, v_bhtd = k_bhtd.to(q_bhtd.dtype), v_bhtd.to(q_bhtd.dtype)
        out_bhtd = attend(q_bhtd, k_bhtd, v_bhtd, step.bias)
        return self.wo(out_bhtd.transpose(1, 2).flatten(2))

    def _heads(self, x_bt: Tensor) -> Tensor:
        # -1: under tensor parallelism a rank holds only some of the heads
        return x_bt.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
