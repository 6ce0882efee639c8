"""A rank's step traced without memory, in a process of its own, beside the closed form and known figures."""

from dataclasses import replace

import pytest

from herd.base.errors import HerdError
from herd.model.config import ModelConfig
from herd.model.published import published
from herd.parallel.config import ParallelConfig
from herd.plan.cards import CARDS, GIB
from herd.plan.communication import traffic
from herd.plan.memory import in_flight, memory
from herd.plan.roofline import product_flops
from herd.plan.run import Run
from herd.plan.simulate import Traced, simulate

BIG = published("llama3.1-405b")
MESH = ParallelConfig(tp=8, pp=2, dp_shard=128)
# two layers a rank, which is as wide as the whole
NARROW = Run(BIG.model_copy(update={"n_layers": 4}), MESH, 8192, 8 * 128 * 8192)


def norms(run: Run, rank: int) -> float:
    """Return the bytes of float32 copies that a norm keeps on a processor and not on a GPU."""
    layers = run.layers(rank) * in_flight(run, rank) if run.parallel.recompute == "none" else 1
    return 2 * 8 * run.config.dim / run.parallel.tp * run.positions * layers


def agree(run: Run, rank: int, traced: Traced, *, within: float = 0.1) -> None:
    """Hold the closed form's memory, products and bytes against the trace."""
    step = replace(run, batch_tokens=traced.micro_batches * run.micro_rows * run.parallel.data * run.row_length)
    closed = memory(step, rank)
    assert traced.parameters == run.parameters(rank)
    assert traced.parts["masters"] == pytest.approx(closed.parts["masters"], rel=0.02)
    assert traced.parts["moments"] == pytest.approx(closed.parts["moments"], rel=0.02)
    if not run.parallel.resharding:  # else one or two layers, as it happens
        assert traced.parts["gathered weights"] == pytest.approx(closed.parts["gathered weights"], rel=0.02)
    assert closed.allocated + norms(run, rank) == pytest.approx(traced.peak, rel=within)
    assert traced.product_flops / traced.micro_batches == pytest.approx(product_flops(run, rank), rel=1e-3)
    sizes = {"tp": run.parallel.tp, "cp": run.parallel.cp, "dp_shard": run.shards}
    for axis, ranks in sizes.items():
        sent = sum(each.total for each in traffic(step, CARDS["h100"], rank, share=1.0) if each.axis == axis)
        found = [(name, size) for name, (_, size) in traced.sent.items() if name.split()[0] == axis]
        whole = [size * (2 if "sum" in name else 1) for name, size in found]
        assert sent == pytest.approx(sum(whole) * (ranks - 1) / ranks, rel=0.03), axis


@pytest.mark.parametrize("recompute", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_a_rank_of_405b_is_as_the_closed_form_says(recompute: str) -> None:
    run = replace(NARROW, parallel=MESH.model_copy(update={"recompute": recompute}))
    traced = simulate(run, 0)
    agree(run, 0, traced)
    per_layer = traced.product_flops / traced.micro_batches / 2
    # 156.7 TFLOP for the eight layers of a stage, and a third more but for w2, which nothing needs again
    once = 156.68e12 / 8
    assert per_layer == pytest.approx(once if recompute == "none" else 194.61e12 / 8, rel=1e-4)


def test_outputs_of_the_last_stage_are_not_kept() -> None:
    """Memory mustn't grow with the micro-batches of a step; graphs behind outputs and losses once made it,
    and now nothing does but what stages receive and send."""
    shape = {"dim": 512, "n_layers": 4, "n_heads": 8, "n_kv_heads": 4, "ffn_hidden": 2048, "vocab_size": 1024}
    mesh = ParallelConfig(pp=2, schedule="ZBVZeroBubble")
    run = Run(ModelConfig(**shape), mesh, 4096, 4 * 4096)
    few, many = (simulate(replace(run, batch_tokens=micro * 4096), 0, fewest=False).peak for micro in (4, 12))
    # 4,096 x 512 for what each of two stages receives and one sends
    assert many - few < 8 * 3 * 4096 * 512 * 2 * 1.1


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "products"), [(0, None), (1, 194.6e12), (15, None)])
def test_405b_on_16384_cards(rank: int, products: float | None) -> None:
    run = Run(BIG, ParallelConfig(tp=8, pp=16, dp_shard=128, recompute="full"), 8192, 1 << 24)
    traced = simulate(run, rank)
    agree(run, rank, traced)
    if products:
        assert traced.product_flops / traced.micro_batches == pytest.approx(products, rel=1e-3)
    assert memory(run, rank).total < CARDS["h100"].memory


@pytest.mark.slow
def test_405b_at_131072_positions() -> None:
    mesh = ParallelConfig(tp=8, cp=16, pp=16, dp_shard=8, recompute="full")
    run = Run(BIG, mesh, 131_072, 1 << 24)
    traced = simulate(run, 1)
    assert run.positions == 8192
    agree(run, 1, traced, within=0.12)
    # keys and values of the whole row, forward and again: 8 layers, 16 micro-batches; one key head of 128 a rank
    assert traced.sent["cp gather"] == (2 * 8 * 16, 2 * 8 * 16 * 2 * 131_072 * 128 * 2)
    # half of it masks: 2 GiB for each of 15 micro-batches in flight
    assert 50 * GIB < traced.peak < 66 * GIB


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["Interleaved1F1B", "ZBVZeroBubble"])
def test_schedules_hold_what_the_closed_form_says(schedule: str) -> None:
    parallel = ParallelConfig(tp=8, pp=4, dp_shard=128, schedule=schedule)
    run = Run(BIG.model_copy(update={"n_layers": 8}), parallel, 8192, 8 * 128 * 8192)
    for rank in (0, 3):
        agree(run, rank, simulate(run, rank), within=0.15)


@pytest.mark.slow
def test_8b_in_shards_and_recomputed_selectively() -> None:
    run = Run(published("llama3.1-8b"), ParallelConfig(dp_shard=8, recompute="selective"), 8192, 16 * 8192, 2)
    agree(run, 0, simulate(run, 0), within=0.12)


def test_a_trace_that_ends_says_why() -> None:
    run = replace(NARROW, parallel=MESH.model_copy(update={"tp": 3}))
    with pytest.raises(HerdError, match="the simulation of pipeline rank 0 ended: "):
        simulate(run, 0)
