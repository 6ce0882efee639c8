"""Training speed: herd's loop against plain `transformers` loops, same documents, same shape, same machine.

    herd           rows packed with whole documents, none sees another: PackedFeed, NextToken, Optimizer, fit
    padded         what people write: batches padded to the longest document, model(**batch).loss, float32
    padded bf16    the same under torch.autocast, with the fused AdamW
    concatenated   documents end to end, cut into full rows, attention across documents; herd's number format

Only tokens that carry a loss count. Rounds are interleaved (A B C D A B C D ...), so that a busy machine slows
all alike, and ratios are taken within a round. Run `python benchmarks/train.py`; needs the `reference` extra.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.runtime.config import RuntimeConfig
from herd.runtime.device import Machine, set_up
from herd.train.batch import Example
from herd.train.config import OptimConfig
from herd.train.feed import ExampleSource, PackedFeed
from herd.train.loop import State, fit
from herd.train.objective import NextToken
from herd.train.optim import Optimizer

ROW, BATCH_TOKENS, PAD = 256, 8192, 0
SHORTEST, LONGEST = 20, 150
RATE = 1e-3
SHAPE = ModelConfig(
    dim=144,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    ffn_hidden=384,
    vocab_size=2304,
    max_positions=ROW,
)

# makes so many updates; returns the tokens that carried a loss and the last mean loss
Contender = Callable[[int], tuple[int, float]]


@dataclass(frozen=True)
class Peer:
    """How a plain loop is written: padded or concatenated, in which format, with which AdamW."""

    padded: bool
    autocast: bool
    fused: bool


def documents(count: int = 4000, seed: int = 0) -> list[np.ndarray]:
    """Return random documents of 20 to 150 ids, their frequencies Zipf's: there is something to learn."""
    rng = np.random.default_rng(seed)
    frequency = 1.0 / np.arange(1, SHAPE.vocab_size)
    lengths = rng.integers(SHORTEST, LONGEST + 1, count)
    return [rng.choice(SHAPE.vocab_size - 1, n, p=frequency / frequency.sum()) + 1 for n in lengths]


def herd_loop(machine: Machine) -> Contender:
    """Return herd's own loop, put together as the stages do."""
    model = Transformer(SHAPE)
    model.initialise(torch.Generator().manual_seed(0))
    model.to(machine.device)
    config = OptimConfig(learning_rate=RATE, warmup_steps=0, schedule="constant")
    optimizer = Optimizer(model.named_parameters(), config, steps=1 << 30, dtype=machine.dtype)
    source = ExampleSource([Example(ids) for ids in documents()], row_length=ROW)
    feed = PackedFeed(source, rows=BATCH_TOKENS // ROW, row_length=ROW, pad_id=PAD, seed=0)
    state = State()

    def run(steps: int) -> tuple[int, float]:
        nonlocal state
        before = state.tokens
        state = fit(model, NextToken(), feed, optimizer, steps=state.step + steps, state=state)
        return state.tokens - before, state.figures["loss"]

    return run


def plain_loop(machine: Machine, peer: Peer) -> Contender:
    """Return a plain loop around `transformers`' LlamaForCausalLM of the same shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=SHAPE.dim,
        num_hidden_layers=SHAPE.n_layers,
        num_attention_heads=SHAPE.n_heads,
        num_key_value_heads=SHAPE.n_kv_heads,
        intermediate_size=SHAPE.ffn_hidden,
        vocab_size=SHAPE.vocab_size,
        max_position_embeddings=ROW,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(machine.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), fused=peer.fused or None)
    batches = padded(documents()) if peer.padded else concatenated(documents())

    def run(steps: int) -> tuple[int, float]:
        tokens, loss = 0, torch.zeros(())
        for _ in range(steps):
            batch = next(batches)
            # transformers shifts the labels: the first of a row is never predicted
            tokens += int((batch["labels"][:, 1:] != -100).sum())
            batch = {key: value.to(machine.device) for key, value in batch.items()}
            with torch.autocast(machine.device.type, torch.bfloat16, enabled=peer.autocast):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return tokens, float(loss.detach())

    return run


def padded(texts: list[np.ndarray]) -> Iterator[dict[str, Tensor]]:
    """Yield batches of as many documents as fill one of herd's on average, padded to the longest."""
    size = round(BATCH_TOKENS / ((SHORTEST + LONGEST) / 2))
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(texts))
        for start in range(0, len(order) - size + 1, size):
            rows = [torch.from_numpy(texts[i]) for i in order[start : start + size]]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
            mask = ids != PAD
            yield {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}


