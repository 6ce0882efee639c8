"""All meshes of so many cards that could run a model, ranked by step time; the one that a trainer takes. No torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isfinite, log2, prod
from typing import Any

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig
from herd.parallel.config import AXES, ParallelConfig
from herd.plan.cards import GIB, Card
from herd.plan.estimate import EFFICIENCY, Plan
from herd.plan.memory import worst
from herd.plan.roofline import Efficiency
from herd.plan.run import HERD, Run, Trainer, whole_rows

_RECOMPUTE = ("none", "selective", "full")  # from the fastest to the smallest
_SHORTEST = 4096  # positions of a row that a context parallel rank holds at least


@dataclass(frozen=True)
class Question:
    """What is asked of a search: the model, the card and how many, the batch, and what is settled already.

    base: gives compile, float8, offload and reshard. fixed: any of the mesh's axes, schedule, recompute, micro_rows;
    all others are free. micro_batches: of a step, where the recipe says how many.
    """

    config: ModelConfig
    card: Card
    ranks: int
    row_length: int
    batch_tokens: int
    base: ParallelConfig = field(default_factory=ParallelConfig)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    micro_batches: int | None = None
    trainer: Trainer = HERD


@dataclass(frozen=True)
class Refused:
    """A mesh that can't be taken, and why; `missing`: bytes, where it is memory."""

    run: Run
    why: str
    missing: float = 0.0


def search(question: Question, *, efficiency: Efficiency = EFFICIENCY) -> tuple[list[Plan], list[Refused]]:
    """Return the best plan of every mesh that fits, fastest first, and those that don't, nearest to fitting first.

    Raises ConfigError where the cards or the batch can't be divided so at all.
    """
    whole_rows(question.batch_tokens, question.row_length)
    plans: list[Plan] = []
    refused: list[Refused] = []
    for mesh in _meshes(question):
        fitting: list[Plan] = []
        short: list[Refused] = []
        for run in _variants(question, mesh):
            found = _first_fitting(question, run)
            if isinstance(found, Run):
                fitting.append(Plan(found, question.card, efficiency))
            else:
                short.append(found)
        if fitting:
            plans.append(min(fitting, key=lambda plan: plan.step_seconds))
        elif short:
            refused.append(min(short, key=lambda each: each.missing))
    plans.sort(key=lambda plan: (plan.step_seconds, plan.run.parallel.sizes))
    return plans, sorted(refused, key=lambda each: (each.missing, each.run.parallel.sizes))


def auto(
    config: ModelConfig,
    card: Card | None,
    ranks: int,
    *,
    row_length: int,
    batch_tokens: int,
    micro_batches: int | None = None,
    base: ParallelConfig | None = None,
) -> tuple[ParallelConfig, str]:
    """Return the mesh that `ranks` of a card run a model on, and why. Raises ConfigError where none can.

    card: None for a device without facts, whose ranks then share the rows out (`cards.card_of`).
    base: what a recipe says besides the axes (compile, float8, offload).
    """
    base = base or ParallelConfig()
    if card is None:
        return _by_rows(ranks, row_length, batch_tokens, micro_batches, base)
    question = Question(config, card, ranks, row_length, batch_tokens, base, micro_batches=micro_batches)
    plans, refused = search(question)
    if not plans:
        raise ConfigError(f"parallel: no mesh of {ranks} x {card.name} runs this model: {nearest(refused)}")
    best = plans[0]
    others = f", the best of {len(plans)} meshes that fit" if len(plans) > 1 else ", the only mesh that fits"
    reason = (
        f"{best.run.parallel.describe()}{others}: {best.memory.total / GIB:.1f} of {card.memory / GIB:.1f} GiB, "
        f"{best.tokens_per_card:,.0f} tokens/s a card"
    )
    if len(plans) > 1:
        second = plans[1]
        gain = 100 * (second.step_seconds / best.step_seconds - 1)
        reason += f" ({gain:.1f} % more than {second.run.parallel.describe()})"
    return best.run.parallel, reason


def nearest(refused: list[Refused]) -> str:
    """Say what the mesh that is nearest to fitting lacks."""
    if not refused:
        return "its heads, widths or rows can't be divided so; other counts of cards may do"
    parallel = refused[0].run.parallel
    return f"{parallel.describe()} with recompute {parallel.recompute} is nearest: {refused[0].why}"


