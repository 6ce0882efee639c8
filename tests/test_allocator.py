"""Freed memory is kept: in a process of its own, for it can't be undone."""

import subprocess
import sys

import pytest

PROGRAM = """
from herd.runtime.allocator import keep_freed_memory
import torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

kept = keep_freed_memory() if {keep} else False
block = torch.ones(1 << 26)
held = resident()
del block
print(kept, held - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("keep", [False, True])
def test_a_freed_block_goes_back_unless_told(keep: bool) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep)], capture_output=True, text=True, check=True)
    kept, given_back = done.stdout.split()
    if keep and kept == "False":
        pytest.skip("not glibc")
    assert (int(given_back) < 1 << 20) is keep, f"{given_back} bytes of a block of {1 << 28} went back"
