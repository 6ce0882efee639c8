"""The numbers of quantised weights: groups of small integers that share a scale, packed into 32-bit words.

    weight [n, k] -> scale [n, k/group] -> levels [n, k] -> words [n, k*bits/32]

The layout is that of compressed-tensors' "pack-quantized" format: offset binary, the first weight in the lowest bits.
Shape legend: n outputs, k inputs, g group, s weights of a group.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.base.errors import DataError

Shape = tuple[int, ...]

WEIGHTS_AT_ONCE = 1 << 22
_LARGEST = 2.0**120  # beyond it a level times a scale could overflow
_TINY = torch.finfo(torch.bfloat16).tiny
# what the largest weight of a group of int4 is divided by: 8 keeps it exact, less gives the others a finer or a
# coarser grid; these 8 values and one step of least squares come within 2 % of a search over 32 (docs/log.md)
_DIVISORS = (5.0, 5.5, 6.0, 6.5, 7.0, 7.5, 8.0, 8.5)


@dataclass(frozen=True)
class Packing:
    """How a weight is stored: levels of `bits` bits, a scale for every `group` of them along k."""

    bits: int
    group: int

    def tensors(self, shape: Shape) -> dict[str, tuple[Shape, torch.dtype]]:
        """Return the shapes and number formats of the tensors that hold a weight [n, k]."""
        n, k = shape
        return {
            "weight_packed": ((n, k * self.bits // 32), torch.int32),
            "weight_scale": ((n, k // self.group), torch.bfloat16),
            "weight_shape": ((2,), torch.int64),
        }

    def fits(self, k: int) -> bool:
        """Say whether rows of k weights are whole groups and whole words."""
        return k % self.group == 0 and k * self.bits % 32 == 0


def row_pieces(n: int, k: int, most: int = WEIGHTS_AT_ONCE) -> Iterator[slice]:
    """Yield slices of n rows with at most `most` weights each (but a whole row)."""
    step = max(1, most // k)
    return (slice(start, start + step) for start in range(0, n, step))


def pack(levels_nk: Tensor, bits: int) -> Tensor:
    """Return signed levels, int8 [n, k], as words, int32 [n, k*bits/32]."""
    if bits == 8:
        return (levels_nk.view(torch.uint8) ^ 0x80).view(torch.int32)
    offset_nk = (levels_nk + 8).view(torch.uint8)
    return (offset_nk[:, ::2] | offset_nk[:, 1::2] << 4).contiguous().view(torch.int32)


def unpack(words: Tensor, bits: int) -> Tensor:
    """Return words, int32 [n, k*bits/32], as signed levels, int8 [n, k]."""
    bytes_ = words.contiguous().view(torch.uint8)
    if bits == 8:
        return (bytes_ ^ 0x80).view(torch.int8)
    return torch.stack((bytes_ & 15, bytes_ >> 4), dim=-1).flatten(1).view(torch.int8) - 8


def quantised(weight_nk: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """Return the words, int32 [n, k*bits/32], and scales, bfloat16 [n, k/group], of a weight.

    A scale is rounded to bfloat16 first and the levels chosen for the rounded one. In int8 no weight moves by more
    than half a scale; in int4 the squared error of each group is least among the scales tried, and scales may be
    negative. Raises DataError on NaN, infinity and numbers beyond 1e36.
    """
    (n, k), bits = weight_nk.shape, packing.bits
    device = weight_nk.device
    words = torch.empty(n, k * bits // 32, dtype=torch.int32, device=device)
    scale_ng = torch.empty(n, k // packing.group, dtype=torch.bfloat16, device=device)
    # small enough for a processor's cache, where every candidate passes over the piece
    most = WEIGHTS_AT_ONCE if device.type == "cuda" else WEIGHTS_AT_ONCE >> 6
    for rows in row_pieces(n, k, most):
        x_ngs = weight_nk[rows].detach().float().unflatten(1, (-1, packing.group))
        largest_ng1 = x_ngs.abs().amax(-1, keepdim=True)
        if not bool((largest_ng1 < _LARGEST).all()):
            raise DataError("holds NaN, infinity or numbers beyond 1e36, which can't be quantised")
        scale_ng1 = _scale8(largest_ng1) if bits == 8 else _scale4(x_ngs, largest_ng1)
        scale_ng1 = scale_ng1.masked_fill(largest_ng1 == 0, 1.0)
        limits = (-127, 127) if bits == 8 else (-8, 7)
        levels_nk = (x_ngs / scale_ng1).round_().clamp_(*limits).to(torch.int8).flatten(1)
        words[rows], scale_ng[rows] = pack(levels_nk, bits), scale_ng1.squeeze(-1).to(torch.bfloat16)
    return words, scale_ng


def dequantised(words: Tensor, scale_ng: Tensor, packing: Packing, dtype: torch.dtype) -> Tensor:
    """Return the weights [n, k] that words and scales stand for: level times scale, rounded once to `dtype`."""
    levels_ngs = unpack(words, packing.bits).unflatten(1, (-1, packing.group))
    return (levels_ngs.float() * scale_ng.float().unsqueeze(-1)).flatten(1).to(dtype)


def _bfloat16(x: Tensor) -> Tensor:
    """Return float32 numbers as bfloat16 has them, none nearer to 0 than its smallest normal one."""
    rounded = x.to(torch.bfloat16).float()
    return rounded.abs().clamp_min(_TINY).copysign(rounded)


def _scale8(largest_ng1: Tensor) -> Tensor:
    nearest = _bfloat16(largest_ng1 / 127)
    # the next number up where the largest weight would lie more than half a level beyond 127
    above = (nearest.to(torch.bfloat16).view(torch.int16) + 1).view(torch.bfloat16).float()
    return torch.where(largest_ng1 > 127.5 * nearest, above, nearest)


def _scale4(x_ngs: Tensor, largest_ng1: Tensor) -> Tensor:
    """Return the scale of least squared error among those tried.

    Signed so that the largest weight is on the side of -8, which has one level more (as in llama.cpp's Q4_0).
    """
    unit_ng1 = largest_ng1.clamp_min(_TINY)  # errors are summed in units of the largest weight: squares can't overflow
    x_ngs = x_ngs / unit_ng1
    end_ng1 = -largest_ng1.copysign(x_ngs.gather(-1, x_ngs.abs().argmax(-1, keepdim=True)))
    best_ng1 = _bfloat16(end_ng1 / 8)
    error_ng1 = torch.full_like(best_ng1, torch.inf)

    def levels(scale_ng1: Tensor) -> tuple[Tensor, Tensor]:
        step_ng1 = scale_ng1 / unit_ng1
        return (x_ngs / step_ng1).round_().clamp_(-8, 7), step_ng1

    def attempt(scale_ng1: Tensor) -> None:
        nonlocal best_ng1, error_ng1
        levels_ngs, step_ng1 = levels(scale_ng1)
        found_ng1 = levels_ngs.mul_(step_ng1).sub_(x_ngs).square_().sum(-1, keepdim=True)
        better = found_ng1 < error_ng1
        best_ng1 = torch.where(better, scale_ng1, best_ng1)
        error_ng1 = torch.where(better, found_ng1, error_ng1)

    for divisor in _DIVISORS:
        attempt(_bfloat16(end_ng1 / divisor))
    levels_ngs, _ = levels(best_ng1)
    fitted_ng1 = (levels_ngs * x_ngs).sum(-1, keepdim=True) / levels_ngs.square().sum(-1, keepdim=True)
    attempt(_bfloat16(fitted_ng1 * unit_ng1))  # 0 / 0, where all levels are 0, is no better than anything
    return best_ng1
