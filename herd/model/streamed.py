"""A forward pass over weights that need not fit in memory: one layer is read, used and let go.

It is the model's own blocks with their weights put in from a `Source`, so there is no second definition of anything.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from herd.model.attention import Step
from herd.model.norm import RMSNorm
from herd.model.quant import replace_linears, stored_plan
from herd.model.rope import inverse_frequencies, rotation_table, turning
from herd.model.source import Source
from herd.model.transformer import Block

_PACKED = ("_packed", "_scale", "_shape")


@torch.inference_mode()
def streamed_logits(
    source: Source,
    tokens_bt: Tensor,
    *,
    dtype: torch.dtype,
    look: Callable[[str, Tensor], None] = lambda name, tensor: None,
) -> Tensor:
    """Return the float32 scores [b, t, vocab] of every place, computed in `dtype`; `look` sees each tensor as read.

    At most one layer, or the embedding, is in memory. Raises DataError on a damaged file.
    """

    def take(name: str) -> Tensor:
        tensor = source.read(name)
        look(name, tensor)
        return tensor if name.endswith(_PACKED) else tensor.to(dtype)

    config = source.config
    embedding = take("tok_embeddings.weight")
    x_bte = F.embedding(tokens_bt, embedding)
    if not config.tie_embeddings:
        del embedding
    positions = torch.arange(tokens_bt.shape[1]).expand_as(tokens_bt)
    table = turning(*rotation_table(inverse_frequencies(config), positions), x_bte.dtype)
    step = Step(table, (None,), None)
    plan, names = stored_plan(source), source.names()
    for layer in range(config.n_layers):
        place = f"layers.{layer}."
        with torch.device("meta"):
            block = Block(config, layer)
        replace_linears(block, {n.removeprefix(place): p for n, p in plan.items() if n.startswith(place)})
        own = [name for name in names if name.startswith(place)]
        block.load_state_dict({name.removeprefix(place): take(name) for name in own}, assign=True)
        x_bte = block(x_bte, step)
    norm = RMSNorm(config.dim, eps=config.norm_eps)
    norm.weight = nn.Parameter(take("norm.weight"), requires_grad=False)
    output = embedding if config.tie_embeddings else take("output.weight")
    return F.linear(norm(x_bte), output).float()
