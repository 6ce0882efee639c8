"""The GPU benchmark runs whole, at toy size, on a machine that has neither a GPU nor herd's own dependencies."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/gpu.py"
# the script asks `find_spec` what is missing: here nothing that PyTorch doesn't bring is there
BARE = """
import importlib.util, os, runpy, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("pydantic", "tiktoken") else real(name, *rest)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as for any script
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def ran(out: Path, *options: str) -> dict:
    """Run the script and return its results."""
    command = [sys.executable, "-c", BARE, str(SCRIPT), "--small", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


def test_its_laws_hold(tmp_path: Path) -> None:
    results = ran(tmp_path / "gpu.json", "--only", "environment", "laws")
    assert results["environment"]["stood in for"] == ["pydantic", "tiktoken"]
    assert results["laws float32"]["wrong"] == results["laws bfloat16"]["wrong"] == []


@pytest.mark.slow
def test_every_check_runs(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    results = ran(tmp_path / "gpu.json")
    assert len(results) == 15
    assert not [name for name, found in results.items() if "failed" in found]
    assert results["streams 8B 64"]["herd tokens/s"] > 0
