"""What all parts of gpu.py share: the machine, shapes, drawn models and prompts, times.

Imported before anything of herd: it puts stand-ins in the place of what a machine with PyTorch alone lacks.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import standins  # noqa: E402

MISSING = standins.install()

import torch  # noqa: E402

from herd.engine.graphs import Kernels  # noqa: E402
from herd.engine.runners import choose_kernels  # noqa: E402
from herd.model.config import ModelConfig, RopeScaling  # noqa: E402
from herd.model.transformer import Transformer  # noqa: E402

standins.remove(MISSING)

Result = dict[str, Any]
SHARED = {"head_dim": 128, "n_kv_heads": 8, "vocab_size": 128_256, "max_positions": 131_072}
SHAPES = {
    "1B": SHARED
    | {"dim": 2048, "n_layers": 16, "n_heads": 32, "ffn_hidden": 8192, "head_dim": 64, "tie_embeddings": True}
    | {"rope_scaling": RopeScaling(factor=32.0)},
    "8B": SHARED | {"dim": 4096, "n_layers": 32, "n_heads": 32, "ffn_hidden": 14_336, "rope_scaling": RopeScaling()},
    "toy": {"dim": 256, "n_layers": 4, "n_heads": 8, "n_kv_heads": 2, "head_dim": 64, "ffn_hidden": 512}
    | {"vocab_size": 2048, "max_positions": 2048},
}


class Bench:
    """The machine, the sizes of this run, and what earlier checks measured."""

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.results: dict[str, Result] = {}
        self._models: dict[tuple[str, torch.dtype], Transformer] = {}
        self._kernels: dict[tuple[ModelConfig, int, torch.dtype], Kernels] = {}

    def model(self, name: str, dtype: torch.dtype = torch.bfloat16) -> Transformer:
        """Return a model of random weights; only one is kept."""
        key = ("toy" if self.small else name, dtype)
        if key not in self._models:
            self._models.clear()
            self.free()
            self._models[key] = drawn(ModelConfig(**SHAPES[key[0]]), dtype, self.device)
        return self._models[key]

    def kernels(self, config: ModelConfig, block_size: int, dtype: torch.dtype) -> Kernels:
        """Return what the engine would take, chosen once."""
        key = (config, block_size, dtype)
        if key not in self._kernels:
            self._kernels[key] = choose_kernels(config, block_size=block_size, dtype=dtype, device=self.device)
        return self._kernels[key]

    def free(self) -> None:
        """Give back memory that nothing uses."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], *, repeat: int = 7) -> float:
        """Return the median time of some work, after one warm-up."""
        times = []
        for _ in range(repeat + 1):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def rate(self, key: str) -> float:
        """Return a measured rate; NaN where it wasn't measured."""
        return self.results.get("rates", {}).get(key) or float("nan")


@torch.no_grad()
def drawn(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """Draw a model on its device."""
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to(dtype).to_empty(device=device)
    if config.tie_embeddings:
        model.output.weight = model.tok_embeddings.weight
    generator = torch.Generator(device=device).manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    return model.eval()


def prompt(length: int, vocab_size: int, *, seed: int) -> tuple[int, ...]:
    """Draw a prompt."""
    return tuple(torch.randint(0, vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist())
