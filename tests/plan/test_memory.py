"""Parameters, activations and traffic in closed form: laws, and figures that were traced apart from it."""

from dataclasses import replace

import pytest

from herd.base.errors import ConfigError
from herd.model.published import PUBLISHED, published
from herd.parallel.config import ParallelConfig
from herd.plan.cards import CARDS
from herd.plan.communication import link_of, traffic
from herd.plan.memory import in_flight, kept_bytes, memory, worst
from herd.plan.roofline import rank_products
from herd.plan.run import PAPER, Run

M = 1 << 20
BIG = published("llama3.1-405b")
# the 405B mesh of the paper's second row, one stage a rank
WIDE = Run(BIG, ParallelConfig(tp=8, pp=16, dp_shard=128), 8192, 16 * M)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not PUBLISHED[name].config.tie_embeddings])
@pytest.mark.parametrize("schedule", ["1F1B", "Interleaved1F1B", "ZBVZeroBubble"])
@pytest.mark.parametrize("pp", [2, 4, 8])
def test_the_ranks_of_a_pipeline_hold_the_whole_model_once(name: str, schedule: str, pp: int) -> None:
    run = Run(published(name), ParallelConfig(pp=pp, schedule=schedule), 8192, M)
    assert sum(run.parameters(rank) for rank in range(pp)) == published(name).parameters()


@pytest.mark.parametrize("name", PUBLISHED)
def test_one_rank_holds_the_whole_model(name: str) -> None:
    assert Run(published(name), ParallelConfig(), 8192, M).parameters(0) == published(name).parameters()


def test_405b_has_the_published_parameters_and_the_papers_stages() -> None:
    assert BIG.parameters() == 405_853_388_800
    looped = replace(WIDE, parallel=WIDE.parallel.model_copy(update={"schedule": "Interleaved1F1B"}), trainer=PAPER)
    # section 3.3.2: a layer less on the first and the last rank, whose outer chunk is the embedding or the head alone
    assert [looped.layers(rank) for rank in range(16)] == [7, *[8] * 14, 7]
    assert looped.has_embedding(0)
    assert looped.has_head(15)


def test_a_layer_of_405b_keeps_what_was_traced() -> None:
    kept = {}
    for how in ("none", "selective", "full"):
        run = replace(WIDE, parallel=WIDE.parallel.model_copy(update={"recompute": how}))
        kept[how] = kept_bytes(run) * run.positions
    assert kept["none"] == pytest.approx(1.11e9, rel=0.01)
    assert kept["full"] == 8192 * 16384 * 2 / 8
    gathered = 2 * 8192 * 16384 * 2
    assert gathered == pytest.approx(0.54e9, rel=0.01)
    assert gathered < kept["selective"] < kept["none"] + 2 * gathered


def test_a_micro_batch_of_a_middle_stage_is_156_7_teraflop_of_products() -> None:
    once = sum(2 * WIDE.positions * inputs * outputs for inputs, outputs in rank_products(WIDE).values())
    assert 3 * WIDE.layers(1) * once == pytest.approx(156.7e12, rel=5e-4)


def test_traffic_of_a_middle_stage_is_what_was_traced() -> None:
    sent = {(each.axis, each.what): each for each in traffic(WIDE, CARDS["h100"], 1, share=1.0)}
    tensor = sent["tp", "positions of hidden states"]
    # 32 gathers and 32 scatters a micro-batch, 8.6 GB of each, of which 7/8 go over the wire
    assert tensor.times == 16 * 64
    assert tensor.total / 16 == pytest.approx(2 * 8.59e9 * 7 / 8, rel=1e-3)
    assert sent["dp_shard", "weights"].total == pytest.approx(6.4e9 * 127 / 128, rel=0.01)
    assert sent["dp_shard", "gradients"].total == pytest.approx(12.75e9 * 127 / 128, rel=0.01)
    assert sent["pp", "hidden states"].total == 16 * 2 * 8192 * 16384 * 2 / 8


@pytest.mark.parametrize(("tp", "dp_shard", "axis", "link", "rate"), [
    (8, 8, "tp", "machine", 450e9),
    (8, 8, "dp_shard", "network", 50e9),
    (2, 8, "dp_shard", "network", 200e9),  # four members a machine, each with a network card
    (1, 16, "dp_shard", "network", 400e9),
    (1, 8, "dp_shard", "machine", 450e9),
])  # fmt: skip
def test_a_ring_is_as_fast_as_its_slowest_link(tp: int, dp_shard: int, axis: str, link: str, rate: float) -> None:
    run = Run(BIG, ParallelConfig(tp=tp, dp_shard=dp_shard), 8192, M)
    assert link_of(run, CARDS["h100"], axis) == (link, rate)


def test_shards_divide_what_is_sharded_and_nothing_else() -> None:
    one = Run(published("llama3.1-8b"), ParallelConfig(dp_shard=8), 8192, 128 * 8192, 2)
    two = Run(published("llama3.1-8b"), ParallelConfig(dp_shard=16), 8192, 256 * 8192, 2)
    before, after = memory(one, 0).parts, memory(two, 0).parts
    for part in ("masters", "moments"):
        assert after[part] == before[part] / 2
    for part in ("gathered weights", "activations", "scores"):
        assert after[part] == before[part]


def test_states_of_one_rank_are_4_and_8_bytes_a_parameter() -> None:
    config = published("llama3.2-1b")
    parts = memory(Run(config, ParallelConfig(), 8192, M), 0).parts
    assert (parts["masters"], parts["moments"]) == (4 * config.parameters(), 8 * config.parameters())


def test_recomputing_trades_activations() -> None:
    runs = [replace(WIDE, parallel=WIDE.parallel.model_copy(update={"recompute": how})) for how in ("none", "full")]
    none, full = (memory(run, 1).parts["activations"] for run in runs)
    assert full < none / 20


def test_offloaded_shards_are_not_on_the_card() -> None:
    run = replace(WIDE, parallel=WIDE.parallel.model_copy(update={"offload": True}))
    assert memory(run, 1).parts["masters"] == memory(run, 1).parts["moments"] == 0
    assert memory(run, 1).parts["gathered weights"] == memory(WIDE, 1).parts["gathered weights"]


def test_the_fullest_rank_is_the_first_that_has_a_whole_share_of_layers() -> None:
    found = worst(WIDE)
    assert found.rank in (0, 1)
    assert found.total == max(memory(WIDE, rank).total for rank in range(16))
    assert found.total > found.reserved > found.allocated


def test_in_flight_never_exceeds_the_micro_batches_there_are() -> None:
    few = replace(WIDE, batch_tokens=4 * 128 * 8192)
    assert [in_flight(few, rank) for rank in (0, 13, 15)] == [4, 3, 1]


@pytest.mark.parametrize(("change", "message"), [
    ({"batch_tokens": 16 * M + 1}, "16,777,216 is"),
    ({"batch_tokens": 100 * 8192, "parallel": ParallelConfig(dp_shard=64)}, "a batch of 1,048,576 tokens can"),
    ({"parallel": ParallelConfig(tp=16)}, "tp 16 doesn't divide n_kv_heads 8"),
    ({"parallel": ParallelConfig(pp=16, dp_shard=2048)}, "16 pipeline stages need at least as many micro-batches"),
])  # fmt: skip
def test_what_cannot_run_is_refused_with_a_remedy(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(WIDE, **change).check()
