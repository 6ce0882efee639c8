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
from herd.model.packing import Packing

Shape = tuple[int, ...]


class Source(Protocol):
    """A whole model's weights, one tensor at a time. A tied output matrix is left out of `names`.

    A quantised matrix is three tensors: `weight_packed`, `weight_scale` and `weight_shape` instead of `weight`.
    """

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


def expected_shapes(config: ModelConfig, plan: Mapping[str, Packing] | None = None) -> dict[str, Shape]:
    """Return the shape of every parameter that a config asks for, by herd's names, the tied output left out.

    plan: the linear layers that are quantised.
    """
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
    return _with_packed(shapes, plan) if plan else shapes


def _with_packed(shapes: Mapping[str, Shape], plan: Mapping[str, Packing]) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for name, shape in shapes.items():
        owner = name.removesuffix(".weight")
        if owner in plan:
            found |= {f"{owner}.{part}": kind[0] for part, kind in plan[owner].tensors(shape).items()}
        else:
            found[name] = shape
    return found


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the shapes [n, k] of the linear layers by name: all matrices but the embedding, a tied output left out."""
    shapes = {name.removesuffix(".weight"): shape for name, shape in expected_shapes(config).items()}
    return {name: (s[0], s[1]) for name, s in shapes.items() if len(s) == 2 and name != "tok_embeddings"}


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
