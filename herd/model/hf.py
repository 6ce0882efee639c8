"""Hugging Face's model directories: names, sharded safetensors with an index, and the same written in a stream."""

import json
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.base.errors import DataError
from herd.base.files import write_atomic
from herd.model.config import ModelConfig
from herd.model.packing import Packing
from herd.model.quant_files import Scheme, quantization_config
from herd.model.source import Shape, Source, check_tensors, expected_shapes, linear_shapes
from herd.model.tensorfile import Entry, read, safetensors_entries, write_safetensors

Kind = tuple[Shape, torch.dtype]

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
    stem, part = name.rsplit(".", 1)
    if stem.startswith("layers."):
        _, layer, rest = stem.split(".", 2)
        return f"model.layers.{layer}.{_LAYER[rest]}.{part}"
    return f"{_TOP[stem]}.{part}"


class HFSource:
    """The weights of a Hugging Face directory."""

    def __init__(self, folder: Path, config: ModelConfig, schemes: Iterable[Scheme] = ()) -> None:
        """Read the files' headers. Raises DataError naming a damaged file or a missing, surplus or misshapen tensor.

        schemes: how matrices may be quantised, from the folder's config.json.
        """
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
        plan = _plan(found, config, tuple(schemes), where=folder)
        expected = expected_shapes(config, plan)
        check_tensors(
            found, {hf_name(name): s for name, s in expected.items()}, where=folder, config_name="config.json"
        )
        self._names = list(expected)
        self._check_numbers(plan)

    def _check_numbers(self, plan: dict[str, Packing]) -> None:
        """Compare number formats, and the shapes that quantised matrices carry. Raises DataError."""
        shapes = linear_shapes(self.config)
        packed = {f"{n}.{part}": kind[1] for n, p in plan.items() for part, kind in p.tensors(shapes[n]).items()}
        for name in self._names:
            entry, wanted = self._entry(name), packed.get(name)
            if entry.dtype != wanted if wanted else not entry.dtype.is_floating_point:
                wanted_name = str(wanted or "a float").removeprefix("torch.")
                raise DataError(
                    f"{entry.file}: {hf_name(name)} is {str(entry.dtype).removeprefix('torch.')}, not {wanted_name}; "
                    "herd reads no such weights"
                )
        for name in plan:
            if (stored := self.read(f"{name}.weight_shape").tolist()) != list(shapes[name]):
                raise DataError(
                    f"{self._entry(f'{name}.weight_shape').file}: {hf_name(f'{name}.weight_shape')} holds {stored}, "
                    f"config.json says {list(shapes[name])}"
                )

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> Shape:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).dtype

    def read(self, name: str) -> Tensor:
        return read(self._entry(name))

    def _entry(self, name: str) -> Entry:
        return self._entries[hf_name(name)]


def _plan(
    found: dict[str, Shape], config: ModelConfig, schemes: tuple[Scheme, ...], *, where: Path
) -> dict[str, Packing]:
    """Return which linear layers are packed in files, each by the scheme that its tensors' shapes agree with.

    Where none agrees it is by the first, so that the tensors are found misshapen.
    """
    plan = {}
    for name, (n, k) in linear_shapes(config).items() if schemes else ():
        if hf_name(f"{name}.weight_packed") not in found:
            continue
        packings = [p for p in (Packing(bits, group or k) for bits, group in schemes) if p.fits(k)]
        if not packings:
            raise DataError(f"{where}: {hf_name(f'{name}.weight_packed')}: no group of config.json divides {k}")

        def agrees(packing: Packing, name: str = name, shape: Shape = (n, k)) -> bool:
            return all(found.get(hf_name(f"{name}.{part}")) == s for part, (s, _) in packing.tensors(shape).items())

        plan[name] = next(filter(agrees, packings), packings[0])
    return plan


def hf_quantization(plan: dict[str, Packing], config: ModelConfig) -> dict[str, Any]:
    """Return the `quantization_config` of a plan that treats all layers alike."""
    names = [name for name in linear_shapes(config) if name.startswith("layers.0.")]
    kinds = {name: hf_name(f"{name}.weight").split(".")[-2] for name in names}
    packed = {kinds[name]: plan[name] for name in names if name in plan}
    return quantization_config(packed, [kinds[name] for name in names if name not in plan])


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

    kinds = {theirs: (source.shape(ours), written_as(source, ours, dtype)) for theirs, ours in names.items()}
    shards = _shards(kinds, max_shard_bytes)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        temporary = folder / f".{name}.tmp"
        write_safetensors(temporary, shard, produce)
        temporary.replace(folder / name)
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        size = sum(prod(shape) * dtype.itemsize for shape, dtype in kinds.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_atomic(folder / INDEX, json.dumps(index, indent=2) + "\n")


def written_as(source: Source, name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the number format of a tensor when floats are written as `dtype`: integers stay."""
    own = source.dtype(name)
    return dtype if own.is_floating_point else own


def _shards(kinds: dict[str, Kind], limit: int) -> list[dict[str, Kind]]:
    """Cut the tensors, in order, into groups of at most `limit` bytes (a larger tensor alone)."""
    groups: list[dict[str, Kind]] = [{}]
    size = 0
    for name, (shape, dtype) in kinds.items():
        n_bytes = prod(shape) * dtype.itemsize
        if groups[-1] and size + n_bytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = shape, dtype
        size += n_bytes
    return groups
