"""Weights in the kernels' layout (src/linear.h): strips of 64 rows, each one stream of bytes.

Shape legend: n outputs, k inputs, s strips, v vectors of 16 rows, g groups of k.
"""

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from herd.engine.native.library import Linear
from herd.model.quant import QuantLinear

STRIP, LANES = 64, 16  # rows
_FLOAT_GROUP = 64  # floats have no scales: any number that the strips' width is padded to
_HUGE = 2 << 20


class Packed:
    """One packed weight and the memory that holds it."""

    def __init__(self, bits: int, group: int, rows: int, width: int, strips: list[Tensor]) -> None:
        self._data = _huge(strips)
        self.linear = Linear(bits, group, rows, width, self._data.data_ptr())
        self.nbytes = self._data.numel()


def pack(parts: Sequence[nn.Module], *, paired: bool = False) -> Packed:
    """Pack linear layers of one input and one format, one's rows after the other's.

    paired: two layers of like size, whose rows alternate: 32 of the first, the same 32 of the second, and so on.
    """
    integers = [part for part in parts if isinstance(part, QuantLinear)]
    if integers:
        bits, group = integers[0].bits, integers[0].group
        levels = [part.levels() for part in integers]
        signed = _joined(levels, paired)
        codes = signed.view(torch.uint8) ^ 128 if bits == 8 else (signed + 8).view(torch.uint8)
        scales = _joined([part.weight_scale for part in integers], paired)
        pieces = zip(_strips(codes), _strips(scales), strict=True)
        strips = [_integers(code, scale, bits, group) for code, scale in pieces]
        return Packed(bits, group, _real_rows(levels, paired), integers[0].in_features, strips)
    weights = [part.weight.detach() for part in parts if isinstance(part, nn.Linear)]
    bits = 16 if weights[0].dtype == torch.bfloat16 else 32
    values = _joined(weights, paired)
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % _FLOAT_GROUP))
    strips = [_floats(strip, bits) for strip in _strips(values)]
    return Packed(bits, _FLOAT_GROUP, _real_rows(weights, paired), values.shape[1], strips)


def packable(parts: Sequence[nn.Module]) -> bool:
    """Say whether layers of one input are of one format that the kernels know, and whole (not shared by ranks)."""
    if any(type(p) not in (nn.Linear, QuantLinear) for p in parts):
        return False
    forms = {(p.bits, p.group) if isinstance(p, QuantLinear) else p.weight.dtype for p in parts}
    return len(forms) == 1 and all(not isinstance(p, QuantLinear) or p.group % LANES == 0 for p in parts)


def _real_rows(parts: list[Tensor], paired: bool) -> int:
    if paired:
        return sum(len(part) + -len(part) % LANES for part in parts)
    return sum(len(part) for part in parts)


def _joined(parts: list[Tensor], paired: bool) -> Tensor:
    """Return all rows in their order."""
    if not paired:
        return torch.cat(parts)
    first, second = (torch.cat((part, part.new_zeros(-len(part) % LANES, part.shape[1]))) for part in parts)
    half = STRIP // 2
    pieces = [piece for i in range(0, len(first), half) for piece in (first[i : i + half], second[i : i + half])]
    return torch.cat(pieces)


def _strips(values_nk: Tensor) -> list[Tensor]:
    """Return [s, v, 16, k]: the whole strips, then the last one of fewer vectors."""
    whole = len(values_nk) // STRIP * STRIP
    left = -(-(len(values_nk) - whole) // LANES)  # vectors
    spans = [(0, whole, 4), (whole, len(values_nk), 4 if left == 3 else left)]
    return [_shaped(values_nk[begin:end], vectors) for begin, end, vectors in spans if end > begin]


def _shaped(rows: Tensor, vectors: int) -> Tensor:
    missing = -len(rows) % (vectors * LANES)
    rows = torch.cat((rows, rows.new_zeros(missing, rows.shape[1]))) if missing else rows
    return rows.view(-1, vectors, LANES, rows.shape[1])


def _integers(codes: Tensor, scales: Tensor, bits: int, group: int) -> Tensor:
    s, v, lanes, k = codes.shape
    g = k // group
    if bits == 8:
        steps = codes.view(s, v, lanes, g, group // 4, 4)
    else:
        halves = codes.view(s, v, lanes, g, group // 8, 2, 4)
        steps = halves[..., 0, :] | halves[..., 1, :] << 4
    stream = steps.permute(0, 3, 4, 1, 2, 5).reshape(s, g, -1)
    heads = scales.permute(0, 3, 1, 2).contiguous().view(torch.uint8).reshape(s, g, -1)
    return torch.cat((heads, stream), dim=2).flatten()


def _floats(values: Tensor, bits: int) -> Tensor:
    s, v, lanes, k = values.shape
    per_step = 32 // bits
    steps = values.view(s, v, lanes, k // per_step, per_step).permute(0, 3, 1, 2, 4).contiguous()
    return steps.view(torch.uint8).flatten()


def _huge(strips: list[Tensor]) -> Tensor:
    """Return the strips in memory of huge pages where the system has them: a step of decoding reads all of it."""
    size = sum(strip.numel() for strip in strips)
    if size < _HUGE:
        whole = torch.empty(size + 64, dtype=torch.uint8)
        return _filled(whole[-whole.data_ptr() % 64 :][:size], strips)
    memory = mmap.mmap(-1, size + 2 * _HUGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return _filled(whole[-whole.data_ptr() % _HUGE :][:size], strips)


def _filled(memory: Tensor, strips: list[Tensor]) -> Tensor:
    at = 0
    for strip in strips:
        memory[at : at + strip.numel()] = strip
        at += strip.numel()
    return memory
