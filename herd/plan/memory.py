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
        "mask": _mask(run, rank),
        "pipeline's buffers": _buffers(run, rank),
    }
    added = parallel.pp > 1 or run.micro_batches > 1
    waiting = 2 * whole if parallel.ranks == 1 else 4 * whole if added else 0.0  # one process adds up in bf16
    table = _table(run, rank)
    kept, working = _activations(run, rank)
    scores = _scores(run) if run.has_head(rank) else 0.0
    moments = (
        {"gradients": waiting + 4 * table * added, "activations": kept, "scores": scores, "one layer's work": 0.0},
        {
            "gradients": waiting + 4 * table * added + 2 * (block + outside) if added else 6 * near - 4 * outside,
            "activations": kept,
            "scores": 0.0,
            "one layer's work": working,
        },
        {"gradients": 4 * own * host + 2 * whole * (parallel.ranks == 1)},
        {"gradients": (waiting or 6 * near) + (4 + 2) * table, "activations": kept / max(1.0, in_flight(run, rank))},
    )
    parts = fixed | max(moments, key=lambda parts: sum(parts.values()))
    parts["allocator's gaps"] = GAPS * sum(parts.values())
    parts["context, buffers"] = CONTEXT
    return Memory(rank, parts)


def _table(run: Run, rank: int) -> float:
    """Return the parameters of the embedding that a rank has a gradient of, but no part in.

    DTensor computes the gradient of an embedding split by vocabulary whole on every tensor parallel rank, and splits it
    when it is reduced.
    """
    if run.parallel.tp == 1 or not run.has_embedding(rank) or not run.trainer.stock:
        return 0.0
    return run.config.vocab_size * run.config.dim * (1 - 1 / run.parallel.tp)


def _buffers(run: Run, rank: int) -> float:
    """Return the bytes of what stages receive and send.

    PyTorch has a buffer for every micro-batch, forward and backward, and schedules of several stages a rank let go of
    what they sent when the step ends.
    """
    if run.parallel.pp == 1 or not run.trainer.stock:
        return 0.0
    received = 2 * run.chunks - run.has_embedding(rank) - run.has_head(rank)
    sent = run.chunks - run.has_head(rank) if run.chunks > 1 else 0
    return run.micro_batches * (received + sent) * 2 * run.positions * run.config.dim / run.parallel.tp


def _mask(run: Run, rank: int) -> float:
    """Return the bytes of dense masks: one of bf16 for every micro-batch in flight, truth values while it is made."""
    pairs = run.positions * run.row_length * run.masked
    return pairs * (2 * max(1.0, in_flight(run, rank) * run.chunks) + 1)


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


def kept_bytes(run: Run) -> float:
    """Return the bytes of one position of one layer that a rank keeps for the backward pass."""
    results = _results(run)
    return sum(results[name] for name in _kept(run, run.parallel.recompute))


def _results(run: Run) -> dict[str, float]:
    """Return the bytes of one position that each operator of a layer leaves on a rank, by what made it."""
    config, tp = run.config, run.parallel.tp
    split = {name: 2.0 * outputs / tp for name, (_, outputs) in products(config).items()}
    residual = 2.0 * config.dim / tp
    return split | {
        "input": residual,
        "middle": residual,
        # products read all positions; those of wo and w2 are sums of all, of which a rank keeps its own by a scatter
        "norms": 2 * 2.0 * config.dim,
        "wo": 2.0 * config.dim,
        "w2": 2.0 * config.dim,
        "scatters": 2 * residual,
        "attention": (2.0 * config.n_heads * config.head_size + 4 * config.n_heads) / tp,
        "gate": 2 * split["w1"],
    }


def _kept(run: Run, how: str) -> set[str]:
    split = run.parallel.tp > 1
    if how == "full":
        return {"input"}
    if how == "selective":
        collected = {"scatters", *(["norms"] if run.trainer.gathers else [])}
        return {"input", "attention", *run.trainer.kept, *(collected if split else ())}
    kept = {"input", "middle", "norms", "wq", "wk", "wv", "attention", "w1", "w3", "gate"}
    if run.parallel.compile:
        # a fused backward pass does the gate again, and norms where nothing is gathered in between
        kept -= {"gate"} if split else {"gate", "norms"}
    return kept


def _activations(run: Run, rank: int) -> tuple[float, float]:
    """Return bytes kept of all micro-batches in flight, and those that come and go with one layer."""
    flying, layers, results = in_flight(run, rank), run.layers(rank), _results(run)
    # a stage's input lies in the pipeline's buffer, where there is one; its output is kept besides
    output = run.parallel.pp > 1 and not run.trainer.stock
    ends = 2 * run.config.dim * (run.has_head(rank) + output / run.parallel.tp)
    kept = run.positions * (flying * layers * kept_bytes(run) + max(1.0, flying) * ends)
    again = _kept(run, "none") - _kept(run, run.parallel.recompute)
    # gradients of SwiGLU's three wide tensors and of its gathered input are there at once
    passing = 3 * results["w1"] + results["norms"] / 2
    return kept, run.positions * (sum(results[name] for name in again) + passing) if layers else 0.0


def _scores(run: Run) -> float:
    scores = run.positions * run.config.vocab_size
    if run.trainer.score_bytes is not None:
        return scores * run.trainer.score_bytes / run.parallel.tp
    # the head's gradient of a piece, of those before it, and their sum
    head = 3 * 2 * run.config.vocab_size * run.config.dim if scores > _PIECE else 0.0
    return (min(scores, _PIECE) * _SCORE_BYTES + head) / run.parallel.tp
