"""A mesh that can't run a model is refused before a process starts, with every misfit and what would fit."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.config import validate
from herd.base.errors import ConfigError
from herd.model.config import Shape
from herd.parallel.config import ParallelConfig, check, layers_of, stages_of

SHAPE = Shape(dim=64, n_layers=6, n_heads=8, n_kv_heads=4, ffn_hidden=96)
SIZES: dict[str, Any] = {"vocab_size": 64, "row_length": 64, "rows": 8, "accumulate": 4}


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        ({"tp": 2}, {"world": 3}, "pp 1 x dp_replicate 1 x dp_shard 1 x cp 1 x tp 2 = 2 ranks, but 3 processes run"),
        ({"tp": 8}, {}, "tp 8 doesn't divide n_kv_heads 4; 4 does"),
        ({"tp": 4}, {"vocab_size": 62}, "tp 4 doesn't divide vocab_size 62; 2 does"),
        ({"cp": 3}, {}, "a row of 64 positions can't be cut into 2 x cp = 6 equal parts"),
        ({"dp_shard": 16}, {}, "8 rows a micro-batch are too few for dp_replicate x dp_shard = 16 ranks"),
        ({"pp": 8}, {"accumulate": 8}, "8 pipeline stages need as many layers, the model has 6"),
        ({"pp": 4}, {"accumulate": 2}, "4 pipeline stages need at least as many micro-batches: accumulate=4"),
        ({"pp": 2, "schedule": "ZBVZeroBubble"}, {"accumulate": 2}, "accumulate=4"),
        ({"schedule": "ZBVZeroBubble"}, {}, "schedule ZBVZeroBubble needs pp > 1"),
        ({"pp": 2, "schedule": "ZBVZeroBubble", "recompute": "full"}, {"accumulate": 4}, "in two halves: use none"),
    ],
)
def test_misfits_are_told(mesh: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    config = ParallelConfig(**mesh)
    with pytest.raises(ConfigError) as caught:
        check(config, SHAPE, **{"world": config.ranks} | SIZES | changes)
    assert message in str(caught.value)
    assert str(caught.value).startswith("parallel: ")


def test_what_fits_is_not_refused_and_tied_pipelines_are() -> None:
    check(ParallelConfig(pp=2, dp_shard=2, cp=2, tp=2), SHAPE, world=16, **SIZES)
    with pytest.raises(ConfigError, match="untie"):
        check(ParallelConfig(pp=2), SHAPE.model_copy(update={"tie_embeddings": True}), world=2, **SIZES)


def test_unknown_axes_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'dp_shard'"):
        validate(ParallelConfig, {"dp_shards": 2}, where="recipe")


@given(n_layers=st.integers(1, 130), stages=st.integers(1, 40))
def test_stages_share_the_layers_evenly_and_the_ends_have_the_fewest(n_layers: int, stages: int) -> None:
    if stages > n_layers:
        return
    found = layers_of(n_layers, stages)
    assert [layer for layers in found for layer in layers] == list(range(n_layers))
    sizes = [len(layers) for layers in found]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) in (sizes[0], sizes[-1])


@pytest.mark.parametrize("schedule", ["1F1B", "Interleaved1F1B", "ZBVZeroBubble"])
def test_every_stage_has_one_rank(schedule: str) -> None:
    config = ParallelConfig(pp=4, schedule=schedule)  # ty: ignore[invalid-argument-type]
    held = sorted(stage for rank in range(4) for stage in stages_of(config, rank))
    assert held == list(range(config.stages))
