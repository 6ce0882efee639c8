"""Who is trained in `train.py`: herd's own loop, and the loops that people write around other models.

    herd:eager compiled          fit, NextToken, Optimizer: bfloat16 weights, float32 masters; compiled: each block
    transformers:eager compiled  LlamaForCausalLM(...).loss under autocast, torch.compile of the model
    litgpt:eager compiled        GPT and its own chunked cross-entropy under autocast, as its `pretrain`
    torchtune:eager compiled     llama3 and its own chunked output and loss under autocast, as its recipes; it compiles
                                 each layer and the loss
    transformers:padded          whole documents padded to the longest of a batch, float32, AdamW as it comes
    transformers:padded-bf16     the same under autocast, fused AdamW
    transformers:joined          documents end to end in full rows, attention across documents, autocast, fused AdamW

    any of these + "+kept"       with herd's settings of the C library's allocator (herd/runtime/allocator.py)

All start from the same weights and, where rows are whole, see the same ids; AdamW with herd's constants, weight decay
on matrices only, gradients clipped to norm 1. The last three take documents of their own packing, and don't clip.
Gradients of herd are bfloat16 before they meet the float32 masters; those of autocast are float32.
"""

import contextlib
import ctypes
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from herd.model.config import ModelConfig
from herd.model.hf import hf_name
from herd.model.transformer import Transformer
from herd.runtime.allocator import keep_freed_memory
from herd.train.batch import Batch, Example
from herd.train.config import OptimConfig
from herd.train.feed import ExampleSource, Feed, PackedFeed
from herd.train.loop import State, fit
from herd.train.objective import NextToken
from herd.train.optim import Optimizer

OPTIM = OptimConfig(learning_rate=1e-3, warmup_steps=0, schedule="constant")
PAD = 0


@dataclass(frozen=True)
class Task:
    """A model, rows a step, and their length; `documents`: lengths of documents that fill them, None: whole rows."""

    model: ModelConfig
    rows: int
    length: int
    documents: tuple[int, int] | None = None

    @property
    def tokens(self) -> int:
        """Places a step."""
        return self.rows * self.length


class Trainer:
    """Makes updates when told; `_step` returns the tokens that carried a loss, and the mean loss."""

    _step: Callable[[], tuple[int, Tensor | float]]
    _losses: tuple[float, ...] = ()

    def train(self, steps: int, urgent: bool = False) -> float:
        """Make an update to come back into memory and caches, then so many by the clock; return tokens a second.

        urgent: at a real-time priority, for a machine that others use.
        """
        with _urgency(urgent):
            return self._train(steps)

    def _train(self, steps: int) -> float:
        losses, tokens = [float(self._step()[1])], 0
        began = time.perf_counter()
        for _ in range(steps):
            count, loss = self._step()
            tokens += count
            losses.append(float(loss))
        seconds = time.perf_counter() - began
        self._losses += tuple(losses)
        ctypes.CDLL(None).malloc_trim(0)  # eight processes that all keep what they freed are too many
        return tokens / seconds

    def losses(self) -> tuple[float, ...]:
        """Return the mean losses of all updates so far."""
        return self._losses

    def peak(self) -> float:
        """Return the most MiB this process has held since the last call, or since it began."""
        status = Path("/proc/self/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+)", status)
        assert found
        Path("/proc/self/clear_refs").write_text("5")
        return int(found[1]) / 2**10


@contextlib.contextmanager
def _urgency(urgent: bool) -> Iterator[None]:
    if not urgent:
        yield
        return
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    for thread in threads:
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(20))
    yield
    for thread in threads:
        os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


class Herd(Trainer):
    """herd's own loop, put together as the stages do."""

    def __init__(self, task: Task, kind: str) -> None:
        model, feed = drawn(task.model), _feed(task)
        optimizer = Optimizer(model.named_parameters(), OPTIM, steps=1 << 30, dtype=torch.bfloat16)
        if kind == "compiled":
            for block in model.layers:
                block.compile()
        state = State()

        def step() -> tuple[int, float]:
            nonlocal state
            before = state.tokens
            state = fit(model, NextToken(), feed, optimizer, steps=state.step + 1, state=state)
            return state.tokens - before, state.figures["loss"]

        self._step = step


