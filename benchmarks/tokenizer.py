"""Tokenizer speed: herd's encoding against plain `tiktoken`, and what learning a vocabulary takes.

Encoding: the same texts, the same ranks, rounds interleaved (A B, B A, ...), ratios taken within a round.
    documents   each text of the corpus as it is
    lines       each line apart: short texts, where what surrounds the BPE core counts
One thread is `encode_batch(texts)` against a loop over tiktoken's `encode_ordinary`, its quickest way, in processor
time; several are `encode_batch(texts, threads)` against `encode_ordinary_batch`, in time by the clock.

Learning (`--learn`): a process of its own for each sample size, once for counting words and once with all merges.
To a larger sample: bytes grow in proportion, different words by Heaps' law fitted here, merging with a power of the
different words, peak memory in a straight line of them. Needs the `data` extra.

Run `python benchmarks/tokenizer.py --corpus DIR --tokenizer FILE`; DIR holds LANGUAGE.jsonl, whose rows have `text`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tiktoken

from herd.base.files import read_jsonl
from herd.base.languages import CODES
from herd.tokenizer import specials
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.hf_files import load_tokenizer
from herd.tokenizer.learn import balanced, train_library

N_RANKS = 128_000  # the official vocabulary without its special tokens


def texts_of(corpus: Path) -> dict[str, Iterator[str]]:
    """Return the texts of each language that the folder has, none of them held in memory."""
    files = {code: corpus / f"{code}.jsonl" for code in CODES}
    found = {code: (row["text"] for row in read_jsonl(file)) for code, file in files.items() if file.is_file()}
    if not found:
        sys.exit(f"no {'.jsonl, '.join(CODES)}.jsonl in {corpus}")
    return found


def sample_of(corpus: Path, megabytes: float) -> Iterator[str]:
    """Yield a sample of so many MB in all, as `learn` takes it: the same from each language that has as much."""
    texts = texts_of(corpus)
    return balanced(texts, round(megabytes * 1_000_000 / len(texts)))


def compare(tokenizer: Tokenizer, texts: dict[str, Iterator[str]], *, rounds: int, threads: int) -> None:
    """Print MB/s of both and herd's gain for documents and lines, one thread and several."""
    plain = tiktoken.Encoding(
        "plain",
        pat_str=specials.SPLIT_PATTERN,
        mergeable_ranks=tokenizer.ranks,
        special_tokens=tokenizer.special_ids,
    )
    documents = [text for language in texts.values() for text in language]
    lines = [line for text in documents for line in text.split("\n") if line]
    print(f"{len(texts)} languages, {tokenizer.n_vocab:,} ids, {os.cpu_count()} cores, {rounds} interleaved rounds\n")
    print("| texts | threads | herd MB/s, median | tiktoken MB/s, median | herd's gain, median | range |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, batch in (("documents", documents), ("lines", lines)):
        size = sum(len(text.encode()) for text in batch) / 1e6
        for count in sorted({1, threads}):

            def herd(batch: list[str] = batch, count: int = count) -> list[list[int]]:
                return tokenizer.encode_batch(batch, count)

            def peer(batch: list[str] = batch, count: int = count) -> list[list[int]]:
                if count == 1:
                    return [plain.encode_ordinary(text) for text in batch]
                return plain.encode_ordinary_batch(batch, num_threads=count)

            ours, theirs = interleaved(herd, peer, rounds=rounds, threads=count)
            gains = [other / own for own, other in zip(ours, theirs, strict=True)]
            print(
                f"| {len(batch):,} {name}, {size:.1f} MB | {count} | {size / statistics.median(ours):.1f} "
                f"| {size / statistics.median(theirs):.1f} | {statistics.median(gains):.2f} x "
                f"| {min(gains):.2f} - {max(gains):.2f} |"
            )


def interleaved(
    ours: Callable[[], list[list[int]]], theirs: Callable[[], list[list[int]]], *, rounds: int, threads: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of each round of both, after one of each to warm up and to see that their ids agree."""
    if ours() != theirs():
        sys.exit("herd and tiktoken give different ids: the speeds are worth nothing")
    seconds: dict[bool, list[float]] = {True: [], False: []}
    clock = time.process_time if threads == 1 else time.perf_counter
    for number in range(rounds):
        for own in (True, False) if number % 2 else (False, True):
            began = clock()
            (ours if own else theirs)()
            seconds[own].append(clock() - began)
    return seconds[True], seconds[False]


def learn_once(corpus: Path, megabytes: float, n_ranks: int) -> None:
    """Print what learning from one sample takes, reading it included: seconds, and the process's peak in MiB."""
    began = time.perf_counter()
    library = train_library(sample_of(corpus, megabytes), n_ranks, specials.SPLIT_PATTERN)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"seconds": seconds, "peak": peak, "merges": library.get_vocab_size() - 256}))


