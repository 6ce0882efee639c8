"""Memory of one training step on long rows, by simulation: `python benchmarks/long_shapes.py llama3.1-8b`.

Runs a published shape cut to one and to two layers forward and backward on the meta device (shapes without numbers),
one row of one document in bfloat16, and follows which tensors live at once (PyTorch's MemTracker). The difference is a
layer; the whole model is extrapolated from it. Not in it: the head (its scores go in pieces of 2^26), gradients and the
optimizer.
"""

import argparse

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from herd.model.config import ModelConfig
from herd.model.published import published
from herd.model.transformer import Transformer

GIB = 1 << 30


def peak_activations(config: ModelConfig, length: int) -> int:
    """Return the most bytes of activations and passing tensors alive at once in a step over one row."""
    with torch.device("meta"):
        model = Transformer(config).to(torch.bfloat16)
    documents = torch.zeros(1, length, dtype=torch.long)  # on the processor: where documents begin must be known
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        hidden = model(torch.zeros(1, length, dtype=torch.long, device="meta"), documents=documents)
        hidden.sum().backward()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("meta")]
    return sum(size for kind, size in peak.items() if str(kind).endswith((".ACT", ".TEMP", ".OTH")))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", default="llama3.1-8b")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32_768, 131_072])
    options = parser.parse_args()
    shape = published(options.shape)
    print("| positions | a layer, GiB | apart from layers, GiB | all layers kept, GiB | a mask of t x t, GiB |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for length in options.lengths:
        one, two = (peak_activations(shape.model_copy(update={"n_layers": n}), length) for n in (1, 2))
        layer = two - one
        figures = (layer, one - layer, one + (shape.n_layers - 1) * layer, 2 * length**2)
        print(f"| {length:,} | {' | '.join(f'{figure / GIB:.2f}' for figure in figures)} |", flush=True)


if __name__ == "__main__":
    main()
