"""Activations that are computed again in the backward pass instead of kept (arXiv:2205.05198; section 3.3.2).

none        all are kept
selective   results of matrix products and of attention are kept, all else is cheap to do again
full        only a block's input is kept
"""

from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_ATEN = torch.ops.aten
KEPT = (
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    torch.ops._c10d_functional.all_gather_into_tensor.default,
    *((torch.ops.mkldnn._linear_pointwise.default,) if torch.backends.mkldnn.is_available() else ()),
)


def recompute(block: nn.Module, how: Literal["none", "selective", "full"]) -> None:
    """Make a block forget activations. Its name and parameters stay, so checkpoints don't know of it."""
    if how == "none":
        return
    more = {"context_fn": _contexts} if how == "selective" else {}
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, **more)


def _contexts():
    return create_selective_checkpoint_contexts(_policy)


def _policy(ctx: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