def alternative(question: Question, run: Run) -> str:
    """Say which mesh of the same cards fits and is most like one that doesn't."""

    def distance(plan: Plan) -> float:
        pairs = zip(plan.run.parallel.sizes, run.parallel.sizes, strict=True)
        return sum(abs(log2(mine / theirs)) for mine, theirs in pairs)

    plans, _ = search(replace(question, fixed={}))
    if not plans:
        return f"no mesh of {question.ranks:,} x {question.card.name} does"
    best = min(plans, key=lambda plan: (distance(plan), plan.step_seconds))
    parallel = best.run.parallel
    return f"{parallel.describe()} with recompute {parallel.recompute} fits ({best.memory.total / GIB:.1f} GiB)"


def _by_rows(
    ranks: int, row_length: int, batch_tokens: int, micro_batches: int | None, base: ParallelConfig
) -> tuple[ParallelConfig, str]:
    mesh = base.model_copy(update={"dp_shard": ranks})
    rows = batch_tokens // row_length // (micro_batches or 1)
    if rows < ranks:
        raise ConfigError(f"parallel: {rows} rows a micro-batch are too few for {ranks} processes; raise batch_tokens")
    return mesh, f"{mesh.describe()}: there are no facts about this device, so its ranks share rows and weights out"


def _meshes(question: Question) -> Iterator[ParallelConfig]:
    ranks, card, config = question.ranks, question.card, question.config
    fixed = {axis: question.fixed[axis] for axis in AXES if axis in question.fixed}
    if ranks % prod(fixed.values()):
        product = " x ".join(f"{axis} {size}" for axis, size in fixed.items())
        raise ConfigError(f"{product} = {prod(fixed.values())} ranks don't divide {ranks:,} cards")

    def choices(axis: str, of: int, most: int) -> list[int]:
        wanted = [fixed[axis]] if axis in fixed else [n for n in range(1, min(of, most) + 1) if of % n == 0]
        return [n for n in wanted if of % n == 0]

    for tp in choices("tp", ranks, card.machine):
        for pp in choices("pp", ranks // tp, config.n_layers):
            for cp in choices("cp", ranks // tp // pp, max(1, question.row_length // _SHORTEST)):
                data = ranks // tp // pp // cp
                for shard in _shards(data, card.machine, tp * cp, fixed):
                    axes = {"tp": tp, "pp": pp, "cp": cp, "dp_shard": shard, "dp_replicate": data // shard}
                    yield question.base.model_copy(update=axes)


def _shards(data: int, machine: int, inner: int, fixed: Mapping[str, int]) -> Iterator[int]:
    """Yield sizes of a shard group that are worth a look: one rank, a machine, a few machines, all."""
    wanted = {1, machine // inner, 8 * machine // inner, 64 * machine // inner, data}
    if "dp_shard" in fixed:
        wanted = {fixed["dp_shard"]}
    elif "dp_replicate" in fixed:
        wanted = {data // fixed["dp_replicate"]}
    for size in sorted(wanted):
        if 0 < size <= data and data % size == 0 and data // size == fixed.get("dp_replicate", data // size):
            yield size


def _variants(question: Question, mesh: ParallelConfig) -> Iterator[Run]:
    """Yield a mesh under each schedule and size of a micro-batch."""
    rows = max(1, question.batch_tokens // question.row_length // mesh.data)
    if "micro_rows" in question.fixed:
        sizes = [question.fixed["micro_rows"]]
    elif question.micro_batches is not None:
        sizes = [max(1, rows // question.micro_batches)]
    else:
        sizes = [size for size in (1, 2, 4, 8) if rows % size == 0]
    schedules = ("1F1B", "Interleaved1F1B", "ZBVZeroBubble") if mesh.pp > 1 else ("1F1B",)
    if "schedule" in question.fixed:
        schedules = (question.fixed["schedule"],)
    for micro_rows in sizes:
        for schedule in schedules:
            parallel = mesh.model_copy(update={"schedule": schedule})
            yield Run(
                question.config, parallel, question.row_length, question.batch_tokens, micro_rows, question.trainer
            )


def _first_fitting(question: Question, run: Run) -> Run | Refused:
    """Return a run with as little recomputing as its memory allows."""
    wanted = question.fixed.get("recompute")
    refused = Refused(run, "", inf)
    for how in (wanted,) if wanted else _RECOMPUTE:
        run = replace(run, parallel=run.parallel.model_copy(update={"recompute": how}))
        try:
            run.check()
        except ConfigError as error:
            return refused if isfinite(refused.missing) else Refused(run, str(error).partition(": ")[2], inf)
        missing = worst(run).total - question.card.memory
        if missing <= 0:
            return run
        refused = Refused(run, f"{missing / GIB:,.1f} GiB too much", missing)
    return refused
