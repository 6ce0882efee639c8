"""Triton kernels of the decode pass: turn and store, attention over blocks, SwiGLU's gate.

Attention of one new token a row is split along its stored positions, so that one long row keeps a whole GPU busy:

    row, kv head    |----- part 0 -----|----- part 1 -----|--- part 2 ---|      each: maximum, sum, weighted values
                                  \\________ combine ________/

Lengths and block tables are read from memory: a captured graph stays right as they grow. Without Triton, which comes
with PyTorch's CUDA builds, this module imports and `AVAILABLE` is false.
Shape legend: t rows (one new token each), h head, d head size, w blocks in a table.
"""

import torch
from torch import Tensor

try:
    import triton  # ty: ignore[import-not-found]
    import triton.language as tl  # ty: ignore[import-not-found]
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True

_TILE = 64  # stored positions at once
_MOST_PARTS = 64
_PROGRAMS = 264  # to aim at: two for each of an H100's 132 multiprocessors

if AVAILABLE:

    @triton.jit
    def _turn_and_store(
        q, k, v, q_step, k_step, v_step, cos, sin, places, out, keys, values, head_step,
        HEADS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr,
    ):  # fmt: skip
        row, head = tl.program_id(0), tl.program_id(1)
        half = tl.arange(0, D // 2)
        place = tl.load(places + row)
        if head < HEADS + KV:
            if head < HEADS:
                source = q + row * q_step + head * D
                target = out + (row * HEADS + head) * D
            else:
                source = k + row * k_step + (head - HEADS) * D
                target = keys + (head - HEADS).to(tl.int64) * head_step + place * D
            first, second = tl.load(source + half).to(tl.float32), tl.load(source + D // 2 + half).to(tl.float32)
            c, s = tl.load(cos + row * D + half), tl.load(sin + row * D + half)
            tl.store(target + half, (first * c - second * s).to(target.dtype.element_ty))
            tl.store(target + D // 2 + half, (second * c + first * s).to(target.dtype.element_ty))
        else:
            head = head - HEADS - KV
            source = v + row * v_step + head * D
            target = values + head.to(tl.int64) * head_step + place * D
            tl.store(target + half, tl.load(source + half).to(target.dtype.element_ty))
            tl.store(target + D // 2 + half, tl.load(source + D // 2 + half).to(target.dtype.element_ty))

    @triton.jit
    def _attend_part(
        q, keys, values, table, lengths, part_out, part_best, part_sum, table_step, length_step, head_step, scale,
        KV: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, D: tl.constexpr,
        SIZE: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr,
    ):  # fmt: skip
        row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        length = tl.load(lengths + row * length_step)
        each = tl.cdiv(tl.cdiv(length, PARTS), TILE) * TILE
        start = part * each
        end = tl.minimum(start + each, length)
        g, d, n = tl.arange(0, PADDED), tl.arange(0, D), tl.arange(0, TILE)
        first = (row * KV + head) * GROUP  # this program's first query head, over all rows
        mine = (g < GROUP)[:, None]
        q_gd = tl.load(q + (first + g)[:, None] * D + d[None, :], mask=mine, other=0.0)
        best = tl.full([PADDED], float("-inf"), tl.float32)
        total = tl.zeros([PADDED], tl.float32)
        sums = tl.zeros([PADDED, D], tl.float32)
        for at in range(start, end, TILE):
            place = at + n
            real = place < end
            block = tl.load(table + row * table_step + place // SIZE, mask=real, other=0).to(tl.int64)
            where = head.to(tl.int64) * head_step + (block * SIZE + place % SIZE) * D
            k_dn = tl.load(keys + where[None, :] + d[:, None], mask=real[None, :], other=0.0)
            scores = tl.dot(q_gd, k_dn.to(q_gd.dtype), input_precision="ieee") * scale
            scores = tl.where(real[None, :], scores, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, 1))
            shrink = tl.exp(best - higher)
            chance = tl.exp(scores - higher[:, None])
            v_nd = tl.load(values + where[:, None] + d[None, :], mask=real[:, None], other=0.0).to(q_gd.dtype)
            total = total * shrink + tl.sum(chance, 1)
            sums = sums * shrink[:, None] + tl.dot(chance.to(q_gd.dtype), v_nd, input_precision="ieee")
            best = higher
        slot = (first + g) * PARTS + part
        tl.store(part_best + slot, best, mask=g < GROUP)
        tl.store(part_sum + slot, total, mask=g < GROUP)
        tl.store(part_out + slot[:, None] * D + d[None, :], sums, mask=mine)

    @triton.jit
    def _combine(part_out, part_best, part_sum, out, D: tl.constexpr, PARTS: tl.constexpr):
        head = tl.program_id(0)  # over all rows
        s, d = tl.arange(0, PARTS), tl.arange(0, D)
        best = tl.load(part_best + head * PARTS + s)
        # a part beyond a short row's end weighs 0; the first part is never empty
        weight = tl.exp(best - tl.max(best, 0))
        total = tl.sum(tl.load(part_sum + head * PARTS + s) * weight, 0)
        sums = tl.load(part_out + (head * PARTS + s)[:, None] * D + d[None, :])
        tl.store(out + head * D + d, (tl.sum(sums * weight[:, None], 0) / total).to(out.dtype.element_ty))

    @triton.jit
    def _gate(first, second, out, first_step, second_step, WIDTH, TILE: tl.constexpr):
        row, column = tl.program_id(0), tl.program_id(1) * TILE + tl.arange(0, TILE)
        real = column < WIDTH
        a = tl.load(first + row * first_step + column, mask=real, other=0.0).to(tl.float32)
        b = tl.load(second + row * second_step + column, mask=real, other=0.0)
        # rounded between the two, as PyTorch's two kernels round
        silu = (a / (1.0 + tl.exp(-a))).to(out.dtype.element_ty).to(tl.float32)
        tl.store(out + row * WIDTH + column, (silu * b.to(tl.float32)).to(out.dtype.element_ty), mask=real)


def fits(head_size: int, block_size: int) -> bool:
    """Say whether the kernels are made for heads and blocks of these sizes: powers of two, heads 16 to 256."""
    return AVAILABLE and head_size in (16, 32, 64, 128, 256) and block_size & (block_size - 1) == 0


def parts(rows: int, n_kv_heads: int) -> int:
    """Return into how many parts each row's stored positions are cut: a power of two from 2 to 64."""
    wanted = -(-_PROGRAMS // (rows * n_kv_heads))
    return min(_MOST_PARTS, max(2, 1 << (wanted - 1).bit_length()))


def turn_and_store(
    q_thd: Tensor, k_thd: Tensor, v_thd: Tensor, cos_td: Tensor, sin_td: Tensor, *,
    places_t: Tensor, keys_hpd: Tensor, values_hpd: Tensor,
) -> Tensor:  # fmt: skip
    """Write turned keys, and values, at `places`; return turned queries [t, h, d]. A row's heads must be contiguous."""
    rows, heads, size = q_thd.shape
    out = torch.empty((rows, heads, size), dtype=q_thd.dtype, device=q_thd.device)
    grid = (rows, heads + 2 * k_thd.shape[1])
    _turn_and_store[grid](
        q_thd, k_thd, v_thd, q_thd.stride(0), k_thd.stride(0), v_thd.stride(0), cos_td, sin_td, places_t, out,
        keys_hpd, values_hpd, keys_hpd.stride(0), HEADS=heads, KV=k_thd.shape[1], D=size, num_warps=1,
    )  # fmt: skip
    return out


def attend(
    q_thd: Tensor, keys_hpd: Tensor, values_hpd: Tensor, *, table_tw: Tensor, lengths_t: Tensor, block_size: int
) -> Tensor:
    """Return attention [t, h, d] of one query a row over its first `lengths` positions, at least one."""
    rows, heads, size = q_thd.shape
    kv = keys_hpd.shape[0]
    cut, group = parts(rows, kv), heads // kv
    part_out = torch.empty((rows, heads, cut, size), dtype=torch.float32, device=q_thd.device)
    part_best, part_sum = (torch.empty_like(part_out[..., 0]) for _ in range(2))
    padded = max(16, 1 << (group - 1).bit_length())  # a matrix unit's least
    _attend_part[(rows, kv, cut)](
        q_thd, keys_hpd, values_hpd, table_tw, lengths_t, part_out, part_best, part_sum, table_tw.stride(0),
        lengths_t.stride(0), keys_hpd.stride(0), size**-0.5, KV=kv, GROUP=group, PADDED=padded, D=size,
        SIZE=block_size, PARTS=cut, TILE=_TILE, num_warps=4,
    )  # fmt: skip
    out = torch.empty_like(q_thd)
    _combine[(rows * heads,)](part_out, part_best, part_sum, out, D=size, PARTS=cut, num_warps=4)
    return out


def gate(first_btf: Tensor, second_btf: Tensor) -> Tensor:
    """Return silu(first) x second, for halves of one product."""
    width = first_btf.shape[-1]
    first, second = first_btf.flatten(0, -2), second_btf.flatten(0, -2)
    out = torch.empty(first.shape, dtype=first.dtype, device=first.device)
    _gate[(first.shape[0], triton.cdiv(width, 1024))](
        first, second, out, first.stride(0), second.stride(0), width, TILE=1024
    )
    return out.view(first_btf.shape)
