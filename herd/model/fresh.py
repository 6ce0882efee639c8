"""Fresh weights, drawn in a model's order: into a whole model, or tensor by tensor as a source for parts of one."""

import torch
from torch import Tensor

from herd.model.config import ModelConfig
from herd.model.source import Shape, expected_shapes


def draw(name: str, weight: Tensor, config: ModelConfig, generator: torch.Generator) -> None:
    """Fill a parameter: norms with 1, matrices normal with std fan_in^-1/2, residual outputs / sqrt(2 n_layers).

    The usual std of 0.02 is fan_in^-1/2 at a width of 2,500; on a width of 256 it leaves the scores of attention
    near zero for hundreds of steps (docs/log.md). Embeddings have std 1, or that of the output when tied to it.
    """
    if weight.dim() < 2:
        weight.fill_(1.0)
        return
    std = weight.shape[1] ** -0.5
    if name.endswith(("wo.weight", "w2.weight")):
        std *= (2 * config.n_layers) ** -0.5
    if name == "tok_embeddings.weight" and not config.tie_embeddings:
        std = 1.0
    weight.normal_(0.0, std, generator=generator)


class FreshWeights:
    """A source (herd/model/source.py) of fresh weights: the same bits as `Transformer.initialise` with that seed.

    They are drawn one after the other, so they have to be read in the order of `names`, once.
    """

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.config = config
        self._shapes = expected_shapes(config)
        self._generator = torch.Generator().manual_seed(seed)
        self._left = list(self._shapes)[::-1]

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def read(self, name: str) -> Tensor:
        assert self._left, "fresh weights are read once"
        assert name == self._left.pop(), f"fresh weights are read in order, and {name} isn't next"
        weight = torch.empty(self._shapes[name])
        draw(name, weight, self.config, self._generator)
        return weight
