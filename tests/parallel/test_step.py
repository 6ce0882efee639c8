"""A step on any mesh is the step of one process: the summed loss, its weight, the gradient's norm, every gradient.

Tolerances are relative: sums over ranks run in another order. With pipelines alone not even that changes.
"""

from typing import Any

import pytest
from ranks import launch

# (of a tensor's largest entry, of loss and norm) by how a mesh computes
TOLERANCE = {"float32": (4e-6, 1e-6), "bfloat16": (0.1, 1e-2), "float8": (0.5, 5e-3)}

TWO: list[dict[str, Any]] = [
    {"dp_replicate": 2},
    {"dp_shard": 2, "recompute": "full", "tied": True},
    {"dp_shard": 2, "recompute": "selective", "reshard": False},
    {"dp_shard": 2, "dtype": "bfloat16"},
    {"cp": 2},
    {"cp": 2, "objective": "distil", "recompute": "full"},
    {"tp": 2, "tied": True},
    {"tp": 2, "objective": "distil", "recompute": "selective"},
    {"pp": 2, "recompute": "full"},
    {"pp": 2, "schedule": "Interleaved1F1B", "objective": "distil"},
    {"pp": 2, "schedule": "ZBVZeroBubble"},
]
FOUR: list[dict[str, Any]] = [
    {"dp_replicate": 2, "dp_shard": 2},
    {"dp_shard": 2, "tp": 2, "objective": "distil"},
    {"dp_shard": 2, "cp": 2},
    {"cp": 2, "tp": 2},
    {"pp": 2, "tp": 2, "schedule": "ZBVZeroBubble"},
    {"pp": 2, "dp_shard": 2, "schedule": "Interleaved1F1B"},
    {"pp": 2, "cp": 2},
    {"pp": 4},
]
EIGHT: list[dict[str, Any]] = [
    {"pp": 2, "dp_shard": 2, "tp": 2},
    {"pp": 2, "dp_shard": 2, "tp": 2, "schedule": "ZBVZeroBubble", "objective": "distil"},
    {"dp_replicate": 2, "dp_shard": 2, "tp": 2, "recompute": "full"},
    {"dp_shard": 2, "cp": 2, "tp": 2},
    {"pp": 2, "cp": 2, "tp": 2, "schedule": "Interleaved1F1B"},
]


def hold(cases: list[dict[str, Any]], ranks: int) -> None:
    found = launch(ranks, "step:compare", cases)
    assert all(rows == found[0] for rows in found[1:]), "all ranks come to the same sums"
    for case, row in zip(cases, found[0], strict=True):
        entry, whole = TOLERANCE["float8" if case.get("float8") else case.get("dtype", "float32")]
        assert row["weight"] == 0, case
        assert row["loss"] < whole, (case, row)
        assert row["gradient"] < entry, (case, row)
        assert row["norm"] < whole, (case, row)
        assert row["parameters"] == 4 * 9 + (2 if case.get("tied") else 3), (case, row)
        if case == {"pp": 4}:
            assert row["gradient"] == row["loss"] == 0, row


def test_two_ranks_are_one() -> None:
    hold(TWO, 2)


def test_four_ranks_are_one() -> None:
    hold(FOUR, 4)


@pytest.mark.slow
def test_blocks_that_are_compiled_and_products_in_float8() -> None:
    """Both are what PyTorch and torchao make of them; here only that nothing of the mesh stands in their way."""
    pytest.importorskip("torchao", reason="float8 needs torchao")
    hold([{"dp_shard": 2, "compile": True}, {"tp": 2, "float8": True}, {"dp_shard": 2, "float8": True}], 2)


@pytest.mark.slow
def test_eight_ranks_are_one() -> None:
    hold(EIGHT, 8)
