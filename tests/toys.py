"""Toy models, shards and feeds that several test files share: small, seeded, float32."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.base.ledger import Record
from herd.model.config import ModelConfig
from herd.model.hf import write_hf
from herd.model.source import WeightsSource
from herd.model.transformer import Transformer
from herd.model.weights import write_hf_configs
from herd.runtime.signals import StopSignals
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.shard_writer import write_shards
from herd.tokenizer.shards import TokenShards
from herd.train.attempt import Attempt
from herd.train.batch import Example
from herd.train.clock import Clock
from herd.train.config import OptimConfig
from herd.train.heart import Heart

TOY = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_hidden=48, vocab_size=61, max_positions=96, norm_eps=1e-5
)


def toy_model(config: ModelConfig = TOY, *, seed: int = 0, std: float = 0.2) -> Transformer:
    """Draw a model whose attention is far from uniform, as a fresh one's isn't."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            mean = 1.0 if parameter.dim() < 2 else 0.0
            parameter.normal_(mean, std, generator=generator)
    return model


def toy_documents(lengths: Sequence[int], *, vocab_size: int = TOY.vocab_size, seed: int = 0) -> list[list[int]]:
    """Draw documents of so many ids whose next token depends on the last two, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    documents = []
    for length in lengths:
        ids = rng.integers(0, vocab_size, 2).tolist()
        while len(ids) < length:
            guess = (3 * ids[-1] + ids[-2] + 1) % vocab_size
            ids.append(int(guess if rng.random() < 0.8 else rng.integers(vocab_size)))
        documents.append(ids[:length])
    return documents


def toy_shards(
    folder: Path, *, documents: int = 40, longest: int = 60, seed: int = 0, file_tokens: int = 1 << 30
) -> TokenShards:
    """Write shards of random lengths in two languages."""
    lengths = np.random.default_rng(seed).integers(2, longest + 1, documents).tolist()
    keys = [("en", "story"), ("de", "code")]
    rows = [(ids, keys[i % 2]) for i, ids in enumerate(toy_documents(lengths, seed=seed))]
    return write_shards(folder, rows, vocab_size=TOY.vocab_size, file_tokens=file_tokens)


def toy_examples(lengths: Sequence[int], *, seed: int = 0, share: float = 0.6) -> list[Example]:
    """Draw examples in which about `share` of the ids carry loss, with weights other than 1 among them."""
    rng = np.random.default_rng(seed)
    examples = []
    for ids in toy_documents(lengths, seed=seed):
        weights = (rng.random(len(ids)) < share) * rng.choice([0.5, 1.0, 2.0], len(ids))
        weights[-1] = 1.0
        examples.append(Example(np.array(ids), weights.astype(np.float32)))
    return examples


def optim(**changes: float | int | str) -> OptimConfig:
    """Return optimizer settings that learn within tens of steps."""
    return OptimConfig(**{"learning_rate": 1e-2, "warmup_steps": 4, **changes})  # type: ignore[arg-type]


def attempt(
    folder: Path,
    tell: Callable[[str, Mapping[str, Any]], None] = lambda event, facts: None,
    *,
    ranks: int = 1,
    **heart: Any,
) -> Attempt:
    """Return an attempt at a step of a run whose heart doesn't beat by itself."""
    (folder / "attempts").mkdir(parents=True, exist_ok=True)
    start = Record("r0001", "start", "pretrain")
    return Attempt(start, Heart(folder / "attempts", start.id, Clock(), **heart), StopSignals(), tell, ranks)


def byte_tokenizer() -> Tokenizer:
    """Return the tokenizer without merges: 256 bytes and 256 special tokens."""
    return Tokenizer({bytes((byte,)): byte for byte in range(256)})


def save_model(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    folder: Path,
    *,
    bos_id: int,
    eos_ids: list[int],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write weights, by herd's names, and the configs of a Hugging Face directory."""
    write_hf(WeightsSource(weights, config), folder, dtype=dtype)
    write_hf_configs(config, folder, bos_id=bos_id, eos_ids=eos_ids, dtype=dtype)
