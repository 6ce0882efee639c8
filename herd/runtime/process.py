"""The process group, as far as the training loop needs it: sums over ranks, and who is first."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return this process's rank, 0 outside a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum over all ranks; the same values outside a process group."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def rng_state() -> Tensor:
    """Return the state of torch's own generator, as plain bytes."""
    return torch.get_rng_state()
