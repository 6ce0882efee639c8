"""Seconds of one micro-batch on one rank: matrix products by the card's rate, everything else by its memory. No torch.

A product takes as long as its FLOPs at the sustained share of the peak or its bytes at that of the bandwidth, whichever
is longer; what is between products takes its bytes. Forward once, backward twice, recomputed parts once more.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from herd.plan.cards import Card
from herd.plan.run import Run, products


@dataclass(frozen=True)
class Efficiency:
    """Shares of a card's rates that a training run sustains, and what a kernel costs beside its work.

    product: of the peak, in matrix products, with all that a roofline doesn't see (clocks under load, tails of
    kernels, communication beside them, the slowest of many cards). It is the one figure that is calibrated, on one
    published row: herd/plan/published.py. The others are stated.
    """

    product: float
    bandwidth: float = 0.85
    link: float = 0.8
    kernel: float = 4e-6


@dataclass(frozen=True)
class Work:
    """Seconds of a micro-batch on a pipeline rank by part, and how they split between forward and backward."""

    parts: Mapping[str, float]
    forward: float
    inputs: float

    @property
    def seconds(self) -> float:
        """Seconds in all."""
        return sum(self.parts.values())

    @property
    def backward(self) -> float:
        """Seconds of the backward pass, with what is recomputed in it."""
        return self.seconds - self.forward


@dataclass(frozen=True)
class _Cost:
    """Seconds forward, those again in the backward pass, and backward proper for inputs and for weights."""

    part: str
    forward: float
    again: float
    backward: float


def work(run: Run, card: Card, efficiency: Efficiency, rank: int) -> Work:
    """Return the computing of one micro-batch on a pipeline rank."""
    costs = [*_layer(run, card, efficiency, run.layers(rank))]
    if run.has_head(rank):
        costs += _head(run, card, efficiency)
    parts: dict[str, float] = {}
    for cost in costs:
        parts[cost.part] = parts.get(cost.part, 0.0) + cost.forward + cost.backward
        if cost.again:
            parts["recomputed"] = parts.get("recomputed", 0.0) + cost.again
    forward = sum(cost.forward for cost in costs)
    inputs = sum(cost.again + cost.backward * (0.5 if cost.part == "products" else 1.0) for cost in costs)
    return Work(parts, forward, inputs)


def _layer(run: Run, card: Card, efficiency: Efficiency, layers: int) -> Iterator[_Cost]:
    how, n = run.parallel.recompute, run.positions
    for name, (inputs, outputs) in rank_products(run).items():
        once = layers * _product(card, efficiency, n, inputs, outputs, float8=run.parallel.float8)
        # recomputing ends with what the backward pass needs last: the input of w2
        again = (how == "full" and name != "w2") or (how == "selective" and name not in run.trainer.kept)
        yield _Cost("products", once, once * again, 2 * once)
    once = layers * (attention_flops(run) / (card.bf16 * card.attention * card.clock) + efficiency.kernel)
    # the scores are computed again from queries and keys: five products backward for two forward
    yield _Cost("attention", once, once * (how == "full"), 2.5 * once)
    rate = card.bandwidth * efficiency.bandwidth
    forward, backward, kernels = _between(run)
    once = layers * (n * forward / rate + kernels * efficiency.kernel)
    yield _Cost("between", once, once * (how != "none"), layers * (n * backward / rate + kernels * efficiency.kernel))


def rank_products(run: Run) -> Mapping[str, tuple[float, float]]:
    """Return (inputs, outputs) of a block's products on one tensor parallel rank."""
    tp = run.parallel.tp
    return {
        name: (inputs / tp, outputs) if name in ("wo", "w2") else (inputs, outputs / tp)
        for name, (inputs, outputs) in products(run.config).items()
    }


def product_flops(run: Run, rank: int) -> float:
    """Return FLOPs of matrix products of a micro-batch on a pipeline rank: forward, backward, recomputed, head."""
    n, again = 2 * run.positions, {"none": 0.0, "selective": 0.0, "full": 1.0}[run.parallel.recompute]
    total = 0.0
    for name, (inputs, outputs) in rank_products(run).items():
        total += run.layers(rank) * n * inputs * outputs * (3 + again * (name != "w2"))
    scores = n * run.config.dim * run.config.vocab_size / run.parallel.tp
    return total + ((3 + _head_again(run)) * scores if run.has_head(rank) else 0.0)


def _head_again(run: Run) -> int:
    """Return how often scores are computed again: in pieces they are, in each half of a backward pass of two."""
    if run.trainer.score_bytes is not None or run.parallel.ranks == 1:
        return 0
    return 2 if run.parallel.schedule == "ZBVZeroBubble" else 1


def attention_flops(run: Run) -> float:
    """Return FLOPs of one layer's attention forward on a rank: the causal half, or the whole square under a mask."""
    width = run.config.n_heads * run.config.head_size / run.parallel.tp
    return 4 * run.positions * width * run.row_length / (1 if run.masked else 2)


def _product(
    card: Card, efficiency: Efficiency, rows: float, inputs: float, outputs: float, *, float8: bool = False
) -> float:
    """Return seconds of rows x inputs x outputs."""
    rate, extra, size = card.bf16, 0.0, 2
    if float8 and card.float8:
        # inputs and weights are scaled and cast on the way: their greatest value (2 bytes), the cast (2 + 1)
        rate, extra, size = card.float8, 5 * (rows * inputs + inputs * outputs), 1
    flops = 2 * rows * inputs * outputs / (rate * efficiency.product * card.clock)
    moved = size * (rows * inputs + inputs * outputs) + 2 * rows * outputs
    bandwidth = card.bandwidth * efficiency.bandwidth
    return max(flops, moved / bandwidth) + extra / bandwidth + efficiency.kernel


def _between(run: Run) -> tuple[float, float, int]:
    """Return bytes a position that norms, residuals, rotation and the gate move forward and backward, and kernels."""
    config, tp = run.config, run.parallel.tp
    dim, ffn = config.dim / tp, config.ffn_hidden / tp
    turned = (config.n_heads + config.n_kv_heads) * config.head_size / tp
    if run.parallel.compile:
        # a kernel for each chain: residual and norm, rotation, gate
        return 2 * 8 * dim + 4 * turned + 6 * ffn, 2 * 12 * dim + 4 * turned + 10 * ffn, 5
    # not fused: a norm goes through float32 copies, seven kernels forward, and so does rotation
    norm, turn, more = (4, 12, 0) if run.trainer.fused else (34, 20, 20)
    forward = 2 * (norm + 6) * dim + turn * turned + 10 * ffn
    return forward, 2 * (2 * norm + 6) * dim + turn * turned + 16 * ffn, 14 + more


def _head(run: Run, card: Card, efficiency: Efficiency) -> Iterator[_Cost]:
    scores = run.config.vocab_size / run.parallel.tp
    once = _product(card, efficiency, run.positions, run.config.dim, scores)
    yield _Cost("head, loss", once, once * _head_again(run), 2 * once)
    moved = 22 * run.positions * scores / (card.bandwidth * efficiency.bandwidth)
    yield _Cost("head, loss", moved / 2, 0.0, moved / 2)


def optimizer_seconds(run: Run, card: Card, efficiency: Efficiency, rank: int) -> float:
    """Return seconds of AdamW over masters, moments and gradients, after their norm and its scale."""
    own = run.parameters(rank) / run.parallel.tp / run.shards
    return 40 * own / (card.bandwidth * efficiency.bandwidth) + 8 * efficiency.kernel
