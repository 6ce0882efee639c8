"""A plan: memory, step time and what is behind it, for one run on one card. No torch.

step = the slowest rank's micro-batches + bubble + what communication doesn't hide + optimizer
bubble = idle time at both ends of the pipeline, in units of one micro-batch on one rank:
    1F1B and Interleaved1F1B   (pp - 1) / stages a rank                            (arXiv:2104.04473)
    ZBVZeroBubble              (pp - 1) / 2 x share of the gradient of inputs      (arXiv:2401.10241; the
                               optimizer waits for all ranks, so the ends of the parallelogram are left)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from herd.plan.cards import Card
from herd.plan.communication import Traffic, traffic
from herd.plan.memory import Memory, worst
from herd.plan.roofline import Efficiency, Work, optimizer_seconds, work
from herd.plan.run import Run

# Calibrated on one published row; docs/plan.md says which, and what the others then come to.
EFFICIENCY = Efficiency(product=0.536)


@dataclass(frozen=True)
class Plan:
    """What a run needs and how long a step takes."""

    run: Run
    card: Card
    efficiency: Efficiency = EFFICIENCY

    @cached_property
    def memory(self) -> Memory:
        """The fullest rank's memory."""
        return worst(self.run)

    @property
    def fits(self) -> bool:
        """Whether the fullest rank's memory is there."""
        return self.memory.total <= self.card.memory

    @cached_property
    def works(self) -> list[Work]:
        """Computing of a micro-batch on each pipeline rank."""
        return [work(self.run, self.card, self.efficiency, rank) for rank in range(self.run.parallel.pp)]

    @cached_property
    def slowest(self) -> int:
        """The pipeline rank that all others wait for."""
        return max(range(len(self.works)), key=lambda rank: self.works[rank].seconds)

    @cached_property
    def traffic(self) -> list[Traffic]:
        """What the slowest rank sends in a step."""
        return traffic(self.run, self.card, self.slowest, share=self.efficiency.link)

    @cached_property
    def exposed(self) -> Mapping[str, float]:
        """Seconds of a step, by axis, in which the slowest rank only communicates."""
        return exposed(self.run, self.traffic, self.works[self.slowest])

    @property
    def bubble(self) -> float:
        """Idle share of the pipeline, against the time in which it works."""
        parallel, work = self.run.parallel, self.works[self.slowest]
        if parallel.schedule == "ZBVZeroBubble":
            idle = (parallel.pp - 1) / 2 * work.inputs / work.seconds
        else:
            idle = (parallel.pp - 1) / self.run.chunks
        return idle / self.run.micro_batches

    @cached_property
    def seconds(self) -> Mapping[str, float]:
        """Seconds of a step by part, on the slowest rank."""
        micro, own = self.run.micro_batches, self.works[self.slowest]
        parts = {name: micro * seconds for name, seconds in own.parts.items()}
        parts |= {f"{axis} exposed": seconds for axis, seconds in self.exposed.items() if seconds}
        if self.run.parallel.pp > 1:
            mean = sum(work.seconds for work in self.works) / len(self.works)
            inner = sum(self.exposed.get(axis, 0.0) for axis in ("tp", "cp", "pp"))
            parts["bubble"] = self.bubble * (micro * mean + inner)
        parts["optimizer"] = optimizer_seconds(self.run, self.card, self.efficiency, self.slowest)
        return parts

    @property
    def step_seconds(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        """Tokens/s of all cards."""
        return self.run.rows * self.run.row_length / self.step_seconds

    @property
    def tokens_per_card(self) -> float:
        """Tokens/s of one card."""
        return self.tokens_per_second / self.run.parallel.ranks

    def flops_per_card(self, *, causal: bool) -> float:
        """Return model FLOP/s of one card; attention counted whole (12·L·width·s) or its causal half."""
        return self.tokens_per_card * self.run.config.flops_per_token(self.run.row_length, causal=causal)

    def mfu(self, *, causal: bool) -> float:
        """Return model FLOP/s over the card's bf16 peak."""
        return self.flops_per_card(causal=causal) / self.card.bf16


def exposed(run: Run, sent: list[Traffic], own: Work) -> Mapping[str, float]:
    """Return seconds by axis that communication adds to a step.

    cp stands in the way always; tp and pp unless overlapped: then tp shows the first of its tp pieces, or what is
    longer than the products. Weights and gradients of one layer move while another computes: what shows is the first
    gather, the last scatter and what is longer than the computing beside it.
    """
    found: dict[str, float] = {}
    for axis in ("tp", "cp", "pp"):
        seconds = sum(each.seconds for each in sent if each.axis == axis)
        if axis in run.trainer.overlapped:
            beside = run.micro_batches * own.parts.get("products", 0.0)
            seconds = max(seconds / run.parallel.tp, seconds - beside) if axis == "tp" else 0.0
        if seconds:
            found[axis] = seconds
    # gathers go beside every micro-batch when weights are let go, else beside one; gradients beside the last backward
    micro = run.micro_batches if run.parallel.resharding else 1
    for axis, names in (("dp_shard", ("weights", "gradients")), ("dp_replicate", ("sharded gradients",))):
        for each in sent:
            if each.axis == axis and each.what in names:
                beside = micro * (own.forward + own.backward * run.parallel.resharding)
                beside = own.backward if each.what != "weights" else beside
                shown = max(
                    each.seconds - beside, each.each if axis == "dp_shard" else each.each / max(1, run.layers(0))
                )
                found[axis] = found.get(axis, 0.0) + shown
    return found
