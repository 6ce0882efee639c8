"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text, golden vectors and benchmarks that lie beside the checkout; absent elsewhere."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real-data folder ../shared/data is not beside this checkout")
    return path


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep sums in one order, and parallel test processes out of each other's way."""
    import torch

    torch.set_num_threads(1)
