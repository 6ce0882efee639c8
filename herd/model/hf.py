"""Hugging Face's model directories: names, sharded safetensors with an index, and the same written in a stream."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from herd.base.errors import DataError
from herd.base.files import write_atomic
from herd.model.config import ModelConfig
from herd.model.source import Shape, Source, check_tensors, expected_shapes
from herd.model.tensorfile import Entry, read, safetensors_entries, write_safetensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000

_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_BUFFER = ".rotary_emb.inv_freq"  # older files carry the table, which is computed


def hf_name(name: str) -> str:
    """Return Hugging Face's name of one of herd's parameters."""
    stem = name.removesuffix(".weight")
    if stem.startswith("layers."):
        _, layer, rest = stem.split(".", 2)
        return f"model.layers.{layer}.{_LAYER[rest]}.weight"
    return f"{_TOP[stem]}.weight"


class HFSource:
    """The weights of a Hugging Face directory."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        """Read the files' headers. Raises DataError naming a damaged file or a missing, surplus or misshapen tensor."""
        self.config = config
        self._entries: dict[str, Entry] = {}
        for file in _files(folder):
            entries = safetensors_entries(file)
            if twice := sorted(self._entries.keys() & entries.keys()):
                other = self._entries[twice[0]].file.name
                raise DataError(
                    f"{folder}: {twice[0]} is in {other} and in {file.name}; take out the file that is not meant"
                )
            self._entries |= entries
        found = {name: e.shape for name, e in self._entries.items() if not name.endswith(_BUFFER)}
        if config.tie_embeddings:
            found.pop("lm_head.weight", None)  # transformers doesn't read it either
        wanted = {hf_name(name): shape for name, shape in expected_shapes(config).items()}
        check_tensors(found, wanted, where=folder, config_name="config.json")

    def names(self) -> list[str]:
        return list(expected_shapes(self.config))

    def shape(self, name: str) -> Shape:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).dtype

    def read(self, name: str) -> Tensor:
        return read(self._entry(name))

    def _entry(self, name: str) -> Entry:
        return self._entries[hf_name(name)]


def _files(folder: Path) -> list[Path]:
    """Return the weight files of a directory. Raises DataError when there are none, or the index names others."""
    index = folder / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise DataError(f"{index}: not an index of weights ({error!r:.80})") from None
        if bad := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
            raise DataError(f"{index}: {bad[0]!r} is not the name of a file in this folder")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise DataError(
                f"{folder}: shard {missing[0]} is missing, {len(missing)} of {len(names)} are; copy them again"
            )
        return [folder / name for name in names]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = " (it reads no pickled .bin: convert them)" if any(folder.glob("*.bin")) else ""
        raise DataError(f"{folder}: no .safetensors file, so there are no weights to load{pickled}")
    return files


def write_hf(
    source: Source,
    folder: Path,
    *,
    dtype: torch.dtype,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    advance: Callable[[str], None] = lambda name: None,
) -> None:
    """Write the weights as one safetensors file, or as shards and their index, one tensor in memory at a time.

    `advance` is called with each name when it is written. Each file appears whole or not at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {hf_name(name): name for name in source.names()}

    def produce(name: str) -> Tensor:
        tensor = source.read(names[name])
        advance(names[name])
        return tensor

    shards = _shards({theirs: source.shape(ours) for theirs, ours in names.items()}, dtype, max_shard_bytes)
    weight_map = {}
    for number, shapes in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        temporary = folder / f".{name}.tmp"
        write_safetensors(temporary, shapes, dtype, produce)
        temporary.replace(folder / name)
        weight_map |= dict.fromkeys(shapes, name)
    if len(shards) > 1:
        size = sum(prod(shape) for shapes in shards for shape in shapes.values()) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_atomic(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _shards(shapes: dict[str, Shape], dtype: torch.dtype, limit: int) -> list[dict[str, Shape]]:
    """Cut the tensors, in order, into groups of at most `limit` bytes (a larger tensor alone)."""
    groups: list[dict[str, Shape]] = [{}]
    size = 0
    for name, shape in shapes.items():
        n_bytes = prod(shape) * dtype.itemsize
        if groups[-1] and size + n_bytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = shape
        size += n_bytes
    return groups
