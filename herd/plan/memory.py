"""Memory of one rank in closed form, part by part, at the fullest moment of a step. No torch.

Bytes a parameter, float32 unless said otherwise: master 4, two moments 8, sharded gradient 4, gathered weight 2 (bf16),
gradient that waits to be reduced 4. Bytes a position are counted by what each operator keeps for its backward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from herd.plan.cards import GIB
from herd.plan.run import Run, block_parameters, products

# What is stated, not computed: the allocator's gaps, and the driver's context with the buffers of collectives.
GAPS, CONTEXT = 0.10, 1.5 * GIB
# scores that are worked at once (train/objective.py), and bytes for each: bf16, float32, gradient
_PIECE, _SCORE_BYTES = 1 << 26, 8
# bytes a pair of positions in a dense mask: what is added to the scores, and the truth values behind it
_MASK_BYTES = 3


@dataclass(frozen=True)
class Memory:
    """Bytes of one pipeline rank by part, in the order in which they are told."""

    rank: int
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes in all, with what the allocator and the driver take."""
        return sum(self.parts.values())

    @property
    def reserved(self) -> float:
        """Bytes that PyTorch's allocator takes, which is what trainers report: all but the driver's."""
        return self.total - self.parts["context, buffers"]

    @property
    def allocated(self) -> float:
        """Bytes of tensors."""
        return self.reserved - self.parts["allocator's gaps"]


def worst(run: Run) -> Memory:
    """Return the fullest pipeline rank."""
    return max((memory(run, rank) for rank in range(run.parallel.pp)), key=lambda found: found.total)


def memory(run: Run, rank: int) -> Memory:
    """Return what a pipeline rank holds when it holds most.

    That is when scores become gradients, in the first layers of the backward pass after it, or when it has ended.
    """
    parallel, config = run.parallel, run.config
    whole = run.parameters(rank) / parallel.tp
    own = whole / run.shards
    block, outside = block_parameters(config) / parallel.tp, run.outside(rank) / parallel.tp
    block, outside = block_parameters(config) / parallel.tp, run.outside(rank) / parallel.tp
    near = min(2, run.layers(rank)) * block + outside  # what is gathered while one layer computes
    host = 0.0 if parallel.offload else 1.0
    fixed = {
        "masters": 4 * own * host,
        "moments": 8 * own * host,
        "gathered weights": 2 * (near if parallel.resharding else whole),
        "mask": _MASK_BYTES * run.positions * run.row_length * run.trainer.masked,
    }
    added = parallel.pp > 1 or run.micro_batches > 1
    waiting = 2 * whole if parallel.ranks == 1 else 4 * whole if added else 0.0  # one process adds up in bf16
    kept, working = _activations(run, rank)
    scores = _scores(run) if run.has_head(rank) else 0.0
    moments = (
        {"gradients": waiting, "activations": kept, "scores": scores, "one layer's work": 0.0},
        {"gradients": waiting or 6 * near, "activations": kept, "scores": 0.0, "one layer's work": working},
        {"gradients": 4 * own * host + 2 * whole * (parallel.ranks == 1)},
    )
    parts = fixed | max(moments, key=lambda parts: sum(parts.values()))
    parts["allocator's gaps"] = GAPS * sum(parts.values())
    parts["context, buffers"] = CONTEXT
    return Memory(rank, parts)


def in_flight(run: Run, rank: int) -> float:
    """Return how many micro-batches' activations a pipeline rank keeps at most, counted in all of its stages."""
    pp, chunks, micro = run.parallel.pp, run.chunks, run.micro_batches
    if pp == 1:
        return 1.0
    if run.parallel.schedule == "ZBVZeroBubble":
        held = 2 * pp
    elif chunks == 1:
        held = pp - rank
    else:
        held = (chunks - 1) * pp + 2 * (pp - 1 - rank) + 1
    return min(held, micro * chunks) / chunks


def kept_bytes(run: Run, how: str | None = None) -> float:
    """Return the bytes of one position of one layer that a rank keeps for the backward pass under `recompute`."""
    config, tp = run.config, run.parallel.tp
    how = how or run.parallel.recompute
    residual = 2 * config.dim / tp  # the block's input, split by position
    if how == "full":
        return residual
    width = {name: 2 * outputs for name, (_, outputs) in products(config).items()}
    # a row split product gives sums of all positions, of which each rank keeps its own after a reduce-scatter
    split = {name: width[name] / (1 if name in ("wo", "w2") else tp) for name in width}
    attended = (2 * config.n_heads * config.head_size + 4 * config.n_heads) / tp
    gathered = 2 * 2 * config.dim
    if how == "selective":
        collected = 2 * residual + gathered * run.trainer.gathers if tp > 1 else 0.0
        return residual + attended + collected + sum(split[name] for name in run.trainer.kept)
    inside = split["wq"] + split["wk"] + split["wv"] + attended + split["w1"] + split["w3"]
    if run.parallel.compile and tp == 1:
        gathered = 0.0  # a fused backward pass norms again, as it does SwiGLU's gate
    gate = 0.0 if run.parallel.compile else 2 * split["w1"]
    return 2 * residual + gathered + inside + gate


def _activations(run: Run, rank: int) -> tuple[float, float]:
    """Return bytes kept of all micro-batches in flight, and those that come and go with one layer."""
    flying, layers = in_flight(run, rank), run.layers(rank)
    ends = 2 * run.config.dim * (run.has_head(rank) + (1 if run.parallel.pp > 1 else 0) / run.parallel.tp)
    kept = run.positions * (flying * layers * kept_bytes(run) + max(1.0, flying) * ends)
    again = kept_bytes(run, "none") - kept_bytes(run, "full") if run.parallel.recompute != "none" else 0.0
    # gradients of SwiGLU's three wide tensors and of two gathered inputs are there at once
    passing = 3 * 2 * run.config.ffn_hidden / run.parallel.tp + 2 * 2 * run.config.dim
    return kept, run.positions * (again + passing) if layers else 0.0


def _scores(run: Run) -> float:
    scores = run.positions * run.config.vocab_size
    if run.trainer.score_bytes is not None:
        return scores * run.trainer.score_bytes / run.parallel.tp
    return min(scores, _PIECE) * _SCORE_BYTES / run.parallel.tp