class Matmul(Trainer):
    """The rate of bfloat16 matrix products, the best of some sizes."""

    def __init__(self, task: Task, kind: str) -> None:
        """Nothing is trained."""

    def rate(self, urgent: bool) -> float:
        """Return FLOP/s."""
        with _urgency(urgent):
            return self._rate()

    def _rate(self) -> float:
        best = 0.0
        for size in (512, 1024, 2048):
            a, b = (torch.randn(size, size).bfloat16() for _ in range(2))
            for _ in range(6):
                began = time.perf_counter()
                a @ b
                best = max(best, 2 * size**3 / (time.perf_counter() - began))
        return best


class Plain(Trainer):
    """A plain loop: what every peer's own comes down to."""

    def _start(self, model: nn.Module, loss: Callable[..., Tensor], batches: Iterator[tuple[Tensor, ...]]) -> None:
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        optimizer = torch.optim.AdamW(
            [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
            lr=OPTIM.learning_rate,
            betas=(OPTIM.beta1, OPTIM.beta2),
            weight_decay=OPTIM.weight_decay,
            fused=True,
        )

        def step() -> tuple[int, Tensor]:
            batch = next(batches)
            with torch.autocast("cpu", torch.bfloat16):
                mean = loss(*batch)
            mean.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return batch[0].numel(), mean.detach()

        self._step = step


class Transformers(Plain):
    """transformers' LlamaForCausalLM."""

    def __init__(self, task: Task, kind: str) -> None:
        model = llama(task)
        if task.documents:
            self._documents(model, task, kind)
            return
        run = torch.compile(model) if kind == "compiled" else model
        # labels are already shifted: the last place of a row has a target too, as in all other loops
        self._start(model, lambda x, y: run(input_ids=x, labels=y, shift_labels=y).loss, whole_rows(task))

    def _documents(self, model: nn.Module, task: Task, kind: str) -> None:
        fused = None if kind == "padded" else True
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=OPTIM.learning_rate, betas=(OPTIM.beta1, OPTIM.beta2), fused=fused
        )
        batches = joined(task) if kind == "joined" else padded(task)

        def step() -> tuple[int, Tensor]:
            batch = next(batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=kind != "padded"):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            # transformers shifts the labels: the first of a row is never predicted
            return int((batch["labels"][:, 1:] != -100).sum()), loss.detach()

        self._step = step


class LitGPT(Plain):
    """litgpt's GPT."""

    def __init__(self, task: Task, kind: str) -> None:
        from litgpt import GPT, Config
        from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
        from litgpt.utils import chunked_cross_entropy

        shape = task.model
        config = Config(
            block_size=task.length,
            n_layer=shape.n_layers,
            n_embd=shape.dim,
            n_head=shape.n_heads,
            n_query_groups=shape.n_kv_heads,
            intermediate_size=shape.ffn_hidden,
            vocab_size=shape.vocab_size,
            padded_vocab_size=shape.vocab_size,
            norm_class_name="RMSNorm",
            norm_eps=shape.norm_eps,
            mlp_class_name="LLaMAMLP",
            rope_base=int(shape.rope_theta),
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
        )
        model, state = GPT(config), {}
        copy_weights_hf_llama(config, {}, state, hf_weights(shape))
        model.load_state_dict(state)
        run = torch.compile(model) if kind == "compiled" else model
        self._start(model, lambda x, y: chunked_cross_entropy(run(x), y), whole_rows(task))


class TorchTune(Plain):
    """torchtune's llama3."""

    def __init__(self, task: Task, kind: str) -> None:
        from torchtune.models.convert_weights import hf_to_tune
        from torchtune.models.llama3._component_builders import llama3
        from torchtune.modules.loss import CEWithChunkedOutputLoss
        from torchtune.training import compile_loss, compile_model

        shape = task.model
        model = llama3(
            vocab_size=shape.vocab_size,
            num_layers=shape.n_layers,
            num_heads=shape.n_heads,
            num_kv_heads=shape.n_kv_heads,
            embed_dim=shape.dim,
            max_seq_len=task.length,
            rope_base=int(shape.rope_theta),
            intermediate_dim=shape.ffn_hidden,
            norm_eps=shape.norm_eps,
        )
        sizes = {"num_heads": shape.n_heads, "num_kv_heads": shape.n_kv_heads, "dim": shape.dim}
        model.load_state_dict(hf_to_tune(hf_weights(shape), **sizes))
        loss = CEWithChunkedOutputLoss()
        model.set_num_output_chunks(loss.num_output_chunks)
        if kind == "compiled":
            compile_model(model, verbose=False)
            compile_loss(loss, verbose=False)
        self._start(model, lambda x, y: loss(model(x), y), whole_rows(task))


