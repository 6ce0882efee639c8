"""Siblings cut from a flagship: which layers, channels, heads and neurons stay, and the smaller model made of them.

    flagship, batches -> measure -> Importance -> choose -> Cut -> prune -> sibling

One pass over a little text says what each part does: width by activations (Minitron, arXiv:2407.14679, section 2.2),
depth by block influence (ShortGPT, arXiv:2403.03853). What stays keeps its order. Nothing is learned here: the
sibling is worth its training (`Distill`), which starts from it.

Shape legend: n tokens, e channels, h heads, d head size, f neurons, l layers.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from herd.base.errors import ConfigError, DataError
from herd.distill.config import check_cut
from herd.model.attention import Attention
from herd.model.config import ModelConfig
from herd.model.transformer import Block, Transformer
from herd.train.batch import Batch


@dataclass(frozen=True)
class Importance:
    """Means over a calibration text's tokens.

    layers_l      block influence: 1 - cosine of a layer's input and output
    channels_e    |output| of a norm, over all norms
    heads_lh      norm of what a head adds to the stream, through its part of `wo`
    neurons_lf    norm of what a neuron adds to the stream, through its column of `w2`
    energy_se     square of a norm's input over its mean square, 1 on average; each layer's two norms, then the last
    """

    layers_l: Tensor
    channels_e: Tensor
    heads_lh: Tensor
    neurons_lf: Tensor
    energy_se: Tensor


@dataclass(frozen=True)
class Cut:
    """Indices that stay, ascending; heads and neurons by the flagship's layer, for each of the layers kept."""

    layers: tuple[int, ...]
    channels: Tensor
    kv_heads: tuple[Tensor, ...]
    heads: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]


@torch.no_grad()
def measure(flagship: Transformer, batches: Iterable[Batch]) -> Importance:
    """Run the flagship over batches, padding left out, and return what its parts did. Raises DataError without any."""
    sums: dict[str, Tensor] = {}
    tokens = 0
    device = next(flagship.parameters()).device
    flagship.eval()
    for batch in batches:
        batch = batch.to(device)
        real = (batch.documents >= 0).flatten()
        tokens += int(real.sum())
        with _watched(flagship, partial(_add, sums, real)):
            flagship(batch.tokens, positions=batch.positions, documents=batch.documents)
    if not tokens:
        raise DataError("pruning measures a flagship on text, and there is none: the corpus is smaller than one batch")
    n_layers = flagship.config.n_layers
    norms = [f"{norm}/{n}" for n in range(n_layers) for norm in ("attention_norm", "ffn_norm")] + ["norm"]

    def stacked(names: Iterable[str]) -> Tensor:
        return torch.stack([sums[name] for name in names]) / tokens

    return Importance(
        layers_l=stacked(f"layer/{n}" for n in range(n_layers)),
        channels_e=stacked(f"channels/{name}" for name in norms).mean(0),
        heads_lh=stacked(f"heads/{n}" for n in range(n_layers)),
        neurons_lf=stacked(f"neurons/{n}" for n in range(n_layers)),
        energy_se=stacked(f"energy/{name}" for name in norms),
    )


def _add(sums: dict[str, Tensor], real: Tensor, name: str, values: Tensor) -> None:
    """Add per-token values [b, t, ...] to the sum of that name, tokens that aren't padding only."""
    total = values.flatten(0, 1)[real].sum(0).cpu().double()
    sums[name] = sums[name] + total if name in sums else total


