"""The training part of gpu.py: one step on rows of 8,192 tokens, as herd makes it and as people write it.

    herd          fit, NextToken, Optimizer: bfloat16 weights, float32 masters; eager, and each block compiled
    transformers  LlamaForCausalLM(...).loss under autocast of float32 weights, clipped, fused AdamW; eager and compiled

The 1B shape is whole; of the 8B shape there are some layers, with the whole head: what a rank of a pipeline holds.
One contestant at a time is on the GPU. Shares of the matrix rate count all scores of attention, or its causal half.
"""

import gc
import traceback
from collections.abc import Callable
from typing import Any

import torch
from gpu_bench import SHAPES, Bench, Result, drawn
from torch import Tensor

from herd.model.attention import attend, document_mask, rows_bias
from herd.model.config import ModelConfig, to_hf
from herd.model.pieces import additive
from herd.train.batch import Batch
from herd.train.config import OptimConfig
from herd.train.loop import State, fit
from herd.train.objective import NextToken
from herd.train.optim import Optimizer

OPTIM = {"learning_rate": 1e-4, "warmup_steps": 0, "schedule": "constant"}
Step = Callable[[], object]


def laws(bench: Bench) -> Result:
    """Hold attention of packed documents, as this device does it, against the same with a mask; gradients too."""
    rows, heads, kv_heads, length, size = (2, 4, 2, 96, 32) if bench.small else (2, 32, 8, 2048, 128)
    generator = torch.Generator().manual_seed(0)
    documents = (torch.rand(rows, length, generator=generator) < 0.01).long().cumsum(1).to(bench.device)

    def numbers(count: int) -> Tensor:
        drawn = torch.randn(rows, count, length, size, generator=generator)
        return drawn.to(bench.device, torch.bfloat16).requires_grad_()

    q, k, v = numbers(heads), numbers(kv_heads), numbers(kv_heads)
    above = numbers(heads).detach()
    ways = rows_bias(documents, q.dtype), additive(document_mask(documents), q.dtype)
    found: Result = {"by": type(ways[0]).__name__}
    results = []
    for way in ways:
        out = attend(q, k, v, way)
        results.append((out, *torch.autograd.grad(out, (q, k, v), above)))
    for name, ours, theirs in zip(("out", "dq", "dk", "dv"), *results, strict=True):
        ours, theirs = ours.detach().float(), theirs.detach().float()
        found[name] = float((ours - theirs).norm() / theirs.norm())
    assert max(found[name] for name in ("out", "dq", "dk", "dv")) < 0.02, f"broken: {found}"
    return found


def speed(bench: Bench, name: str, *, layers: int) -> Result:
    """Time steps of every contestant, one contestant after the other."""
    values: dict[str, Any] = SHAPES["toy" if bench.small else name] | ({} if bench.small else {"n_layers": layers})
    config = ModelConfig(**values)
    rows, length = (2, 128) if bench.small else (1 if name == "8B" else 2, 8192)
    batch = one_batch(config, rows, length, bench.device)
    found: Result = {"parameters": config.parameters(), "rows": rows, "length": length}
    makers: dict[str, Callable[[], Step]] = {
        "herd": lambda: herd(config, batch, compiled=False),
        "herd compiled": lambda: herd(config, batch, compiled=True),
        "herd compiled, 8 documents a row": lambda: herd(config, in_documents(batch, 8), compiled=True),
        "transformers": lambda: transformers(config, batch, compiled=False),
        "transformers compiled": lambda: transformers(config, batch, compiled=True),
    }
    for who, make in makers.items():
        if bench.small and "compiled" in who:
            continue  # minutes on a processor, and nothing new
        try:
            found[who] = _timed(bench, config, make, batch)
        except TimeoutError:
            raise
        except Exception:
            found[f"{who} failed"] = traceback.format_exc(limit=-4)
    for way in ("", " compiled"):
        if f"herd{way}" in found and f"transformers{way}" in found:
            ratio = found[f"herd{way}"]["tokens/s"] / found[f"transformers{way}"]["tokens/s"]
            found[f"herd / transformers{way}"] = ratio
    return found


def _timed(bench: Bench, config: ModelConfig, make: Callable[[], Step], batch: Batch) -> Result:
    gc.collect()
    bench.free()
    torch.compiler.reset()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = make()
    step()
    step()  # by now all is compiled
    seconds = bench.seconds(step, repeat=2 if bench.small else 5)
    tokens, length = batch.tokens.numel(), batch.tokens.shape[1]
    found: Result = {"seconds": seconds, "tokens/s": tokens / seconds}
    for name, causal in (("all", False), ("causal", True)):
        operations = config.flops_per_token(length, causal=causal) * tokens
        found[f"share of matmul rate, {name} scores"] = operations / seconds / bench.rate("matmul FLOP/s")
    if bench.device.type == "cuda":
        found["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return found


class Same:
    """The same batch for ever."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __next__(self) -> Batch:
        return self._batch

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        """There is nothing to go back to."""


def one_batch(config: ModelConfig, rows: int, length: int, device: torch.device) -> Batch:
    """Draw rows of one document each."""
    ids = torch.randint(0, config.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0)).to(device)
    tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    positions = torch.arange(length, device=device).expand_as(tokens)
    return Batch(tokens, targets, torch.ones(tokens.shape, device=device), torch.zeros_like(tokens), positions)


def in_documents(batch: Batch, count: int) -> Batch:
    """Return the same tokens as so many documents a row."""
    length = batch.tokens.shape[1] // count
    return Batch(batch.tokens, batch.targets, batch.weights, batch.positions // length, batch.positions % length)


def herd(config: ModelConfig, batch: Batch, *, compiled: bool) -> Step:
    """Return a step of herd's own loop."""
    model = drawn(config, torch.float32, batch.tokens.device)
    optimizer = Optimizer(model.named_parameters(), OptimConfig(**OPTIM), steps=1 << 30, dtype=torch.bfloat16)
    if compiled:
        for block in model.layers:
            block.compile()
    feed, state = Same(batch), State()

    def step() -> None:
        nonlocal state
        state = fit(model, NextToken(), feed, optimizer, steps=state.step + 1, state=state)

    return step


def transformers(config: ModelConfig, batch: Batch, *, compiled: bool) -> Step:
    """Return a step of a plain loop around transformers' model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    device = batch.tokens.device
    with device:
        model = LlamaForCausalLM(LlamaConfig(**to_hf(config, bos_id=0, eos_ids=[]) | {"use_cache": False})).train()
    run = torch.compile(model) if compiled else model
    optim = OptimConfig(**OPTIM)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.learning_rate, betas=(optim.beta1, optim.beta2), weight_decay=0.1, fused=True
    )

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = run(input_ids=batch.tokens, labels=batch.targets, shift_labels=batch.targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
