"""Converting weights: speed against a plain copy of the same bytes, and the most memory it takes.

A synthetic checkpoint of Meta's, 8 rank files in bfloat16 with the proportions of the 8B model, goes to Hugging Face's
format and back to 8 ranks, each time in a process of its own. What the imports take is left out, seconds and memory.
Rounds are interleaved (to HF, copy, to Meta, copy, ...) and ratios taken within a round; everything ends on the disk
(fsync). Run `python benchmarks/convert.py`; it needs three times `--gigabytes` of disk, and a page cache that holds
as much, or the disk is measured.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from forms import Drawn
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from herd.model.config import ModelConfig, RopeScaling
from herd.model.hf import write_hf
from herd.model.meta import write_meta
from herd.model.source import expected_shapes
from herd.model.weights import open_source, write_hf_configs

MP, DTYPE = 8, torch.bfloat16
PER_LAYER, EMBEDDINGS = 56_623_104 + 2 * 2048, 2 * 128_256 * 2048


@dataclass(frozen=True)
class Run:
    """What one conversion took: seconds, and bytes on top of those that the imports had taken."""

    seconds: float
    memory: int


class Bits(Drawn):
    """Random bits in place of weights: nothing is computed with them."""

    def read(self, name: str) -> Tensor:
        """Return the tensor."""
        return torch.empty(self.shape(name), dtype=torch.int16).random_(generator=self.generator).view(DTYPE)


def shape(gigabytes: float) -> ModelConfig:
    """Return half the 8B model's width with as many layers as make so many gigabytes in bfloat16."""
    layers = max(1, round((gigabytes * 1e9 / DTYPE.itemsize - EMBEDDINGS) / PER_LAYER))
    return ModelConfig(
        dim=2048,
        n_layers=layers,
        n_heads=16,
        n_kv_heads=8,
        ffn_hidden=7168,
        vocab_size=128_256,
        rope_scaling=RopeScaling(),
        max_positions=131_072,
    )


def peak_memory() -> int:
    """Return the most bytes that this process has held: not getrusage's, which starts from its parent's."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows["VmHWM"].split()[0]) * 1024


def child(what: str, source: Path, target: Path) -> None:
    """Do one thing and print what it took."""
    with FakeTensorMode():
        torch.empty(1)  # imports eight hundred modules at its first use, and writing a .pth uses it
    before, began = peak_memory(), time.perf_counter()
    if what == "hf":
        opened = open_source(source)
        write_hf(opened, target, dtype=DTYPE)
        write_hf_configs(opened.config, target, bos_id=128_000, eos_ids=[128_001], dtype=DTYPE)
    else:
        target.mkdir()
        write_meta(open_source(source), target, mp=MP, dtype=DTYPE)
    print(json.dumps({"seconds": time.perf_counter() - began, "memory": peak_memory() - before}))


def run(what: str, source: Path, target: Path) -> Run:
    """Do one thing in a process of its own, into a fresh folder."""
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, __file__, "--child", what, "--source", str(source), "--target", str(target)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def copy(source: Path, target: Path) -> float:
    """Copy a folder's files to the disk, 1 MiB at once as herd writes them; return the seconds."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    began = time.perf_counter()
    for file in sorted(source.iterdir()):
        with file.open("rb") as reading, (target / file.name).open("wb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)
            os.fsync(writing.fileno())
    return time.perf_counter() - began


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.iterdir())


def compare(folder: Path, config: ModelConfig, rounds: int) -> None:
    """Run all rounds and print the table."""
    meta, hf, back, plain = (folder / name for name in ("meta", "hf", "back", "plain"))
    meta.mkdir()
    write_meta(Bits(config), meta, mp=MP, dtype=DTYPE)
    ways: dict[str, tuple[str, Path, Path]] = {
        "Meta -> HF": ("hf", meta, hf),
        f"HF -> Meta, {MP} ranks": ("meta", hf, back),
    }
    copied: dict[str, list[float]] = {name: [] for name in ways}
    taken: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (what, source, target) in ways.items():
            os.sync()
            taken[name].append(run(what, source, target))
            os.sync()
            copied[name].append(copy(source, plain))
            for folder_done in (plain, back):  # what is deleted leaves the page cache
                shutil.rmtree(folder_done, ignore_errors=True)
    largest = max(prod(shape) for shape in expected_shapes(config).values()) * DTYPE.itemsize
    print(
        f"{size_of(meta) / 1e9:.2f} GB ({config.parameters():,} parameters), PyTorch {torch.__version__}, "
        f"{os.cpu_count()} cores\nlargest tensor {largest / 2**20:,.0f} MiB, rank file "
        f"{size_of(meta) / MP / 2**20:,.0f} MiB\n"
    )
    print("| conversion | MB/s, median | plain copy, MB/s | ratio, median | range | peak memory |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (_, source, _) in ways.items():
        n_mb = size_of(source) / 1e6
        ratios = [theirs / ours.seconds for ours, theirs in zip(taken[name], copied[name], strict=True)]
        print(
            f"| {name} | {n_mb / statistics.median(r.seconds for r in taken[name]):,.0f} "
            f"| {n_mb / statistics.median(copied[name]):,.0f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} - {max(ratios):.2f} "
            f"| {max(r.memory for r in taken[name]) / 2**20:,.0f} MiB |"
        )


def main(arguments: list[str] | None = None) -> None:
    """Read the options, check the disk, then compare."""
    parser = argparse.ArgumentParser(description="converting weights against copying them")
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder unless given")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options.child, options.source, options.target)
        return
    config = shape(options.gigabytes)
    needed = 3.1 * config.parameters() * DTYPE.itemsize
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="herd-convert-") as folder:
        free = shutil.disk_usage(folder).free
        if free < needed:
            sys.exit(
                f"{folder}: {free / 1e9:.1f} GB are free and {needed / 1e9:.1f} GB are needed; name another --folder"
            )
        compare(Path(folder), config, options.rounds)


if __name__ == "__main__":
    main()
