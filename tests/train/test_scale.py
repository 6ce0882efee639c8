"""A corpus of trillions of tokens, as sparse files: opening, memory, files held and shuffling don't grow with it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/feed.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """Return benchmarks/feed.py, which makes the stand-in and measures."""
    spec = importlib.util.spec_from_file_location("feed_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what is mapped")
@pytest.mark.parametrize("tokens", [10**12, pytest.param(15 * 10**12, marks=pytest.mark.slow)])
def test_a_feed_of_trillions_of_tokens_is_small(benchmark: ModuleType, tokens: int) -> None:
    found = benchmark.scale(tokens)
    assert found["tokens"] == pytest.approx(tokens, rel=1e-3)
    assert found["index_bytes"] < 200 * found["files"]
    assert found["table_bytes"] <= 8 * (found["documents"] + found["files"])
    assert found["open_files"] <= 256 + 16
    assert found["grown_bytes"] < 200 << 20
    assert found["state_bytes"] < 10_000
    shuffled = found["shuffle"]
    assert shuffled["largest_share_of_a_block"] < 0.002
    assert shuffled["neighbours_of_one_block"] < 0.002
    ours, full = shuffled["distance"]
    assert ours == pytest.approx(full, rel=0.05)
    # a batch of a full shuffle has about 1; where it came from one block, it would have its documents / 64
    assert shuffled["chi2_batch"][0] < 20
