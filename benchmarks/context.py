"""What a token takes in the key/value cache, by formula and as measured: `python benchmarks/context.py`.

    sizes    every published shape: a cache of 64 blocks is made, and its bytes are divided by its positions
    a run    a small model with the published RoPE settings reads a prompt of the whole context and answers; how much
             resident memory has grown at points on the way, beside what the formula says of the positions held

Pages of the cache that nothing was written to take no memory, so the growth is that of the positions in use.
"""

import argparse
import ctypes
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from herd.engine.engine import Engine
from herd.engine.native.runner import NativeRunner
from herd.engine.request import Request, Sampling
from herd.model.cache import PagedCache, bytes_per_token
from herd.model.config import ModelConfig
from herd.model.published import CONTEXT, PUBLISHED, published
from herd.model.transformer import Transformer

FORMATS = {"bf16": torch.bfloat16, "fp32": torch.float32}
BLOCKS = 64


def resident_bytes() -> int:
    """Return the memory that this process holds now (Linux with glibc), without what it freed and kept."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def sizes() -> Table:
    """Return bytes a token by formula and by storage, and what a whole context takes."""
    table = Table("shape", "format", "KiB a token", "measured", "131,072 tokens")
    for name, entry in PUBLISHED.items():
        for label, dtype in FORMATS.items():
            cache = PagedCache(entry.config, blocks=BLOCKS, dtype=dtype)
            measured = (cache.keys.nbytes + cache.values.nbytes) / (BLOCKS * cache.block_size)
            formula = bytes_per_token(entry.config, dtype)
            whole = f"{formula * CONTEXT / 2**30:.1f} GiB"
            table.add_row(name, label, f"{formula / 1024:g}", f"{measured / 1024:g}", whole)
    return table


def small() -> ModelConfig:
    """Return a shape of 1 KiB a token in float32, with the published positions and RoPE."""
    shape = {"dim": 64, "n_layers": 2, "n_heads": 1, "n_kv_heads": 1, "head_dim": 64, "ffn_hidden": 128}
    return published("llama3.1-8b").model_copy(update={**shape, "vocab_size": 256})


def run(positions: int, *, points: int = 4) -> Table:
    """Return how resident memory grows while one request fills `positions`, beside the formula."""
    config = small()
    model = Transformer(config).requires_grad_(False)
    model.initialise(torch.Generator().manual_seed(0))
    engine = Engine(model, blocks=CONTEXT // 16, max_running=1)
    engine.generate([Request((1,) * 1024, Sampling(max_tokens=4))])  # what a first request takes besides
    if isinstance(engine._runner, NativeRunner):
        engine._runner._turn_to(CONTEXT)  # RoPE's angles: 32 MiB once for all positions, however large the model
    ids = torch.randint(256, (positions - 8,), generator=torch.Generator().manual_seed(1)).tolist()
    start, began = resident_bytes(), time.perf_counter()
    table = Table("positions", "formula MiB", "measured MiB", "seconds")
    engine.submit(Request(tuple(ids), Sampling(max_tokens=8)))
    marks = [positions * n // points for n in range(1, points + 1)]
    while engine.busy:
        engine.step()
        held = engine.stats().blocks_used * 16
        if marks and held >= marks[0]:
            marks.pop(0)
            formula = held * bytes_per_token(config, torch.float32) / 2**20
            grown = (resident_bytes() - start) / 2**20
            table.add_row(f"{held:,}", f"{formula:.1f}", f"{grown:.1f}", f"{time.perf_counter() - began:.0f}")
    return table


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=CONTEXT, help="how long the run is")
    arguments = parser.parse_args()
    console = Console(width=100)
    grown = run(arguments.positions)  # first: what others gave back would be taken again unseen
    console.print(sizes())
    console.print(grown)


if __name__ == "__main__":
    main()
