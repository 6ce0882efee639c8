"""Tensor parallel inference: each of `size` ranks holds a part of every layer (Megatron-LM, arXiv:1909.08053).

    wq wk wv w1 w3   by rows of the weight: a rank computes its own heads and its own part of the SwiGLU width
    wo w2            by columns: the ranks' results are summed, two sums a layer
    output           by rows: the scores of a rank's part of the vocabulary, then all of them are gathered
    embedding, norms whole on every rank; a tied output is a view of the embedding

Plain modules and collectives rather than DTensor: they can be captured in a CUDA graph, and cost no dispatch in Python.
A rank's model is an ordinary Transformer of fewer heads and a narrower SwiGLU, so its cache, runner and memory count
need nothing of their own.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig
from herd.model.source import Source
from herd.model.transformer import Block, Transformer

_BY_ROWS = ("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "output.weight")
_BY_COLUMNS = ("wo.weight", "w2.weight")


class SummedLinear(nn.Linear):
    """A linear layer of which each rank holds some columns."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the sum over ranks."""
        out = F.linear(input, self.weight)
        dist.all_reduce(out)
        return out


class GatheredLinear(nn.Linear):
    """A linear layer of which each rank holds some rows."""

    def forward(self, input: Tensor) -> Tensor:
        """Return all ranks' results side by side."""
        out = F.linear(input, self.weight).contiguous()
        parts = [torch.empty_like(out) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, out)
        return torch.cat(parts, -1)


def part_config(config: ModelConfig, size: int) -> ModelConfig:
    """Return the shape of one rank's part. Raises ConfigError where heads or widths can't be divided by `size`."""
    divided = {
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "ffn_hidden": config.ffn_hidden,
        "vocab_size": config.vocab_size,
    }
    if wrong := [f"{name} {value}" for name, value in divided.items() if value % size]:
        fits = max(n for n in range(1, size) if not any(value % n for value in divided.values()))
        raise ConfigError(f"tensor parallel over {size} ranks: {', '.join(wrong)} can't be divided; {fits} ranks can")
    parts = {name: value // size for name, value in divided.items() if name != "vocab_size"}
    return config.model_copy(update=parts | {"head_dim": config.head_size})


def part_of(name: str, tensor: Tensor, *, rank: int, size: int) -> Tensor:
    """Return what one rank holds of a parameter, by herd's names: a view where that is possible."""
    if name.endswith(_BY_ROWS):
        return tensor.chunk(size, 0)[rank]
    if name.endswith(_BY_COLUMNS):
        return tensor.chunk(size, 1)[rank]
    return tensor


def load_part(
    source: Source, *, rank: int, size: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Transformer:
    """Build one rank's model; beside its part, one whole tensor at a time is in memory. Raises ConfigError, DataError.

    The process group must be there when the model runs, not yet when it is loaded.
    """
    with torch.device("meta"):
        model = Transformer(part_config(source.config, size))
        for block in model.layers:
            assert isinstance(block, Block)
            attention, ffn = block.attention, block.feed_forward
            assert isinstance(attention.wo, nn.Linear)
            attention.wo = SummedLinear(*attention.wo.weight.shape[::-1], bias=False)
            ffn.w2 = SummedLinear(*ffn.w2.weight.shape[::-1], bias=False)
        model.output = GatheredLinear(source.config.dim, source.config.vocab_size // size, bias=False)
    state = {}
    for name in source.names():
        # a copy, for a view would keep the whole tensor
        state[name] = part_of(name, source.read(name), rank=rank, size=size).to(device, dtype, copy=True)
    if source.config.tie_embeddings:
        state["output.weight"] = part_of("output.weight", state["tok_embeddings.weight"], rank=rank, size=size)
    model.load_state_dict(state, assign=True)
    return model.eval()