@contextmanager
def _watched(model: Transformer, add: Callable[[str, Tensor], None]) -> Generator[None]:
    """Call `add(name, values)` with what the parts of a model do in each forward pass within the block."""

    def normed(name: str, _: nn.Module, args: Any, out: Tensor) -> None:
        x = args[0].float()
        add(f"channels/{name}", out.float().abs())
        add(f"energy/{name}", x.square() / x.square().mean(-1, keepdim=True).clamp(min=1e-30))

    def block(n: int, _: nn.Module, args: Any, out: Tensor) -> None:
        add(f"layer/{n}", 1 - F.cosine_similarity(args[0].float(), out.float(), dim=-1))

    def heads(n: int, attention: Attention, _: nn.Module, args: Any) -> None:
        out_bthd = args[0].float().unflatten(-1, (-1, attention.head_size))
        wo_ehd = attention.wo.weight.float().unflatten(-1, (-1, attention.head_size))
        # |W o|^2 = o W'W o: a head's d x d instead of every token's e channels
        gram_hdd = torch.einsum("ehd,ehc->hdc", wo_ehd, wo_ehd)
        squares = torch.einsum("bthd,hdc,bthc->bth", out_bthd, gram_hdd, out_bthd)
        add(f"heads/{n}", squares.clamp(min=0).sqrt())

    def neurons(n: int, w2: nn.Linear, _: nn.Module, args: Any) -> None:
        add(f"neurons/{n}", args[0].float().abs() * w2.weight.float().square().sum(0).sqrt())

    handles = [model.norm.register_forward_hook(partial(normed, "norm"))]
    for n, layer in enumerate(model.layers):
        assert isinstance(layer, Block)
        attention, w2 = layer.attention, layer.feed_forward.w2
        handles.append(layer.register_forward_hook(partial(block, n)))
        for name, norm in (("attention_norm", layer.attention_norm), ("ffn_norm", layer.ffn_norm)):
            handles.append(norm.register_forward_hook(partial(normed, f"{name}/{n}")))
        handles.append(attention.wo.register_forward_pre_hook(partial(heads, n, attention)))
        handles.append(w2.register_forward_pre_hook(partial(neurons, n, w2)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def choose(importance: Importance, flagship: ModelConfig, sibling: ModelConfig) -> Cut:
    """Choose what stays: whole KV groups by the heads they would keep, then the query heads within each."""
    layers = _most(importance.layers_l, sibling.n_layers)
    group, most = (c.n_heads // c.n_kv_heads for c in (sibling, flagship))
    kv_heads, heads = [], []
    for scores in importance.heads_lh[layers].unflatten(-1, (-1, most)):
        groups = _most(scores.topk(group).values.sum(-1), sibling.n_kv_heads)
        kv_heads.append(groups)
        heads.append(torch.cat([g * most + _most(scores[g], group) for g in groups]))
    return Cut(
        layers=tuple(layers.tolist()),
        channels=_most(importance.channels_e, sibling.dim),
        kv_heads=tuple(kv_heads),
        heads=tuple(heads),
        neurons=tuple(_most(scores, sibling.ffn_hidden) for scores in importance.neurons_lf[layers]),
    )


def _most(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` highest scores, ascending."""
    return scores.topk(count).indices.sort().values


@torch.no_grad()
def prune(flagship: Transformer, config: ModelConfig, importance: Importance) -> tuple[Transformer, Cut]:
    """Return a float32 model of shape `config` made of the flagship's most important parts, and what was kept.

    The root mean square of the channels kept isn't that of all: each norm's weight is scaled by the ratio of the two
    over the calibration text, so that what it hands on has the size that the next matrix has learned to expect (the
    meadow's flagship cut from dim 144 to 112: 0.623 held-out bits per byte with it, 0.634 without).

    Raises ConfigError on a shape that isn't within the flagship's.
    """
    check_cut(flagship.config, config)
    if config.vocab_size != flagship.config.vocab_size:
        raise ConfigError(
            f"the sibling can't be cut from the flagship (init: pruned): its vocabulary has {config.vocab_size} ids "
            f"and the flagship's {flagship.config.vocab_size}; give both one tokenizer"
        )
    cut = choose(importance, flagship.config, config)
    sibling = Transformer(config).to(next(flagship.parameters()).device)
    sibling.load_state_dict(_state(flagship, cut, _scales(importance, cut)))
    return sibling, cut


def _scales(importance: Importance, cut: Cut) -> Tensor:
    """Return [norms]: root mean square of the channels kept over that of all, exactly 1 where all are kept."""
    energy = importance.energy_se
    whole = len(cut.channels) == energy.shape[1]
    return torch.ones_like(energy[:, 0]) if whole else energy[:, cut.channels].mean(-1).sqrt()


def _state(flagship: Transformer, cut: Cut, scales_s: Tensor) -> dict[str, Tensor]:
    """Return the sibling's parameters by name: rows and columns of the flagship's."""
    own, channels, size = flagship.state_dict(), cut.channels, flagship.config.head_size
    state = {name: own[name][:, channels] for name in ("tok_embeddings.weight", "output.weight")}
    state["norm.weight"] = own["norm.weight"][channels] * scales_s[-1]
    for new, old in enumerate(cut.layers):
        queries, keys, neurons = _places(cut.heads[new], size), _places(cut.kv_heads[new], size), cut.neurons[new]
        kept = {
            "attention.wq": (queries, channels),
            "attention.wk": (keys, channels),
            "attention.wv": (keys, channels),
            "attention.wo": (channels, queries),
            "feed_forward.w1": (neurons, channels),
            "feed_forward.w2": (channels, neurons),
            "feed_forward.w3": (neurons, channels),
        }
        for name, (rows, columns) in kept.items():
            state[f"layers.{new}.{name}.weight"] = own[f"layers.{old}.{name}.weight"][rows][:, columns]
        for place, name in enumerate(("attention_norm", "ffn_norm")):
            weight = own[f"layers.{old}.{name}.weight"][channels]
            state[f"layers.{new}.{name}.weight"] = weight * scales_s[2 * old + place]
    return state


def _places(heads: Tensor, size: int) -> Tensor:
    """Return the rows of a projection that belong to these heads."""
    return (heads.unsqueeze(1) * size + torch.arange(size)).flatten()
