"""Bubble and activations in flight, against PyTorch's own schedules played through with unit times."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from torch.distributed.pipelining.schedules import _ComputationType, get_schedule_class

from herd.model.published import published
from herd.parallel.config import ParallelConfig
from herd.plan.cards import CARDS
from herd.plan.estimate import Plan
from herd.plan.memory import in_flight
from herd.plan.run import Run

FORWARD, INPUT, WEIGHT, BACKWARD = (
    _ComputationType.FORWARD,
    _ComputationType.BACKWARD_INPUT,
    _ComputationType.BACKWARD_WEIGHT,
    _ComputationType.FULL_BACKWARD,
)
# one chunk's times: forward, gradient of its input, gradient of its weights
TIMES = {FORWARD: 1.0, INPUT: 1.2, WEIGHT: 0.8, BACKWARD: 2.0}


def actions(name: str, pp: int, micro: int) -> list[list]:
    """Return each rank's actions of a schedule with two stages a rank, without any process group."""
    cls = get_schedule_class(name)
    schedule = cls.__new__(cls)
    schedule.pp_group_size, schedule.n_local_stages, schedule.rank = pp, 2, 0
    schedule._n_microbatches, schedule._num_stages, schedule.num_stages = micro, 2 * pp, 2 * pp
    schedule.number_of_rounds = max(1, micro // pp)
    schedule.microbatches_per_round = micro // schedule.number_of_rounds
    return [[a for a in schedule._calculate_single_rank_operations(rank) if a is not None] for rank in range(pp)]


def play(orders: list[list], last: int) -> tuple[float, list[int]]:
    """Run actions as soon as what they wait for is there; return the time in all and the most chunks a rank held."""
    done: dict[tuple[str, int, int], float] = {}
    clocks, places = [0.0] * len(orders), [0] * len(orders)
    held, most = [0] * len(orders), [0] * len(orders)
    while any(place < len(order) for place, order in zip(places, orders, strict=True)):
        moved = False
        for rank, order in enumerate(orders):
            while places[rank] < len(order):
                kind, stage, micro = (getattr(order[places[rank]], name) for name in
                                      ("computation_type", "stage_index", "microbatch_index"))  # fmt: skip
                waits = _waits(kind, stage, micro, last)
                if waits is not None and waits not in done:
                    break
                clocks[rank] = max(clocks[rank], done.get(waits, 0.0) if waits else 0.0) + TIMES[kind]
                done["forward" if kind == FORWARD else "weight" if kind == WEIGHT else "input", stage, micro] = clocks[
                    rank
                ]
                held[rank] += (kind == FORWARD) - (kind in (WEIGHT, BACKWARD))
                most[rank] = max(most[rank], held[rank])
                places[rank] += 1
                moved = True
        assert moved, "the schedule waits for itself"
    return max(clocks), most


def _waits(kind: object, stage: int, micro: int, last: int) -> tuple[str, int, int] | None:
    if kind == FORWARD:
        return ("forward", stage - 1, micro) if stage else None
    if kind == WEIGHT:
        return ("input", stage, micro)
    return ("forward", stage, micro) if stage == last else ("input", stage + 1, micro)


def run_of(name: str, pp: int, micro: int) -> Run:
    config = published("llama3.1-405b").model_copy(update={"n_layers": 4 * pp})
    return Run(config, ParallelConfig(pp=pp, schedule=name), 8192, micro * 8192)


@pytest.mark.parametrize("name", ["Interleaved1F1B", "ZBVZeroBubble"])
@pytest.mark.parametrize(("pp", "micro"), [(2, 4), (4, 8), (4, 16), (8, 16), (8, 32), (16, 32)])
def test_bubble_and_chunks_in_flight_are_pytorchs(name: str, pp: int, micro: int) -> None:
    time, most = play(actions(name, pp, micro), 2 * pp - 1)
    one = 2 * (TIMES[FORWARD] + TIMES[BACKWARD])  # a micro-batch on a rank
    run = run_of(name, pp, micro)
    assert [in_flight(run, rank) * 2 for rank in range(pp)] == most
    plan = Plan(run, CARDS["h100"])
    shares: Mapping[str, float] = {"forward": 1 / 3, "inputs": TIMES[INPUT] / (one / 2)}
    works = [replace(work, parts={"products": 1.0}, **shares) for work in plan.works]
    object.__setattr__(plan, "works", works)
    assert plan.bubble == pytest.approx(time / (micro * one) - 1, rel=1e-9)


@pytest.mark.parametrize(("pp", "micro"), [(2, 2), (4, 8), (16, 16)])
def test_the_plain_schedule_idles_for_all_other_ranks(pp: int, micro: int) -> None:
    run = run_of("1F1B", pp, micro)
    assert Plan(run, CARDS["h100"]).bubble == (pp - 1) / micro
    assert [in_flight(run, rank) for rank in range(pp)] == [min(micro, pp - rank) for rank in range(pp)]
