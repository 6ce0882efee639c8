"""What a rank sends in a step, axis by axis: bytes on the wire, over which link, for how long. No torch.

    tp            gather before, scatter after attention and SwiGLU, and backward     a layer, a micro-batch
    cp            gather keys and values, scatter their gradients                     a layer, a micro-batch
    dp_shard      gather weights (bf16), scatter gradients (float32)                  over dp_shard x cp ranks
    dp_replicate  sum sharded gradients (float32)                                     a step
    pp            hidden states forward, gradients backward, split by tp              a stage, a micro-batch

A gather or (reduce-)scatter of S bytes over n ranks puts (n - 1) / n S on every link of a ring, a sum twice that. Where
a ring leaves a machine, each of its m members there has a network card of its own: it moves at min(link, m x network).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from herd.parallel.config import AXES
from herd.plan.cards import Card
from herd.plan.run import Run

# a hop of a ring in seconds, within a machine and between two
_HOP = {"machine": 2e-6, "network": 8e-6}


@dataclass(frozen=True)
class Traffic:
    """One kind of communication of a pipeline rank: each time `bytes` on `link`, `times` a step."""

    axis: str
    what: str
    link: str
    bytes: float
    times: float
    each: float

    @property
    def total(self) -> float:
        """Bytes of a step."""
        return self.bytes * self.times

    @property
    def seconds(self) -> float:
        """Seconds of a step, hidden or not."""
        return self.each * self.times


def link_of(run: Run, card: Card, axis: str) -> tuple[str, float]:
    """Return where an axis communicates ('machine', 'network' or '' for one rank), and bytes/s of its rings."""
    names, size = (("dp_shard", "cp"), run.shards) if axis == "dp_shard" else ((axis,), getattr(run.parallel, axis))
    if size == 1:
        return "", float("inf")
    sizes = dict(zip(AXES, run.parallel.sizes, strict=True))
    inner = prod(sizes[name] for name in AXES[AXES.index(names[-1]) + 1 :])
    if inner * size <= card.machine:
        return "machine", card.link
    members = max(1, card.machine // inner)
    return "network", card.network if axis == "pp" else min(card.link, members * card.network)


def traffic(run: Run, card: Card, rank: int, *, share: float) -> list[Traffic]:
    """Return all that a pipeline rank sends in a step; links reach `share` of their rate."""
    return list(_traffic(run, rank, lambda *what: _ring(run, card, share, *what)))


def _ring(run: Run, card: Card, share: float, axis: str, what: str, size: int, volume: float, times: float) -> Traffic:
    """Return one kind of traffic: `volume` bytes are there when it has ended, or were when it began."""
    link, rate = link_of(run, card, axis)
    sent = volume if axis == "pp" else volume * (size - 1) / size * (2 if axis == "dp_replicate" else 1)
    hops = 1 if axis == "pp" else size - 1
    return Traffic(axis, what, link, sent, times, sent / (rate * share) + hops * _HOP[link])


def _traffic(run: Run, rank: int, ring: Callable[..., Traffic]) -> Iterator[Traffic]:
    parallel, config, layers = run.parallel, run.config, run.layers(rank)
    micro, hidden = run.micro_batches, 2 * run.positions * config.dim
    regathered = parallel.recompute == "selective" and not run.trainer.gathers
    again = {"none": 0, "selective": 2 * regathered, "full": 3}[parallel.recompute]
    if parallel.tp > 1:
        ends = 2 * run.has_embedding(rank) + 2 * run.has_head(rank)
        times = micro * (layers * (8 + again) + ends)
        yield ring("tp", "positions of hidden states", parallel.tp, hidden, times)
    if parallel.cp > 1:
        keys = 2 * 2 * run.positions * parallel.cp * config.n_kv_heads * config.head_size / parallel.tp
        yield ring("cp", "keys and values", parallel.cp, keys, micro * layers * (3 if again else 2))
    if run.shards > 1:
        groups, whole = layers + 1, run.parameters(rank) / parallel.tp / (layers + 1)
        gathers = micro * (2 * layers + 1) if parallel.resharding else groups
        yield ring("dp_shard", "weights", run.shards, 2 * whole, gathers)
        yield ring("dp_shard", "gradients", run.shards, 4 * whole, groups)
    if parallel.dp_replicate > 1:
        own = run.parameters(rank) / parallel.tp / run.shards
        yield ring("dp_replicate", "sharded gradients", parallel.dp_replicate, 4 * own, 1)
    if parallel.pp > 1:
        inner = 2 * run.chunks - run.has_embedding(rank) - run.has_head(rank)
        yield ring("pp", "hidden states", 2, hidden / parallel.tp, micro * inner)
