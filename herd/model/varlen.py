"""Attention of packed rows on a GPU: FlashAttention over documents of any lengths; nothing of t x t is ever written.

    documents [b, t]   0 0 0 1 1 | 0 2 2 2 2     each row's documents lie one after the other
    edges              0     3   5 6         10  where one begins, counted over all rows

Shape legend: b row, t position, h head, d head size, n all positions (b x t).
"""

from collections.abc import Callable

import torch
from torch import Tensor

# (queries [n, h, d], keys, values, edges, longest document) -> [n, h, d]
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


def flash(q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor, edges: Tensor, longest: int) -> Tensor:
    """Attend by PyTorch's FlashAttention, causal, with its gradient: CUDA, 16-bit formats."""
    # what torch.nn.attention.varlen calls: varlen_attn's own arguments differ between 2.11 and 2.13
    kernel = torch.ops.aten._flash_attention_forward
    return kernel(q_nhd, k_nhd, v_nhd, edges, edges, longest, longest, 0.0, True, False)[0]


class Varlen:
    """Who sees whom in rows of documents that lie one after the other (a `Reach`, herd/model/attention.py)."""

    def __init__(self, documents_bt: Tensor, kernel: Kernel = flash) -> None:
        begins = torch.ones_like(documents_bt, dtype=torch.bool)
        begins[:, 1:] = documents_bt[:, 1:] != documents_bt[:, :-1]
        end = torch.tensor([documents_bt.numel()], device=documents_bt.device)
        self.edges = torch.cat((begins.flatten().nonzero().squeeze(1), end)).int()
        # rounded up: a compiled block is made anew for each other number
        self.longest = min(1 << (int(self.edges.diff().max()) - 1).bit_length(), documents_bt.shape[1])
        self._kernel = kernel

    @staticmethod
    def fits(documents_bt: Tensor, dtype: torch.dtype) -> bool:
        """Say whether the kernel is to be had."""
        return (
            documents_bt.is_cuda
            and dtype in (torch.bfloat16, torch.float16)
            and torch.backends.cuda.is_flash_attention_available()
        )

    def attend(self, q_bhtd: Tensor, k_bhsd: Tensor, v_bhsd: Tensor) -> Tensor:
        """Return attention [b, h, t, d]."""
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_bhtd, k_bhsd, v_bhsd))
        out_nhd = self._kernel(q, k, v, self.edges, self.longest)
        return out_nhd.unflatten(0, (q_bhtd.shape[0], -1)).transpose(1, 2)