def concatenated(texts: list[np.ndarray]) -> Iterator[dict[str, Tensor]]:
    """Yield full rows cut from all documents end to end: no padding, and no wall between documents."""
    rng = np.random.default_rng(0)
    while True:
        stream = torch.from_numpy(np.concatenate([texts[i] for i in rng.permutation(len(texts))]))
        for piece in stream.split(BATCH_TOKENS):
            if len(piece) == BATCH_TOKENS:
                rows = piece.view(-1, ROW)
                yield {"input_ids": rows, "labels": rows}


def contenders(machine: Machine) -> dict[str, Callable[[], Contender]]:
    """Return how to build each contender, by name; the baseline is second."""
    found: dict[str, Callable[[], Contender]] = {"herd": lambda: herd_loop(machine)}
    if importlib.util.find_spec("transformers") is None:
        print("transformers isn't installed, so herd runs alone: pip install 'herd[reference]'\n")
        return found
    bf16 = machine.dtype == torch.bfloat16
    found["padded"] = lambda: plain_loop(machine, Peer(padded=True, autocast=False, fused=False))
    found["padded bf16"] = lambda: plain_loop(machine, Peer(padded=True, autocast=True, fused=True))
    found["concatenated"] = lambda: plain_loop(machine, Peer(padded=False, autocast=bf16, fused=True))
    return found


def timed(run: Contender, steps: int, machine: Machine) -> tuple[float, float]:
    """Return tokens a second and the last loss."""
    began = time.perf_counter()
    tokens, loss = run(steps)
    if machine.device.type == "cuda":
        torch.cuda.synchronize()
    return tokens / (time.perf_counter() - began), loss


def memory(name: str, options: argparse.Namespace) -> float:
    """Return the most memory in MiB that one contender alone takes: of the process, or of the GPU."""
    command = [
        sys.executable,
        __file__,
        "--alone",
        name,
        "--device",
        options.device,
        "--dtype",
        options.dtype,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def alone(name: str, machine: Machine) -> None:
    """Print the peak memory in MiB of a few updates of one contender."""
    contenders(machine)[name]()(3)
    if machine.device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def compare(machine: Machine, options: argparse.Namespace) -> None:
    """Run all contenders in interleaved rounds and print the table."""
    builders = contenders(machine)
    # first, while this process is small: a child's peak starts from its parent's
    peaks = {name: memory(name, options) for name in builders}
    loops = {name: build() for name, build in builders.items()}
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    losses: dict[str, float] = {}
    for run in loops.values():
        run(2)  # warm up
    for _ in range(options.rounds):
        for name, run in loops.items():
            speed, losses[name] = timed(run, options.steps, machine)
            speeds[name].append(speed)
    print(
        f"{machine.name}, {os.cpu_count()} cores, {machine.threads} threads, PyTorch {torch.__version__}\n"
        f"{SHAPE.parameters():,} parameters (dim {SHAPE.dim}, {SHAPE.n_layers} layers, "
        f"vocabulary {SHAPE.vocab_size}), herd in {str(machine.dtype).removeprefix('torch.')}\n"
        f"documents of {SHORTEST}-{LONGEST} tokens, about {BATCH_TOKENS:,} tokens an update, "
        f"{options.rounds} interleaved rounds of {options.steps} updates\n"
    )
    print("| loop | tokens/s, median | lowest - highest | herd's gain, median | range | loss | peak memory |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, values in speeds.items():
        ratios = [ours / theirs for ours, theirs in zip(speeds["herd"], values, strict=True)]
        print(
            f"| {name} | {statistics.median(values):,.0f} | {min(values):,.0f} - {max(values):,.0f} "
            f"| {statistics.median(ratios):.2f} x | {min(ratios):.2f} - {max(ratios):.2f} "
            f"| {losses[name]:.3f} | {peaks[name]:,.0f} MiB |"
        )


def main(arguments: list[str] | None = None) -> None:
    """Read the options, then compare, or measure one contender's memory."""
    parser = argparse.ArgumentParser(description="herd's training speed against plain transformers loops")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="updates a round")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="herd's")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    settings: dict[str, Any] = {key: getattr(options, key) for key in ("device", "dtype", "threads")}
    machine = set_up(RuntimeConfig(**settings))
    if options.alone:
        alone(options.alone, machine)
    else:
        compare(machine, options)


if __name__ == "__main__":
    main()
