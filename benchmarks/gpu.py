"""Everything that herd does on a GPU, checked and timed in one run of under ten minutes.

    environment   what the machine is, which kernels the engine takes there
    laws          engine ≡ trainer's forward pass; alone ≡ together, in chunks, with a shared prefix, without graphs
    rates         copy bandwidth (bytes read and written) and the rate of a bfloat16 matrix product
    decode        one stream: bytes of weights, keys and values read a token, as a share of the copy bandwidth
    profile       where the time of a decode step goes, by kernel
    prefill       operations of a prompt (its lower triangle in attention) as a share of the matrix rate
    streams       tokens a second of many streams, against `transformers`' continuous batching of the same weights
    training      steps of 8,192 tokens, and their share of the matrix rate, against `transformers` (gpu_train.py)

Needs PyTorch and, for `streams`, transformers; weights are random, so nothing is downloaded. A check that fails is
reported and the others go on; results are written after each. Timings are medians of repetitions, which alternate
where two things are compared.
Run `python benchmarks/gpu.py [--out FILE]`; `--small` runs all of it at toy size on a processor, in a minute.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gpu_train
import torch
from gpu_bench import MISSING, SHAPES, Bench, Result, drawn, prompt

from herd.engine.engine import Engine
from herd.engine.graphs import GraphRunner
from herd.engine.request import Completion, Request, Sampling
from herd.model.cache import bytes_per_token
from herd.model.config import ModelConfig, to_hf
from herd.model.hf import hf_name
from herd.model.transformer import Transformer


@contextlib.contextmanager
def graphs(bench: Bench, *, capture: bool) -> Iterator[None]:
    """Let engines have a graph runner, captured or not, wherever the model lies."""

    def opened(model: Transformer, *, blocks: int, block_size: int, keep_weights: bool) -> GraphRunner:
        chosen = bench.kernels(model.config, block_size, next(model.parameters()).dtype)
        return GraphRunner(model, blocks=blocks, block_size=block_size, kernels=replace(chosen, capture=capture))

    with patch("herd.engine.engine.open_runner", opened):
        yield


# --- checks, in the order in which they run


def environment(bench: Bench) -> Result:
    """Say what the machine is, and which kernels are taken for each shape."""
    found: Result = {"python": platform.python_version(), "torch": torch.__version__, "stood in for": MISSING}
    for name in ("triton", "transformers", "flash_attn"):
        with contextlib.suppress(Exception):
            found[name] = __import__(name).__version__
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        found |= {"device": properties.name, "GiB": round(properties.total_memory / 2**30, 1)}
        found |= {"cuda": torch.version.cuda, "multiprocessors": properties.multi_processor_count}
    for dtype in (torch.float32, torch.bfloat16):
        for name, shape in SHAPES.items():
            kernels = bench.kernels(ModelConfig(**shape), 16, dtype)
            decode = "plain" if kernels.decode.whole else "triton"
            found[f"kernels {name} {dtype}".replace("torch.", "")] = (
                f"{decode}, {kernels.prompt.__name__}; unused: {kernels.unused}"
            )
    return found


def laws(bench: Bench, dtype: torch.dtype) -> Result:
    """Hold the engine's log-probabilities and choices against the trainer's forward pass and each other."""
    model = drawn(ModelConfig(**SHAPES["toy"]), dtype, bench.device)
    lengths = (1, 17, 64) if bench.small else (1, 5, 17, 64, 300, 1100)
    shared = prompt(48, model.config.vocab_size, seed=99)
    requests = [
        Request((*shared, *prompt(n, model.config.vocab_size, seed=n)), Sampling(max_tokens=8 if bench.small else 24))
        for n in lengths
    ]
    options = {"max_running": 8, "blocks": 600}
    with graphs(bench, capture=bench.device.type == "cuda"):
        base = Engine(model, **options).generate(requests)
        ways = {
            "alone": [Engine(model, **options).generate([request])[0] for request in requests],
            "in chunks of 7": Engine(model, **options, prefill_chunk=7).generate(requests),
            "blocks of 64": Engine(model, max_running=8, blocks=150, block_size=64).generate(requests),
        }
        engine = Engine(model, **options)
        engine.generate(requests)
        ways["a second time, prefixes reused"] = engine.generate(requests)
    with graphs(bench, capture=False):
        ways["without graphs"] = Engine(model, **options).generate(requests)
    # of a fresh model: plain projections, no cache, float32
    trainer = drawn(ModelConfig(**SHAPES["toy"]), dtype, bench.device).float()
    most = 1e-3 if dtype == torch.float32 else 0.25
    found: Result = {"largest logprob difference allowed": most}
    found["trainer"] = max(_off_trainer(trainer, r, c) for r, c in zip(requests, base, strict=True))
    found |= {f"ids differ: {name}": sum(a.ids != b.ids for a, b in zip(base, way, strict=True))
              for name, way in ways.items()}  # fmt: skip
    found |= {name: max(_apart(a, b) for a, b in zip(base, way, strict=True)) for name, way in ways.items()}
    wrong = [key for key, value in found.items() if key in {"trainer", *ways} and not value <= most]
    if dtype == torch.float32:
        wrong += [key for key, value in found.items() if key.startswith("ids differ") and value]
    found["wrong"] = wrong
    assert not wrong, f"broken: {found}"
    return found


@torch.no_grad()
def _off_trainer(model: Transformer, request: Request, done: Completion) -> float:
    ids = torch.tensor([[*request.prompt, *done.ids]], device=next(model.parameters()).device)
    scores = model.logits(model(ids, documents=torch.zeros_like(ids)))[0].log_softmax(-1)
    wanted = scores[:-1].gather(1, ids[0, 1:, None])[len(request.prompt) - 1 :, 0].tolist()
    return max(abs(token.logprob - other) for token, other in zip(done.tokens, wanted, strict=True))


def _apart(a: Completion, b: Completion) -> float:
    """Return the largest difference of log-probabilities, up to where the ids part."""
    largest = 0.0
    for one, other in zip(a.tokens, b.tokens, strict=True):
        if one.id != other.id:
            break
        largest = max(largest, abs(one.logprob - other.logprob))
    return largest


def rates(bench: Bench) -> Result:
    """Measure what this device can do at most."""
    size = 1 << (24 if bench.small else 31)
    source = torch.empty(size, dtype=torch.uint8, device=bench.device).random_()
    target = torch.empty_like(source)
    copy = 2 * size / bench.seconds(lambda: target.copy_(source), repeat=15)
    wide = 256 if bench.small else 8192
    a, b = (torch.randn(wide, wide, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    product = 2 * wide**3 / bench.seconds(lambda: a @ b, repeat=15)
    return {"copy bytes/s": copy, "matmul FLOP/s": product}


def decode(bench: Bench, name: str) -> Result:
    """Time the rounds of one stream through the engine: scheduling and choosing included."""
    model = bench.model(name)
    config, found = model.config, {}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if not config.tie_embeddings:
        weights -= model.tok_embeddings.weight.numel() * model.tok_embeddings.weight.element_size()
    rounds = 8 if bench.small else 48
    for context in (64, 256) if bench.small else (128, 8192, 32_768):
        engine = Engine(model, blocks=(context + 2 * rounds) // 16 + 2, max_running=1, prefill_chunk=8192)
        engine.submit(Request(prompt(context, config.vocab_size, seed=0), Sampling(max_tokens=2 * rounds)))
        for _ in range(context // 8192 + 4):
            engine.step()
        seconds = bench.seconds(engine.step, repeat=rounds)
        read = weights + (context + rounds // 2) * bytes_per_token(config, torch.bfloat16)
        found[f"context {context}"] = {
            "ms a token": 1e3 * seconds,
            "GB a token": read / 1e9,
            "share of copy bandwidth": read / seconds / bench.rate("copy bytes/s"),
        }
    return found


def profile(bench: Bench, name: str) -> Result:
    """Return the kernels of a decode round by time."""
    if bench.device.type != "cuda":
        return {"skipped": "no GPU"}
    model = bench.model(name)
    engine = Engine(model, blocks=64, max_running=1)
    engine.submit(Request(prompt(128, model.config.vocab_size, seed=0), Sampling(max_tokens=64)))
    for _ in range(4):
        engine.step()
    rounds = 5
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        for _ in range(rounds):
            engine.step()
        torch.cuda.synchronize()
    rows = sorted(trace.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows) / rounds
    top = {row.key[:90]: [row.self_device_time_total / rounds, row.count / rounds] for row in rows[:16]}
    return {"busy us a round": total, "us and launches a round": top}


def prefill(bench: Bench, name: str) -> Result:
    """Time prompts to their first token."""
    model = bench.model(name)
    config, found = model.config, {}
    embeddings = config.vocab_size * config.dim * (1 if config.tie_embeddings else 2)
    linear = config.parameters() - embeddings
    for length in (64, 512) if bench.small else (2048, 8192, 32_768):
        engine = Engine(model, blocks=length // 16 + 2, max_running=1, prefill_chunk=8192, prefix_reuse=False)
        request = Request(prompt(length, config.vocab_size, seed=1), Sampling(max_tokens=1))
        seconds = bench.seconds(lambda: engine.generate([request]), repeat=3)  # noqa: B023
        attention = 2 * config.n_layers * config.n_heads * config.head_size * length**2
        operations = 2 * linear * length + attention
        found[f"prompt {length}"] = {
            "seconds": seconds,
            "tokens/s": length / seconds,
            "share of matmul rate": operations / seconds / bench.rate("matmul FLOP/s"),
        }
    return found


def streams(bench: Bench, name: str, count: int) -> Result:
    """Let herd and transformers answer the same requests from the same weights, by turns."""
    model = bench.model(name)
    vocab = model.config.vocab_size
    length, new = (16, 8) if bench.small else (256, 128)
    prompts = [prompt(length // 2 + (7 * i) % length, vocab, seed=i) for i in range(count)]
    blocks = count * (-(-(2 * length + new) // 16) + 1)

    def herd() -> int:
        engine = Engine(model, blocks=blocks, max_running=count, prefill_chunk=4096, prefix_reuse=False)
        engines[:] = [engine]
        return sum(len(c.ids) for c in engine.generate([Request(p, Sampling(max_tokens=new)) for p in prompts]))

    engines: list[Engine] = []
    found: Result = {"streams": count, "prompt": length, "new": new}
    sides: dict[str, Callable[[], int]] = {"herd": herd}
    try:
        sides["transformers"] = _transformers(bench, model, prompts, new)
    except TimeoutError:
        raise
    except Exception:
        found["transformers missing"] = traceback.format_exc(limit=3)
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(2 if bench.small else 4):  # the first turn of each is its warm-up
        for side, work in list(sides.items()):
            try:
                bench.wait()
                start = time.perf_counter()
                tokens = work()
                bench.wait()
                speeds[side].append(tokens / (time.perf_counter() - start))
            except Exception:  # the check's time being up among them: the other side's figures are kept
                found[f"{side} failed"] = traceback.format_exc(limit=-4)
                del sides[side]
    for side, seen in speeds.items():
        found[f"{side} tokens/s"] = statistics.median(seen[1:]) if seen[1:] else None
    if found.get("herd tokens/s") and found.get("transformers tokens/s"):
        found["herd / transformers"] = found["herd tokens/s"] / found["transformers tokens/s"]
    return found


def _transformers(bench: Bench, model: Transformer, prompts: list[tuple[int, ...]], new: int) -> Callable[[], int]:
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    # no token ends an answer: both sides write the same number
    config = LlamaConfig(**to_hf(model.config, bos_id=0, eos_ids=[], dtype="bfloat16") | {"eos_token_id": None})
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(bench.device):
            theirs = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    state = {hf_name(key): value for key, value in model.state_dict().items()}
    theirs.load_state_dict(state, strict=False, assign=True)
    theirs.tie_weights()
    theirs.eval()
    generation = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    options: dict[str, Any] = {}
    with contextlib.suppress(ImportError):
        from transformers import ContinuousBatchingConfig

        # herd's cache is in the same memory
        sizes = {"num_blocks": 32, "max_batch_tokens": 64} if bench.small else {"max_memory_percent": 0.5}
        options["continuous_batching_config"] = ContinuousBatchingConfig(**sizes)

    def run() -> int:
        done = theirs.generate_batch([list(p) for p in prompts], generation_config=generation, **options)
        return sum(len(answer.generated_tokens) for answer in done.values())

    return run


CHECKS: dict[str, tuple[int, Callable[[Bench], Result]]] = {
    "environment": (60, environment),
    "rates": (20, rates),
    "laws float32": (60, lambda bench: laws(bench, torch.float32)),
    "laws bfloat16": (60, lambda bench: laws(bench, torch.bfloat16)),
    "decode 8B": (60, lambda bench: decode(bench, "8B")),
    "profile 8B": (20, lambda bench: profile(bench, "8B")),
    "prefill 8B": (60, lambda bench: prefill(bench, "8B")),
    "streams 8B 64": (90, lambda bench: streams(bench, "8B", 4 if bench.small else 64)),
    "streams 8B 256": (90, lambda bench: streams(bench, "8B", 8 if bench.small else 256)),
    "decode 1B": (40, lambda bench: decode(bench, "1B")),
    "profile 1B": (20, lambda bench: profile(bench, "1B")),
    "prefill 1B": (30, lambda bench: prefill(bench, "1B")),
    "training laws": (20, gpu_train.laws),
    "training 1B": (120, lambda bench: gpu_train.speed(bench, "1B", layers=16)),
    "training 8B": (120, lambda bench: gpu_train.speed(bench, "8B", layers=4)),
}


def _late(signum: int, frame: object) -> None:
    raise TimeoutError("the check's time is up")


def run(bench: Bench, name: str, seconds: int) -> Result:
    """Run one check within its time; return what it found, or how it failed."""
    start = time.perf_counter()
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(max(1, seconds))
    try:
        found = CHECKS[name][1](bench)
    except Exception:
        found = {"failed": traceback.format_exc()}
    finally:
        signal.alarm(0)
        bench.free()
    return found | {"took s": round(time.perf_counter() - start, 1)}


def shown(value: object) -> object:
    """Return a value with numbers cut to what can be read."""
    if isinstance(value, dict):
        return {key: shown(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shown(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="everything at toy size, also on a processor")
    parser.add_argument("--out", type=Path, help="a JSON file of all results; $OUT/gpu.json where OUT is set")
    parser.add_argument("--budget", type=int, default=580, help="seconds in all; what has no time left is not run")
    parser.add_argument("--only", nargs="*", help="names of checks, or their first words")
    options = parser.parse_args()
    out = options.out or (Path(os.environ["OUT"]) / "gpu.json" if os.environ.get("OUT") else None)
    if not torch.cuda.is_available() and not options.small:
        parser.error("this PyTorch sees no CUDA device; --small runs everything at toy size on a processor")
    bench, start = Bench(small=options.small), time.monotonic()
    for name, (seconds, _) in CHECKS.items():
        left = options.budget - (time.monotonic() - start)
        if options.only and not any(name.startswith(word) for word in options.only):
            continue
        print(f"\n## {name}", flush=True)
        found = run(bench, name, min(seconds, int(left))) if left > 5 else {"failed": "no time left"}
        bench.results[name] = found
        print(found.get("failed") or json.dumps(shown(found), indent=1, default=str), flush=True)
        if out:
            out.write_text(json.dumps(bench.results, indent=1, default=str) + "\n")
    failed = [name for name, found in bench.results.items() if "failed" in found]
    print(f"\n{len(bench.results) - len(failed)} of {len(bench.results)} checks ran; failed: {failed or 'none'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
