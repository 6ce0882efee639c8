"""Which mesh is taken, and what is said of it and of the others."""

from dataclasses import replace

import pytest

from herd.base.errors import ConfigError
from herd.model.published import published
from herd.parallel.config import ParallelConfig
from herd.plan.cards import CARDS, GIB, card, card_of
from herd.plan.search import Question, alternative, auto, search

M = 1 << 20
SMALL = Question(published("llama3.1-8b"), CARDS["h100"], 8, 8192, M)


def test_every_plan_uses_all_cards_fits_and_could_run() -> None:
    plans, refused = search(SMALL)
    assert plans
    for plan in plans:
        assert plan.run.parallel.ranks == 8
        assert plan.memory.total <= plan.card.memory
        plan.run.check()
        assert plan.run.micro_batches * plan.run.micro_rows * plan.run.parallel.data == 128
    assert [plan.step_seconds for plan in plans] == sorted(plan.step_seconds for plan in plans)
    meshes = {each.run.parallel.sizes for each in (*plans, *refused)}
    assert len(meshes) == len(plans) + len(refused)


def test_one_machine_shards_and_a_cluster_has_more_axes() -> None:
    base = ParallelConfig(compile=True)
    mesh, why = auto(SMALL.config, SMALL.card, 8, row_length=8192, batch_tokens=M, base=base)
    assert mesh == ParallelConfig(compile=True, dp_shard=8)
    assert "dp_shard 8, the best of" in why
    large, _ = auto(published("llama3.1-405b"), CARDS["h100"], 16384, row_length=8192, batch_tokens=16 * M, base=base)
    assert large.tp == 8
    assert large.pp > 1


def test_less_memory_means_more_recomputing_or_other_meshes() -> None:
    tight = replace(SMALL.card, memory=30 * GIB)
    plans, refused = search(replace(SMALL, card=tight))
    assert plans
    assert {plan.run.parallel.recompute for plan in plans[:3]} != {"none"}
    assert any(0 < each.missing < 200 * GIB for each in refused)
    assert plans[0].step_seconds > search(SMALL)[0][0].step_seconds


def test_what_is_fixed_stays_fixed() -> None:
    fixed = {"tp": 2, "recompute": "full", "micro_rows": 2}
    plans, _ = search(replace(SMALL, fixed=fixed))
    assert plans
    assert {(p.run.parallel.tp, p.run.parallel.recompute, p.run.micro_rows) for p in plans} == {(2, "full", 2)}


def test_a_recipes_micro_batches_are_kept() -> None:
    mesh, _ = auto(SMALL.config, SMALL.card, 8, row_length=8192, batch_tokens=M, micro_batches=4)
    plans, _ = search(replace(SMALL, micro_batches=4))
    assert mesh == plans[0].run.parallel
    assert {plan.run.micro_batches for plan in plans} == {4}


def test_a_device_without_facts_shares_rows_out() -> None:
    mesh, why = auto(SMALL.config, card_of("Intel(R) Xeon(R)"), 4, row_length=256, batch_tokens=2048)
    assert mesh.sizes == ParallelConfig(dp_shard=4).sizes
    assert "no facts about this device" in why
    with pytest.raises(ConfigError, match="2 rows a micro-batch are too few for 4 processes"):
        auto(SMALL.config, None, 4, row_length=256, batch_tokens=2048, micro_batches=4)


def test_where_nothing_fits_the_nearest_mesh_says_what_it_lacks() -> None:
    with pytest.raises(ConfigError, match=r"no mesh of 8 x H100 SXM runs this model: tp 8 .* GiB too much"):
        auto(published("llama3.1-405b"), CARDS["h100"], 8, row_length=8192, batch_tokens=M)


def test_the_alternative_is_like_what_was_asked_for() -> None:
    question = replace(SMALL, fixed={"dp_replicate": 8})
    plans, refused = search(question)
    assert not plans
    assert alternative(question, refused[0].run).startswith("dp_replicate 4 x ")


@pytest.mark.parametrize(("name", "wanted"), [
    ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA A100-SXM4-80GB", "a100"),
    ("NVIDIA L40S", "l40s"),
    ("AMD Instinct MI300X", "mi300x"),
    ("NVIDIA H100 PCIe", None),
    ("NVIDIA A100-SXM4-40GB", None),
    ("Tesla T4", None),
])  # fmt: skip
def test_a_card_is_known_by_its_devices_name(name: str, wanted: str | None) -> None:
    assert card_of(name) is (CARDS[wanted] if wanted else None)


def test_unknown_cards_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no facts about a card 'h10'; there are h100, h200"):
        card("h10")
    with pytest.raises(ConfigError, match="a power limit of 900 W is not within its 700 W"):
        card("h100", watts=900)
    assert card("H100", watts=500, gigabits=200).network == 25e9
