"""Several gloo processes of one machine that run a function each; used by the tests beside it.

`launch(n, function, *arguments)` starts n fresh processes, waits, and returns what each function returned (plain data).
"""

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit code, what it printed, and what its function returned (None where it didn't)."""

    code: int
    log: str
    value: Any


def launch(count: int, function: str, *arguments: Any, timeout: float = 240) -> list[Any]:
    """Run 'module:function' of tests/parallel in `count` ranks; a rank that fails raises with its output."""
    ranks = start(count, function, *arguments, timeout=timeout)
    if any(rank.code for rank in ranks):
        logs = [rank.log[-3000:] for rank in ranks if rank.code]
        raise AssertionError(f"exit codes {[rank.code for rank in ranks]}\n" + "\n---\n".join(logs))
    return [rank.value for rank in ranks]


def start(count: int, function: str, *arguments: Any, timeout: float = 240) -> list[Ended]:
    """Run 'module:function' of tests/parallel in `count` ranks and return how each ended."""
    from herd.runtime.world import environment

    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        ranks = []
        for rank in range(count):
            env = surroundings() | environment(rank, count, address="127.0.0.1", port=port)
            with Path(folder, f"{rank}.log").open("w") as out:
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, *command(folder, function, *arguments)],
                        env=env,
                        cwd=ROOT,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                    )
                )
        try:
            codes = [process.wait(timeout) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        logs = [Path(folder, f"{rank}.log").read_text() for rank in range(count)]
        return [Ended(codes[rank], logs[rank], returned(folder, rank)) for rank in range(count)]


def command(folder: str, function: str, *arguments: Any) -> list[str]:
    """Return what Python is called with to run a rank, which writes what its function returns into `folder`."""
    return [__file__, function, json.dumps(arguments), folder]


def surroundings() -> dict[str, str]:
    """Return the environment of a rank, without what makes it one."""
    return dict(os.environ) | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/parallel'}",
    }


def returned(folder: str, rank: int) -> Any:
    """Return what a rank's function returned, None where it didn't."""
    path = Path(folder, f"{rank}.json")
    return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
    """Run one rank."""
    import torch

    from herd.runtime.process import begin, end

    name, arguments, folder = sys.argv[1:]
    module, function = name.split(":")
    torch.set_num_threads(1)
    rank = begin(torch.device("cpu")).rank
    found = getattr(importlib.import_module(module), function)(*json.loads(arguments))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    end()


if __name__ == "__main__":
    main()