TRAINERS: Mapping[str, type[Trainer]] = {
    "herd": Herd,
    "transformers": Transformers,
    "litgpt": LitGPT,
    "torchtune": TorchTune,
}


def start(trainer: type[Trainer], task: Task, kind: str, threads: int, kept: bool) -> Trainer:
    """Return a trainer in a fresh process; kept: with the allocator set as herd itself sets it."""
    torch.set_num_threads(threads)
    if kept or trainer is Herd:
        keep_freed_memory()
    return trainer(task, kind)


def drawn(shape: ModelConfig) -> Transformer:
    """Return herd's model with the weights that all start from."""
    model = Transformer(shape)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def hf_weights(shape: ModelConfig) -> dict[str, Tensor]:
    """Return the same weights by Hugging Face's names."""
    return {hf_name(name): tensor.clone() for name, tensor in drawn(shape).state_dict().items()}


def llama(task: Task) -> nn.Module:
    """Return LlamaForCausalLM with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = task.model
    config = LlamaConfig(
        hidden_size=shape.dim,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        intermediate_size=shape.ffn_hidden,
        vocab_size=shape.vocab_size,
        max_position_embeddings=task.length,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tie_embeddings,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).train()
    model.load_state_dict(hf_weights(shape))
    return model


# --- what they are fed


def whole_rows(task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ids and targets, [rows, length] each; frequencies are Zipf's, so there is something to learn."""
    rng = np.random.default_rng(0)
    chances = _zipf(task.model.vocab_size)
    while True:
        ids = torch.from_numpy(rng.choice(task.model.vocab_size, (task.rows, task.length + 1), p=chances))
        yield ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


class RowFeed:
    """The same as herd's batches: each row is one document."""

    def __init__(self, task: Task) -> None:
        self._rows = whole_rows(task)

    def __next__(self) -> Batch:
        tokens, targets = next(self._rows)
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        return Batch(tokens, targets, torch.ones(tokens.shape), torch.zeros_like(tokens), positions)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing is ever resumed here."""


def _feed(task: Task) -> Feed:
    if not task.documents:
        return RowFeed(task)
    source = ExampleSource([Example(ids) for ids in texts(task)], row_length=task.length)
    return PackedFeed(source, rows=task.rows, row_length=task.length, pad_id=PAD, seed=0)


def texts(task: Task, count: int = 4000) -> list[np.ndarray]:
    """Return random documents; id 0 is kept for padding."""
    assert task.documents
    rng = np.random.default_rng(0)
    lengths = rng.integers(task.documents[0], task.documents[1] + 1, count)
    vocab = task.model.vocab_size - 1
    return [rng.choice(vocab, n, p=_zipf(vocab)) + 1 for n in lengths]


def padded(task: Task) -> Iterator[dict[str, Tensor]]:
    """Yield batches of as many documents as fill one of herd's on average, padded to the longest."""
    assert task.documents
    documents, rng = texts(task), np.random.default_rng(0)
    size = round(task.tokens / (sum(task.documents) / 2))
    while True:
        order = rng.permutation(len(documents))
        for start in range(0, len(order) - size + 1, size):
            rows = [torch.from_numpy(documents[i]) for i in order[start : start + size]]
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
            mask = ids != PAD
            yield {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}


def joined(task: Task) -> Iterator[dict[str, Tensor]]:
    """Yield full rows cut from all documents end to end: no padding, and no wall between documents."""
    documents, rng = texts(task), np.random.default_rng(0)
    while True:
        stream = torch.from_numpy(np.concatenate([documents[i] for i in rng.permutation(len(documents))]))
        for piece in stream.split(task.tokens):
            if len(piece) == task.tokens:
                rows = piece.view(-1, task.length)
                yield {"input_ids": rows, "labels": rows}


def _zipf(count: int) -> np.ndarray:
    frequency = 1.0 / np.arange(1, count + 1)
    return frequency / frequency.sum()
