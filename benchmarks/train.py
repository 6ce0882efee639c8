"""Training speed: herd's loop against those of transformers, litgpt and torchtune, same shape, same batch, by turns.

    T         512 wide, 8 layers, 8/4 heads, feed-forward 1,536, 32,000 ids; 8 rows of 512 tokens a step
    D         256 wide, 6 layers, 8/2 heads, feed-forward 768, 4,096 ids; 16 rows of 256
    meadow    the meadow's flagship, on documents of 20 to 150 tokens that herd packs and others pad or join

`trainers.py` says what each contestant computes in which format. Every one has a process of its own and works only in
its turn (see arena.py); a ratio is taken within a round. Compiling is done before the first round. MFU is the share of
the matrix rate that this machine reached in the same run, by both counts of attention: all scores, or the causal half.
Run `python benchmarks/train.py T`; needs the `reference` extra, and for the other two peers

    pip install --no-deps litgpt==0.5.13 torchtune==0.6.1 torchao==0.15.0
    pip install lightning torchdata datasets sentencepiece tiktoken blobfile omegaconf

in an environment of its own (their requirements exclude each other's; without them they are left out).
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from arena import LIMIT, Rounds, Worker, options, play, spread, write_json
from trainers import TRAINERS, Matmul, Task, start

from herd.model.config import ModelConfig
from herd.runtime.device import device_name

TASKS = {
    "T": Task(
        ModelConfig(dim=512, n_layers=8, n_heads=8, n_kv_heads=4, ffn_hidden=1536, vocab_size=32_000),
        rows=8,
        length=512,
    ),
    "D": Task(
        ModelConfig(dim=256, n_layers=6, n_heads=8, n_kv_heads=2, ffn_hidden=768, vocab_size=4096),
        rows=16,
        length=256,
    ),
    "meadow": Task(
        ModelConfig(dim=144, n_layers=4, n_heads=4, n_kv_heads=2, ffn_hidden=384, vocab_size=2304, tie_embeddings=True),
        rows=32,
        length=256,
        documents=(20, 150),
    ),
}
PEERS = ("transformers", "litgpt", "torchtune")
WHOLE = tuple(f"{name}:{kind}" for name in ("herd", *PEERS) for kind in ("eager", "compiled"))
DOCUMENTS = ("herd:eager", "transformers:padded", "transformers:padded-bf16", "transformers:joined")
WARM = 3  # steps before the first round; by the second, everything is compiled


def enter(names: Sequence[str], task: Task, threads: int) -> list[Worker]:
    """Start the contestants that can be, and let them compile; say which can't."""
    workers = []
    for name in names:
        engine, _, kind = name.partition(":")
        kind, _, kept = kind.partition("+")
        if engine not in TRAINERS or kept not in ("", "kept"):
            raise SystemExit(f"{name}: no such contestant; write one of {', '.join(TRAINERS)} and its kind")
        worker, began = Worker(name, start, TRAINERS[engine], task, kind, threads, bool(kept)), time.monotonic()
        why = worker.missing
        try:
            if not why:
                worker.turn("train", WARM)
                worker.turn("peak")  # of compiling, which isn't asked for
        except RuntimeError as error:
            why = str(error)
        if why:
            print(f"left out: {name}: {why}", flush=True)
            worker.close()
        else:
            print(f"{name} is ready: {time.monotonic() - began:.0f} s for its first {WARM + 1} steps", flush=True)
            workers.append(worker)
    return workers


def compete(name: str, chosen: argparse.Namespace) -> None:
    """Let all contestants train one shape, and print the table."""
    task = TASKS[name]
    names = chosen.contestants or (DOCUMENTS if task.documents else WHOLE)
    bare = Worker("matmul", start, Matmul, task, "", chosen.threads, False)
    workers = enter(names, task, chosen.threads)
    peaks = [bare.turn("rate", chosen.urgent).value]
    found = play(workers, "train", (chosen.steps, chosen.urgent), rate=float, chosen=chosen)
    peaks.append(bare.turn("rate", chosen.urgent).value)
    memory = {worker.name: worker.turn("peak").value for worker in workers}
    losses = {worker.name: worker.turn("losses").value for worker in workers}
    for worker in (*workers, bare):
        worker.close()
    shape = task.model
    print(
        f"\n{name}: {shape.parameters():,} parameters, {task.rows} x {task.length} places a step, {chosen.threads} "
        f"threads, rounds of {chosen.steps} steps\n{device_name(torch.device('cpu'))}, PyTorch {torch.__version__}; "
        f"bfloat16 matrix products before and after: {peaks[0] / 1e12:.2f} and {peaks[1] / 1e12:.2f} TFLOP/s"
    )
    print_table(task, found, max(peaks), memory, losses)
    if chosen.json:
        write_json(chosen.json, task=name, rates=found.rates, peaks=peaks, memory=memory, losses=losses)


def print_table(
    task: Task,
    found: Rounds,
    peak: float,
    memory: Mapping[str, float],
    losses: Mapping[str, Sequence[float]],
) -> None:
    """Print a row a contestant."""
    if found.disturbed:
        print("\nno round was quiet: read ratios as rough")
    elif found.dropped:
        print(f"\n{found.dropped} rounds dropped, in which others took more than {LIMIT} cores")
    ours = [name for name in found.rates if name.startswith("herd:")]
    heads = " | ".join(f"{name} is faster by" for name in ours)
    print(f"\n| loop | tokens/s | {heads} | MFU, all / causal scores | memory, MiB | loss, first and last step |")
    print("| --- | ---: |" + " --- |" * len(ours) + " ---: | ---: | ---: |")
    for name, rates in found.rates.items():
        ratios = " | ".join("" if name in ours else spread(found.ratio(one, name)) for one in ours)
        rate = statistics.median(rates) / peak
        shares = " / ".join(f"{rate * task.model.flops_per_token(task.length, causal=c):.0%}" for c in (False, True))
        first, last = losses[name][0], losses[name][-1]
        print(
            f"| {name} | {spread(rates, ',.0f')} | {ratios} | {shares if not task.documents else '–'} "
            f"| {memory[name]:,.0f} | {first:.3f}, {last:.3f} |"
        )
    if not task.documents:
        print(f"\nlosses lie at most {_apart(losses):.2%} apart over {len(next(iter(losses.values())))} steps")


def _apart(losses: Mapping[str, Sequence[float]]) -> float:
    """Return how far two contestants' losses of the same step are apart at most, as a share."""
    return max((max(step) - min(step)) / min(step) for step in zip(*losses.values(), strict=True))


def main() -> None:
    """Read the options, then let them compete on each shape."""
    parser = options(__doc__.splitlines()[0], model=" or ".join(TASKS))
    parser.add_argument("--steps", type=int, default=3, help="updates a turn, by the clock")
    parser.add_argument("--urgent", action="store_true", help="turns at a real-time priority, where others work too")
    parser.add_argument("--contestants", nargs="+", help=f"of {' '.join(WHOLE)}")
    chosen = parser.parse_args()
    compete(chosen.model, chosen)


if __name__ == "__main__":
    main()
