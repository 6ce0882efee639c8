"""Matrix products of training in float8, by torchao: scaled by rows, weights and gradients stay as they were.

Only where it is possible: linear layers of blocks whose widths are multiples of 16. The head stays in bfloat16.
"""

from dataclasses import replace

import torch
from torch import nn

from herd.base.errors import ConfigError
from herd.model.transformer import Transformer

_FIRST = (8, 9)  # compute capability of the first cards that multiply float8


def to_float8(model: Transformer, device: torch.device) -> None:
    """Replace a model's linear layers, on the meta device. On a processor float8 is emulated, slowly, to try it out.

    Raises ConfigError without torchao, and on a card that has no float8.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # ty: ignore[import-not-found]
    except ImportError:
        raise ConfigError("parallel.float8 needs torchao: pip install 'herd[float8]'") from None
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < _FIRST:
        raise ConfigError(f"parallel.float8: this card (capability {found[0]}.{found[1]}) has no float8; leave it out")
    config = replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=device.type != "cuda")
    convert_to_float8_training(model.layers, config=config, module_filter_fn=_fits)


def _fits(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and not (module.in_features % 16 or module.out_features % 16)