def measure_learning(corpus: Path, sizes: list[float], target: float) -> None:
    """Print what learning took at each size, and what the fits make of it at `target` MB."""

    def child(size: float, n_ranks: int) -> dict[str, float]:
        command = [sys.executable, __file__, "--corpus", str(corpus), "--once", str(size), str(n_ranks)]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    # first, while this process is small: a child's peak starts from its parent's
    counted, learned = ([child(size, n_ranks) for size in sizes] for n_ranks in (256, N_RANKS))
    megabytes, words = np.array([size_of(sample_of(corpus, size)) for size in sizes]).T
    counting = np.array([row["seconds"] for row in counted])
    merging = np.array([row["seconds"] for row in learned]) - counting
    peak = np.array([row["peak"] for row in learned])
    merges = [int(row["merges"]) for row in learned]
    print(f"{os.cpu_count()} cores, up to {N_RANKS - 256:,} merges\n")
    print("| sample MB | different words | merges | counting words, s | merging, s | peak memory, MiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for size, n_words, made, first, second, most in zip(megabytes, words, merges, counting, merging, peak, strict=True):
        print(f"| {size:.1f} | {n_words:,.0f} | {made:,} | {first:.1f} | {second:.1f} | {most:,.0f} |")
    heaps, scale = np.polyfit(np.log(megabytes), np.log(words), 1)
    power, factor = np.polyfit(np.log(words), np.log(merging), 1)
    slope, offset = np.polyfit(words, peak, 1)
    expected = np.exp(scale) * target**heaps
    print(
        f"\nfits over {len(sizes)} sizes: different words = {np.exp(scale):,.0f} x MB^{heaps:.2f}; merging grows as "
        f"words^{power:.2f}; peak = {offset:.0f} MiB + {slope * 1e6:,.0f} MiB a million words\n"
        f"extrapolated to {target:,.0f} MB, {target / megabytes[-1]:.0f} times the largest: "
        f"{expected / 1e6:.1f} million words, {counting[-1] / megabytes[-1] * target:,.0f} s counting, "
        f"{np.exp(factor) * expected**power:,.0f} s merging, {(offset + slope * expected) / 1024:.1f} GiB"
    )
    if min(merges) < max(merges):
        print("the smaller samples ran out of merges, which makes the fitted growth of merging too steep, not too flat")


def size_of(sample: Iterator[str]) -> tuple[float, int]:
    """Return a sample's MB, and how many different words the split pattern finds in it."""
    import regex

    pattern, words, size = regex.compile(specials.SPLIT_PATTERN), set[str](), 0
    for text in sample:
        words.update(pattern.findall(text))
        size += len(text.encode())
    return size / 1e6, len(words)


def main(arguments: list[str] | None = None) -> None:
    """Read the options, then compare encoding, or measure learning."""
    parser = argparse.ArgumentParser(description="herd's tokenizer against tiktoken, and the cost of learning one")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of LANGUAGE.jsonl with rows of `text`")
    parser.add_argument("--tokenizer", type=Path, help="rank file or model folder to encode with")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--learn", action="store_true", help="measure learning instead")
    parser.add_argument("--sizes", type=float, nargs="+", default=[3.0, 6.0, 12.0, 23.0], help="samples in MB")
    parser.add_argument("--target", type=float, default=1000.0, help="MB to extrapolate to")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.once:
        learn_once(options.corpus, float(options.once[0]), int(options.once[1]))
    elif options.learn:
        measure_learning(options.corpus, options.sizes, options.target)
    elif options.tokenizer is None:
        parser.error("--tokenizer says which ranks to encode with")
    else:
        tokenizer = load_tokenizer(options.tokenizer)
        compare(tokenizer, texts_of(options.corpus), rounds=options.rounds, threads=options.threads)


if __name__ == "__main__":
    main()
