"""A stage of a pipeline: a model from which all other stages are taken out, names unchanged."""

from typing import Any

from torch import Tensor, nn

from herd.model.transformer import Transformer


class Through(nn.Module):
    """Stands where another stage has its part."""

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """Return what came."""
        return x


def keep_stage(model: Transformer, layers: range, *, first: bool, last: bool) -> None:
    """Take out of a model what other stages have."""
    for i in range(len(model.layers)):
        if i not in layers:
            model.layers[i] = Through()
    gone = ([] if first else ["tok_embeddings"]) + ([] if last else ["norm", "output"])
    for name in gone:
        setattr(model, name, Through())
