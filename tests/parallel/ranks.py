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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def launch(count: int, function: str, *arguments: Any, timeout: float = 240) -> list[Any]:
    """Run 'module:function' of tests/parallel in `count` ranks; a rank that fails raises with its output."""
    from herd.runtime.world import environment

    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, __file__, function, json.dumps(arguments), folder]
        ranks = []
        for rank in range(count):
            env = dict(os.environ) | environment(rank, count, address="127.0.0.1", port=port)
            env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/parallel'}"}
            with Path(folder, f"{rank}.log").open("w") as out:
                ranks.append(subprocess.Popen(command, env=env, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT))
        try:
            codes = [process.wait(timeout) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        if any(codes):
            logs = [Path(folder, f"{rank}.log").read_text()[-3000:] for rank, code in enumerate(codes) if code]
            raise AssertionError(f"exit codes {codes}\n" + "\n---\n".join(logs))
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(count)]


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
