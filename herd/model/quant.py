"""Quantised weights: int8 or int4 in groups along the inputs, in place of the linear layers of a model.

What is computed stays in the model's own number format: weights only are quantised. Which matrices are, and how, is
decided in one place, `planned`.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from herd.base.errors import ConfigError, DataError
from herd.model.config import ModelConfig
from herd.model.packing import Packing, dequantised, quantised, row_pieces, unpack
from herd.model.source import Source, linear_shapes
from herd.model.transformer import Transformer

NumberFormat = Literal["fp32", "bf16", "int8", "int4"]
QuantFormat = Literal["int8", "int4"]
FORMATS: dict[str, NumberFormat] = {name: name for name in get_args(NumberFormat)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

_GROUPS = {8: (128, 64, 32, 48, 16), 4: (32, 48, 16)}
_BITS = {"int8": 8, "int4": 4}


class QuantLinear(nn.Module):
    """A linear layer without bias whose weight is stored as small integers and scales (see `packing`).

    Loading a state with a float `weight` [n, k] quantises it. Runs on any device, dequantising some rows at a time.
    """

    weight_packed: Tensor  # int32 [n, k*bits/32]
    weight_scale: Tensor  # bfloat16 [n, k/group]

    def __init__(
        self, in_features: int, out_features: int, packing: Packing, *, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group = packing.bits, packing.group
        for name, (shape, dtype) in packing.tensors((out_features, in_features)).items():
            if name != "weight_shape":
                self.register_buffer(name, torch.empty(shape, dtype=dtype, device=device))
        self.register_load_state_dict_pre_hook(_take_floats)

    @property
    def packing(self) -> Packing:
        """How the weight is stored."""
        return Packing(self.bits, self.group)

    def levels(self) -> Tensor:
        """Return the signed integers, int8 [n, k]: -127 to 127, or -8 to 7."""
        return unpack(self.weight_packed, self.bits)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """Return the weight [n, k]: levels times scales."""
        return dequantised(self.weight_packed, self.weight_scale, self.packing, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., n] for [..., k]."""
        out = x.new_empty(*x.shape[:-1], self.out_features)
        for rows in row_pieces(self.out_features, self.in_features):
            weight = dequantised(self.weight_packed[rows], self.weight_scale[rows], self.packing, x.dtype)
            out[..., rows] = F.linear(x, weight)
        return out

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group={self.group}"


def _take_floats(module: QuantLinear, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Put words and scales in the place of a float weight in a state that is being loaded."""
    state.pop(f"{prefix}weight_shape", None)  # of files; whoever opened them has compared it
    weight = state.pop(f"{prefix}weight", None)
    if weight is None:
        return
    if tuple(weight.shape) != (module.out_features, module.in_features):
        raise DataError(f"{prefix}weight is {list(weight.shape)}, not [{module.out_features}, {module.in_features}]")
    try:
        words, scale = quantised(weight, module.packing)
    except DataError as error:
        raise DataError(f"{prefix}weight {error}") from None
    state |= {f"{prefix}weight_packed": words, f"{prefix}weight_scale": scale}


def number_format(name: str) -> NumberFormat:
    """Return a number format by its name. Raises ConfigError."""
    if name not in FORMATS:
        raise ConfigError(f"number format {name!r} is not one of {', '.join(FORMATS)}")
    return FORMATS[name]


def quant_format(name: str) -> QuantFormat:
    """Return a format of quantised weights by its name. Raises ConfigError."""
    if name not in _BITS:
        raise ConfigError(f"format of quantised weights {name!r} is not one of {', '.join(_BITS)}")
    return "int8" if name == "int8" else "int4"


def planned(config: ModelConfig, form: QuantFormat, *, layers: bool = True, head: bool = True) -> dict[str, Packing]:
    """Return which linear layers a format quantises, by name, and how: those of the layers, and the output head.

    The head is int8 whatever the format, because its error goes straight into the scores, with no later layer to
    even it out. A layer whose width no group divides is left out.
    """
    wanted = [(name, k, _BITS[form]) for name, (_, k) in linear_shapes(config).items() if layers and name != "output"]
    wanted += [("output", config.dim, 8)] if head else []
    plan = {}
    for name, k, bits in wanted:
        if group := next((group for group in _GROUPS[bits] if k % group == 0), None):
            plan[name] = Packing(bits, group)
    return plan


def stored_plan(source: Source) -> dict[str, Packing]:
    """Return which linear layers lie quantised in a source, and how; none in one of float weights."""
    names, plan = set(source.names()), {}
    for name, (_, k) in linear_shapes(source.config).items():
        if f"{name}.weight_packed" in names:
            words, groups = (source.shape(f"{name}.weight_{part}")[1] for part in ("packed", "scale"))
            plan[name] = Packing(32 * words // k, k // groups)
    return plan


def replace_linears(model: nn.Module, plan: Mapping[str, Packing]) -> None:
    """Put quantised layers, still empty, in the place of linear ones, on the same device."""
    for name, packing in plan.items():
        old = model.get_submodule(name)
        assert isinstance(old, nn.Linear), name
        model.set_submodule(name, QuantLinear(old.in_features, old.out_features, packing, device=old.weight.device))


def quantise(model: Transformer, form: QuantFormat) -> Transformer:
    """Quantise a model in place, one matrix after the other, and return it. Raises DataError naming a bad matrix.

    The embedding and the norms stay; a tied head becomes a quantised copy of the embedding.
    """
    for name, packing in planned(model.config, form).items():
        weight = model.get_submodule(name).weight
        replace_linears(model, {name: packing})
        try:
            model.get_submodule(name).load_state_dict({"weight": weight})
        except DataError as error:
            raise DataError(f"{name}.{error}") from None
    return model
