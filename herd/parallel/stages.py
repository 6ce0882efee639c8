"""Stages of a pipeline: which layers each has, and a model from which all others are taken out, names unchanged."""

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from herd.model.transformer import Transformer
from herd.parallel.config import ParallelConfig


class Through(nn.Module):
    """Stands where another stage has its part."""

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """Return what came."""
        return x


def layers_of(n_layers: int, stages: int) -> list[range]:
    """Return the layers of each stage: as even as can be, the first and the last one having the fewest.

    They have the embedding and the head besides (section 3.3.2 takes a layer from each of the two).
    """
    base, more = divmod(n_layers, stages)
    middle_first = sorted(range(stages), key=lambda stage: (stage in (0, stages - 1), stage))
    sizes = [base + (stage in middle_first[:more]) for stage in range(stages)]
    starts = [sum(sizes[:stage]) for stage in range(stages + 1)]
    return [range(start, end) for start, end in pairwise(starts)]


def stages_of(config: ParallelConfig, rank: int) -> list[int]:
    """Return the stages of a rank: one; every pp-th (interleaved); or one from each end (V, arXiv:2401.10241)."""
    if config.stages == config.pp:
        return [rank]
    second = 2 * config.pp - 1 - rank if config.schedule == "ZBVZeroBubble" else rank + config.pp
    return [rank, second]


def keep_stage(model: Transformer, layers: range, *, first: bool, last: bool) -> None:
    """Take out of a model what other stages have."""
    for i in range(len(model.layers)):
        if i not in layers:
            model.layers[i] = Through()
    gone = ([] if first else ["tok_embeddings"]) + ([] if last else ["norm", "output"])
    for name in gone:
        setattr(model, name, Through())
