"""Weights that are read tensor by tensor, wherever they come from: a module in memory, Hugging Face's files or Meta's.

Every source speaks herd's parameter names and herd's layout, which is Hugging Face's: RoPE turns halves of a head.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from herd.base.errors import DataError
from herd.model.config import ModelConfig

Shape = tuple[int, ...]


class Source(Protocol):
    """A whole model's weights, one tensor at a time. A tied output matrix is left out of `names`."""

    config: ModelConfig

    def names(self) -> list[str]:
        """Return herd's parameter names, in the order in which a model has them."""
        ...

    def shape(self, name: str) -> Shape:
        """Return a tensor's shape."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's number format as stored."""
        ...

    def read(self, name: str) -> Tensor:
        """Return the whole tensor, on the CPU, in herd's layout. Raises DataError."""
        ...


class WeightsSource:
    """Weights in memory, by herd's names."""

    def __init__(self, weights: Mapping[str, Tensor], config: ModelConfig) -> None:
        self.config = config
        self._weights = weights

    def names(self) -> list[str]:
        return [name for name in expected_shapes(self.config) if name in self._weights]

    def shape(self, name: str) -> Shape:
        return tuple(self._weights[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._weights[name].dtype

    def read(self, name: str) -> Tensor:
        return self._weights[name].detach().to("cpu")


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return the shape of every parameter that a config asks for, by herd's names, the tied output left out."""
    dim, head = config.dim, config.head_size
    shapes: dict[str, Shape] = {"tok_embeddings.weight": (config.vocab_size, dim)}
    for layer in range(config.n_layers):
        block: dict[str, Shape] = {
            "attention_norm": (dim,),
            "attention.wq": (config.n_heads * head, dim),
            "attention.wk": (config.n_kv_heads * head, dim),
            "attention.wv": (config.n_kv_heads * head, dim),
            "attention.wo": (dim, config.n_heads * head),
            "ffn_norm": (dim,),
            "feed_forward.w1": (config.ffn_hidden, dim),
            "feed_forward.w2": (dim, config.ffn_hidden),
            "feed_forward.w3": (config.ffn_hidden, dim),
        }
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    shapes["norm.weight"] = (dim,)
    if not config.tie_embeddings:
        shapes["output.weight"] = (config.vocab_size, dim)
    return shapes


def check_tensors(found: Mapping[str, Shape], wanted: Mapping[str, Shape], *, where: Path, config_name: str) -> None:
    """Compare tensors in files with those that the config asks for, under the files' own names.

    Raises DataError naming missing, surplus and misshapen ones.
    """
    missing, surplus = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or surplus:
        more = "" if max(len(missing), len(surplus)) <= 3 else f" (of {len(missing)} and {len(surplus)})"
        raise DataError(f"{where}: missing tensors {missing[:3]}, surplus tensors {surplus[:3]}{more}")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise DataError(f"{where}: {name} is {list(found[name])}, {config_name} says {list(shape)}")
