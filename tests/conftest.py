"""Fixtures shared by all tests."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT / "tests/toy.yaml"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep sums in one order, and threads from waiting for each other where cores are few."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text, golden vectors and benchmarks that lie beside the checkout; absent elsewhere."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real-data folder ../shared/data is not beside this checkout")
    return path


def herd(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "herd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, cwd=ROOT, check=False, timeout=280)


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole herd at toy width, raised once by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    done = herd("raise", str(TOY), "--run", str(folder))
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder
