"""The data feed at the size of a flagship's corpus, and beside a training: `python benchmarks/feed.py [scale] [wait]`.

    scale   token shards of up to 15T tokens as sparse files (their ids are holes, their tables of documents are real):
            what opening, planning a window and laying batches out cost, and how well the order is shuffled
    wait    the share of its time that a training loop waits for data, and how many batches a second there could be

Sparse files take no room: 15T tokens are 14,000 files of 4 GiB by their size and a few MB on the disk.
"""

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.runtime.config import RuntimeConfig
from herd.runtime.device import set_up
from herd.tokenizer.shard_writer import FILE_TOKENS, write_shards
from herd.tokenizer.shards import OFFSET, Count, ShardFile, TokenShards, documents_name, index_text, tokens_name
from herd.train.batch import Part
from herd.train.config import OptimConfig, TrainConfig
from herd.train.loop import State, fit
from herd.train.objective import NextToken
from herd.train.optim import Optimizer
from herd.train.prefetch import Prefetched
from herd.train.windows import WindowFeed, windows_of

LANGUAGES = ("en", "de", "fr", "it", "pt", "hi", "es", "th")
KINDS = ("web", "code", "math", "books")
MEAN_LENGTH = 1000  # ids a document
# the paper's last phase: 16M tokens a step in rows of 8,192
ROW, BATCH_TOKENS = 8192, 16 << 20
DP = 1024  # data-parallel ranks; this process stands for one
BINS = 64


def lengths(rng: np.random.Generator, total: int) -> np.ndarray:
    """Return lengths of documents that come to `total` ids: log-normal, most short, some of hundreds of thousands."""
    sigma = 1.3
    drawn = rng.lognormal(np.log(MEAN_LENGTH) - sigma**2 / 2, sigma, int(1.2 * total / MEAN_LENGTH) + 100)
    drawn = drawn.astype(np.int64).clip(2)
    ends = drawn.cumsum()
    kept = drawn[: int(np.searchsorted(ends, total))]
    return np.append(kept, max(2, total - int(kept.sum())))


@dataclass(frozen=True)
class StandIn:
    """Sparse shards, and what their tables would take if each file had its own (here files share two of them)."""

    folder: Path
    table_bytes: int


def sparse_shards(folder: Path, tokens: int, *, file_tokens: int = FILE_TOKENS) -> StandIn:
    """Make shards of so many tokens whose ids are holes. One file in ten holds four keys, the others one each."""
    rng = np.random.default_rng(0)
    sizes = lengths(rng, min(tokens, file_tokens))
    offsets = np.concatenate([[0], sizes.cumsum()])
    n, keys = len(sizes), [(lang, kind) for lang in LANGUAGES for kind in KINDS]
    mixed = rng.integers(0, 4, n)
    parts = (offsets.astype(OFFSET), np.argsort(mixed, kind="stable").astype(OFFSET))
    (folder / "one").write_bytes(parts[0].tobytes())
    (folder / "four").write_bytes(b"".join(part.tobytes() for part in parts))
    single = [Count(0, n, int(sizes.sum()), int((sizes - 1).sum()))]
    several = [
        Count(key, int((mixed == key).sum()), int(sizes[mixed == key].sum()), int((sizes[mixed == key] - 1).sum()))
        for key in range(4)
    ]
    # English takes half of the files, as the web would have it
    first = [0.5 * (lang == "en") + 0.5 / 7 * (lang != "en") for lang, _ in keys]
    chosen = rng.choice(len(keys), max(1, tokens // file_tokens), p=np.array(first) / sum(first))
    files, table_bytes = [], 0
    for number, key in enumerate(chosen.tolist()):
        is_mixed = number % 10 == 9
        counts = [
            Count((key + c.key) % len(keys), c.documents, c.tokens, c.targets)
            for c in (several if is_mixed else single)
        ]
        with (folder / tokens_name(number)).open("wb") as file:
            file.truncate(4 * int(offsets[-1]))
        os.link(folder / ("four" if is_mixed else "one"), folder / documents_name(number))
        table_bytes += (folder / documents_name(number)).stat().st_size
        files.append(ShardFile(tuple(counts), "0" * 64))
    text = index_text(files, keys, key_names=("lang", "kind"), vocab_size=128_256, fingerprint="", sha256="0" * 64)
    (folder / "index.json").write_text(text)
    return StandIn(folder, table_bytes)


def resident() -> int:
    """Return the memory that this process holds of its own, files that it mapped left out (Linux)."""
    whole, shared = (int(part) for part in Path("/proc/self/statm").read_text().split()[1:3])
    return (whole - shared) * 4096


def open_files(folder: Path) -> int:
    """Return how many files of a folder this process has mapped (Linux)."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split(None, 5)[5] for line in lines if str(folder) in line})


class Clock:
    """Seconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self) -> float:
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def scale(tokens: int, *, file_tokens: int = FILE_TOKENS, batch_tokens: int = BATCH_TOKENS) -> dict[str, Any]:
    """Measure the feed on a stand-in of so many tokens."""
    with tempfile.TemporaryDirectory() as name:
        stand_in = sparse_shards(Path(name), tokens, file_tokens=file_tokens)
        before, clock = resident(), Clock()
        shards = TokenShards(stand_in.folder)
        opened = clock()
        config = TrainConfig(
            context=ROW,
            batch_tokens=batch_tokens,
            tokens=tokens,
            optim=OptimConfig(learning_rate=1),
            window_tokens=1 << 26,
        )
        windows = windows_of(shards, config, seed=0)
        ordered = clock()
        feed = WindowFeed(windows, config.phases, pad_id=0, part=Part(0, min(DP, config.rows)))
        planned = clock()
        for _ in range(8):
            next(feed)
        eight = clock()
        state = feed.state()
        clock()
        again = WindowFeed(windows, config.phases, pad_id=0, part=Part(0, min(DP, config.rows)))
        again.restore(state)
        restored = clock()
        grown = resident() - before
        return {
            "tokens": shards.n_tokens,
            "documents": shards.n_documents,
            "files": len(shards.files),
            "index_bytes": (stand_in.folder / "index.json").stat().st_size,
            "table_bytes": stand_in.table_bytes,
            "blocks": sum(blocks.count for blocks in windows.blocks),
            "window_tokens": windows.tokens,
            "open_seconds": opened,
            "order_seconds": ordered,
            "window_seconds": planned,
            "batch_seconds": eight / 8,
            "restore_seconds": restored,
            "state_bytes": len(json.dumps(state)),
            "open_files": open_files(stand_in.folder),
            "grown_bytes": grown,
            "shuffle": shuffle(feed, shards),
        }


def shuffle(feed: WindowFeed, shards: TokenShards) -> dict[str, Any]:
    """Compare the order of a window's documents, as batches show them, with as many drawn from the whole corpus."""
    plan = feed._at
    blocks = np.array([where for _, where in block_spans(feed)])
    starts = np.array([start for start, _ in block_spans(feed)])
    order = np.concatenate(plan.rows)
    positions = plan.drawn.starts[order] / shards.n_tokens
    block = blocks[np.searchsorted(starts, plan.drawn.starts[order], side="right") - 1]
    rows = feed.phases[0].rows
    first = np.concatenate(plan.rows[:rows])
    full = np.random.default_rng(1).random(len(order))
    return {
        "documents": len(order),
        "largest_share_of_a_block": float(np.bincount(block).max() / len(order)),
        "neighbours_of_one_block": float((block[1:] == block[:-1]).mean()),
        "distance": [float(abs(np.diff(x)).mean()) for x in (positions, full)],
        "chi2_window": [chi2(x) for x in (positions, full)],
        "chi2_batch": [chi2(x) for x in (plan.drawn.starts[first] / shards.n_tokens, full[: len(first)])],
    }


def block_spans(feed: WindowFeed) -> list[tuple[int, int]]:
    """Return where each block of the present window begins among all ids, and its number within the window."""
    place, drawn, found = feed._at.place, feed._at.drawn, []
    for key, blocks in enumerate(feed.windows.blocks):
        for number in range(place.blocks[key], drawn.blocks[key]):
            found.append(int(blocks.documents(number)[0].min()))
    return [(start, i) for i, start in enumerate(sorted(found))]


def chi2(positions: np.ndarray) -> float:
    """Return chi-square over its degrees of freedom for positions 0..1 in 64 bins: about 1 where they are uniform."""
    counts = np.histogram(positions, BINS, (0, 1))[0]
    expected = len(positions) / BINS
    return float(((counts - expected) ** 2 / expected).sum() / (BINS - 1))


def shape_d() -> ModelConfig:
    """Return a small shape at which a step takes little time: 256 wide, 6 layers."""
    return ModelConfig(dim=256, n_layers=6, n_heads=8, n_kv_heads=2, ffn_hidden=768, vocab_size=4096, max_positions=256)


def small_shards(folder: Path, tokens: int) -> TokenShards:
    """Write real shards of short documents."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 200, tokens // 110)

    def documents() -> Iterator[tuple[np.ndarray, tuple[str, str]]]:
        for i, n in enumerate(sizes.tolist()):
            yield rng.integers(1, 4096, n), (LANGUAGES[i % 8], KINDS[i // 8 % 4])

    return write_shards(folder, documents(), vocab_size=4096)


def wait(*, steps: int, threads: int | None, tokens: int = 4_000_000) -> dict[str, Any]:
    """Measure a training of shape D, 16 rows of 256 a step, with the feed in its thread and in the loop."""
    machine = set_up(RuntimeConfig(threads=threads))
    found: dict[str, Any] = {"threads": machine.threads, "steps": steps}
    with tempfile.TemporaryDirectory() as name:
        shards = small_shards(Path(name), tokens)
        config = TrainConfig(
            context=256,
            batch_tokens=16 * 256,
            tokens=tokens,
            optim=OptimConfig(learning_rate=1e-3),
            window_tokens=1 << 20,
        )

        def feed() -> WindowFeed:
            return WindowFeed(windows_of(shards, config, seed=0), config.phases, pad_id=0)

        plain, clock = feed(), Clock()
        for _ in range(1000):
            next(plain)
        found["raw_batches_per_second"] = 1000 / clock()
        model = Transformer(shape_d())
        model.initialise(torch.Generator().manual_seed(0))
        model.to(machine.device)
        optimizer = Optimizer(model.named_parameters(), config.optim, steps=1 << 30, dtype=machine.dtype)
        state = State()

        def run(source: Any, count: int) -> float:
            nonlocal state
            state = fit(model, NextToken(), source, optimizer, steps=state.step + count, state=state)
            return clock()

        with Prefetched(feed()) as ahead:
            run(ahead, 3)
            waited, seconds = ahead.waited, 0.0
            for _ in range(3):
                seconds += run(ahead, steps)
            found["step_seconds"] = seconds / (3 * steps)
            found["waited_share"] = (ahead.waited - waited) / seconds
        timed = Timed(feed())
        run(timed, 3)
        timed.seconds = 0.0
        found["waited_share_without"] = (run(timed, steps), timed.seconds)[1] / (steps * found["step_seconds"])
    assert not [thread for thread in threading.enumerate() if thread.name == "feed"]
    return found


class Timed:
    """A feed that lays batches out when they are asked for, and counts the seconds."""

    def __init__(self, feed: WindowFeed) -> None:
        self.feed, self.seconds = feed, 0.0

    def __next__(self) -> Any:
        began = time.perf_counter()
        batch = next(self.feed)
        self.seconds += time.perf_counter() - began
        return batch


def scale_table(columns: list[dict[str, Any]]) -> Table:
    """Lay out what `scale` measured."""
    table = Table("", *(f"{c['tokens'] / 1e12:g}T tokens" for c in columns))
    rows: dict[str, Any] = {
        "documents": lambda c: f"{c['documents'] / 1e6:,.0f}M",
        "files of ids": lambda c: f"{c['files']:,}",
        "blocks": lambda c: f"{c['blocks']:,}",
        "index.json": lambda c: f"{c['index_bytes'] / 1e6:.2f} MB",
        "tables of documents": lambda c: (
            f"{c['table_bytes'] / 1e9:.2f} GB, {c['table_bytes'] / c['documents']:.1f} B each"
        ),
        "opening": lambda c: f"{c['open_seconds'] * 1e3:.0f} ms",
        "ordering the blocks": lambda c: f"{c['order_seconds'] * 1e3:.0f} ms",
        "planning a window": lambda c: f"{c['window_seconds'] * 1e3:.0f} ms for {c['window_tokens'] / 1e6:.0f}M tokens",
        f"a batch, 1/{DP} of it laid out": lambda c: f"{c['batch_seconds'] * 1e3:.1f} ms",
        "resuming": lambda c: f"{c['restore_seconds'] * 1e3:.0f} ms from {c['state_bytes']:,} bytes",
        "files mapped": lambda c: f"{c['open_files']}",
        "own memory": lambda c: f"{c['grown_bytes'] / 2**20:.0f} MiB",
        "largest share of a block": lambda c: f"{c['shuffle']['largest_share_of_a_block']:.2%}",
        "neighbours of one block": lambda c: f"{c['shuffle']['neighbours_of_one_block']:.2%}",
        "distance of neighbours": lambda c: "{:.3f} (full shuffle {:.3f})".format(*c["shuffle"]["distance"]),
        "chi-square / freedom, batch": lambda c: "{:.1f} ({:.1f})".format(*c["shuffle"]["chi2_batch"]),
        "chi-square / freedom, window": lambda c: "{:.1f} ({:.1f})".format(*c["shuffle"]["chi2_window"]),
    }
    for name, show in rows.items():
        table.add_row(name, *(show(column) for column in columns))
    return table


def main() -> None:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=("scale", "wait"), default=["scale", "wait"])
    parser.add_argument("--tokens", type=float, nargs="+", default=[1e11, 1e12, 15e12])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="write the figures as JSON too")
    arguments = parser.parse_args()
    console, results = Console(width=130), {}
    if "scale" in arguments.parts:
        results["scale"] = [scale(int(tokens)) for tokens in arguments.tokens]
        console.print(scale_table(results["scale"]))
    if "wait" in arguments.parts:
        results["wait"] = wait(steps=arguments.steps, threads=arguments.threads)
        console.print(results["wait"])
    if arguments.out:
        arguments.out.write_text(json.dumps(results))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    console.print(f"peak resident memory of this process: {peak / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
