"""The Llama 3.1 decoder: RMSNorm, grouped-query attention, SwiGLU (arXiv:2407.21783, section 3.2).

    tokens [b, t] -> embedding -> n_layers x (x + attention(norm x); x + ffn(norm x)) -> norm -> hidden [b, t, e]

The head is a separate call, `logits(hidden)`: chunked losses, distillation, reward heads and last-token sampling
each take only the rows they need.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from herd.model.attention import Attention, Bias, Reach, Step, bias_of, rows_bias
from herd.model.cache import CacheView, Pass
from herd.model.config import ModelConfig
from herd.model.fresh import draw
from herd.model.linear import project
from herd.model.norm import RMSNorm
from herd.model.rope import inverse_frequencies, rotation_table, turning


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.w2 = nn.Linear(config.ffn_hidden, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.joined: Callable[[Tensor], Tensor] | None = None  # see herd/model/together.py

    def forward(self, x_bte: Tensor) -> Tensor:
        """Return [b, t, e]."""
        if self.joined is not None and not torch.is_grad_enabled():
            return self.w2(self.joined(x_bte))
        first, second = project(x_bte, self.w1, self.w3)
        return project(F.silu(first) * second, self.w2)[0]


class Block(nn.Module):
    """One layer with pre-normalisation and two residual connections."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x_bte: Tensor, step: Step) -> Tensor:
        """Return [b, t, e]."""
        x_bte = x_bte + self.attention(self.attention_norm(x_bte), step)
        return x_bte + self.feed_forward(self.ffn_norm(x_bte))


class Transformer(nn.Module):
    """The one model definition: training passes `documents`, the engine passes `cache`, nothing else differs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.output.weight = self.tok_embeddings.weight
        # the table is computed, not learned: a plain attribute, so that no checkpoint carries it
        self.frequencies = inverse_frequencies(config)

    def forward(
        self,
        tokens_bt: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | Reach | None = None,
        cache: CacheView | Pass | None = None,
    ) -> Tensor:
        """Return hidden states [b, t, e].

        positions [b, t]: place of each token in its own document; default 0, 1, ... (after the cached ones).
        documents [b, t]: equal numbers, which stand together, attend to each other; None: each row is one document;
        or who sees whom, which brings attention of its own.
        cache: then tokens are [1, t], the new ones of all its rows, one row after the other.
        """
        if positions is None:
            plain = torch.arange(tokens_bt.shape[1], device=tokens_bt.device).expand_as(tokens_bt)
            positions = plain if cache is None else cache.positions
        x_bte = self.tok_embeddings(tokens_bt)
        biases: list[Bias] = [rows_bias(documents, x_bte.dtype) if isinstance(documents, Tensor) else documents]
        if cache is not None:
            groups = cache.groups if isinstance(cache, CacheView) else []
            biases = [None if group.mask is None else bias_of(group.mask, x_bte.dtype) for group in groups]
        table = rotation_table(self.frequencies, positions)
        step = Step(table if isinstance(cache, Pass) else turning(*table, x_bte.dtype), tuple(biases), cache)
        for layer in self.layers:
            x_bte = layer(x_bte, step)
        return self.norm(x_bte)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return scores [..., vocab_size] for hidden states [..., e]."""
        return self.output(hidden)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights (herd/model/fresh.py), one parameter after the other."""
        for name, parameter in self.named_parameters():
            draw(name, parameter, self.config, generator)
