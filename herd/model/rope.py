"""Rotary position embedding with Llama 3.1's frequency scaling (arXiv:2407.21783, section 3.2).

Halves convention (as Hugging Face stores weights): the pair of dimension i is i + head_size / 2.
"""

import math
from typing import Any

import torch
from torch import Tensor

from herd.model.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Return the [head_size / 2] angular steps per position, scaled as in Llama 3.1 when the config asks."""
    size = config.head_size
    # in float32 like Meta's code and transformers: an exact value would differ from theirs 100,000 positions on
    steps = torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size
    frequencies = 1.0 / config.rope_theta**steps
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelength = 2 * math.pi / frequencies
    original = scaling.original_max_position_embeddings
    # 1 for short wavelengths (kept), 0 for long ones (stretched by factor), a ramp between
    keep = (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def rotation_table(frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each [*positions.shape, head_size], for integer positions."""
    angles = positions.float().unsqueeze(-1) * frequencies.to(positions.device)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def turning(cos_btd: Tensor, sin_btd: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a table as `rotate` takes it, each [b, 1, t, head_size], made once for all layers of a pass.

    The sine has the sign that the half has which it is added to.
    """
    first, second = sin_btd.chunk(2, -1)
    signed = torch.cat((-first, second), -1)
    return cos_btd.unsqueeze(1).to(dtype), signed.unsqueeze(1).to(dtype)


def rotate(x_bhtd: Tensor, cos_b1td: Tensor, signed_b1td: Tensor) -> Tensor:
    """Turn queries or keys [b, h, t, head_size] by the angles of a `turning` table of their dtype."""
    return _Rotation.apply(x_bhtd, cos_b1td, signed_b1td)


class _Rotation(torch.autograd.Function):
    # the gradient of a turn is the turn back: it doesn't keep its input

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, signed: Tensor) -> Tensor:
        ctx.save_for_backward(cos, signed)
        return _turn(x, cos, signed, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, signed = ctx.saved_tensors
        return _turn(grads[0], cos, signed, -1), None, None


def _turn(x: Tensor, cos: Tensor, signed: Tensor, way: int) -> Tensor:
    # whole heads, beside themselves with their halves swapped: a processor works on halves of 16 numbers three times
    # as slowly
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), signed, value=way)
