"""GGUF, llama.cpp's format: weights, vocabulary and chat template in one file, written through the `gguf` package.

    herd's name                        in the file                  there
    layers.N.attention.wq, .wk         blk.N.attn_q, .attn_k        rows in neighbouring pairs (RoPE), as Meta's
    norms                              ..._norm                     float32 in every file
    config.rope_scaling                rope_freqs                   base over scaled frequency, one number a pair
    output (tied)                      -                            left out

It is read back without that package.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from herd.base.config import validate
from herd.base.errors import ConfigError, DataError, HerdError
from herd.model.config import ModelConfig, RopeScaling
from herd.model.gguf_file import GGUF_DTYPES, read_gguf_header
from herd.model.meta import to_halves, to_pairs
from herd.model.published import PUBLISHED
from herd.model.rope import inverse_frequencies
from herd.model.source import Shape, Source, check_tensors, expected_shapes
from herd.model.tensorfile import Entry, bytes_of, read, sync

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, CONTROL = 1, 3  # GGUF's token types

_LAYER = {
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
_TOP = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}
_ROTATED = (".wq.weight", ".wk.weight")
_FACTORS = "rope_freqs.weight"

# metadata under "llama." and the config's field
_SHAPE = {
    "context_length": "max_positions",
    "embedding_length": "dim",
    "block_count": "n_layers",
    "feed_forward_length": "ffn_hidden",
    "attention.head_count": "n_heads",
    "attention.head_count_kv": "n_kv_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_HEAD_SIZES = ("attention.value_length", "rope.dimension_count")
_NEEDED = tuple(key for key in _SHAPE if key.split(".")[-1] not in ("head_count_kv", "key_length", "freq_base"))
_SCALING = "herd.rope_scaling."  # GGUF has only the factors; a scaling can't be told from them when heads are small
_TOKENIZER = "tokenizer.ggml."
_IDS = {"bos": "bos_id", "eos": "eos_id", "eot": "eot_id", "eom": "eom_id", "padding": "pad_id"}
_MODEL, _PRE = "gpt2", "llama-bpe"
_FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}
_KINDS = {dtype: kind for kind, dtype in GGUF_DTYPES.items()}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as plain data. `tokens` by id, text ones in GPT-2's byte characters; `merges` as 'LEFT RIGHT'."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    bos_id: int
    eos_id: int
    eot_id: int | None = None
    eom_id: int | None = None
    pad_id: int | None = None
    chat_template: str | None = None


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of one of herd's parameters."""
    stem = name.removesuffix(".weight")
    if stem.startswith("layers."):
        _, layer, rest = stem.split(".", 2)
        return f"blk.{layer}.{_LAYER[rest]}.weight"
    return f"{_TOP[stem]}.weight"


def stored_as(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the number format of one of herd's parameters in a file of `dtype`: norms stay float32."""
    return torch.float32 if name.endswith("norm.weight") else dtype


def write_gguf(
    source: Source,
    vocabulary: Vocabulary,
    path: Path,
    *,
    dtype: torch.dtype,
    name: str,
    advance: Callable[[str], None] = lambda name: None,
) -> None:
    """Write one file, whole or not at all, with one tensor in memory at a time.

    `name` is what llama.cpp shows; `advance` is called with each parameter's name when it is written. Raises
    HerdError without the `gguf` package, ConfigError on a number format other than float32, float16 and bfloat16, or
    on a vocabulary that doesn't fit the embedding.
    """
    try:
        from gguf import GGUFWriter
    except ModuleNotFoundError:
        raise HerdError("writing GGUF needs the `gguf` extra: pip install 'herd[gguf]'") from None
    config = source.config
    if dtype not in _KINDS:
        raise ConfigError(f"GGUF in {str(dtype).removeprefix('torch.')}: only fp32, fp16 and bf16 are written")
    if len(vocabulary.tokens) != config.vocab_size:
        raise ConfigError(
            f"the vocabulary has {len(vocabulary.tokens)} ids and the embedding {config.vocab_size} rows; "
            "they belong to different models"
        )
    temporary = path.with_name(f".{path.name}.tmp")
    writer = GGUFWriter(temporary, "llama")
    try:
        _describe(writer, config, name, dtype)
        _describe_vocabulary(writer, vocabulary)
        _write_tensors(writer, source, dtype, advance)
    finally:
        writer.close()
    sync(temporary)
    temporary.replace(path)


def rope_factors(config: ModelConfig) -> Tensor | None:
    """Return the [head_size / 2] numbers by which llama.cpp divides RoPE's frequencies; None when none is scaled."""
    if config.rope_scaling is None:
        return None
    return inverse_frequencies(config.model_copy(update={"rope_scaling": None})) / inverse_frequencies(config)


def _describe(writer: "GGUFWriter", config: ModelConfig, name: str, dtype: torch.dtype) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[dtype])
    values = config.model_dump() | {"head_dim": config.head_size}
    for key, field in _SHAPE.items():
        add = writer.add_float32 if isinstance(values[field], float) else writer.add_uint32
        add(f"llama.{key}", values[field])
    for key in _HEAD_SIZES:
        writer.add_uint32(f"llama.{key}", config.head_size)
    for field, value in config.rope_scaling or ():
        writer.add_float64(f"{_SCALING}{field}", value)


def _describe_vocabulary(writer: "GGUFWriter", vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(_MODEL)
    writer.add_tokenizer_pre(_PRE)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for key, field in _IDS.items():
        if (value := getattr(vocabulary, field)) is not None:
            writer.add_uint32(f"{_TOKENIZER}{key}_token_id", value)
    writer.add_add_bos_token(True)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _write_tensors(writer: "GGUFWriter", source: Source, dtype: torch.dtype, advance: Callable[[str], None]) -> None:
    """Announce all tensors, then write the metadata and one tensor after another in the same order."""
    from gguf import GGMLQuantizationType

    factors = rope_factors(source.config)

    def announce(name: str, shape: Shape, form: torch.dtype) -> None:
        n_bytes = torch.Size(shape).numel() * form.itemsize
        kind = GGMLQuantizationType(_KINDS[form])
        writer.add_tensor_info(name, shape, np.dtype(f"u{form.itemsize}"), n_bytes, raw_dtype=kind)  # `kind` counts

    if factors is not None:
        announce(_FACTORS, tuple(factors.shape), factors.dtype)
    for name in source.names():
        announce(gguf_name(name), source.shape(name), stored_as(name, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(bytes_of(factors))
    for name in source.names():
        tensor = source.read(name).to(stored_as(name, dtype))
        if name.endswith(_ROTATED):
            tensor = to_pairs(tensor, source.config.head_size)
        writer.write_tensor_data(bytes_of(tensor.contiguous()))
        advance(name)


class GGUFSource:
    """The weights of a GGUF file that isn't quantised, and its vocabulary."""

    config: ModelConfig
    vocabulary: Vocabulary

    def __init__(self, path: Path) -> None:
        """Read the file's header. Raises DataError or ConfigError on a damaged file, or one that isn't a Llama's."""
        metadata, self._entries = read_gguf_header(path)
        self.vocabulary = _vocabulary(metadata, path)
        factors = self._entries.pop(_FACTORS, None)
        self.config = _config(metadata, factors, tied="output.weight" not in self._entries, path=path)
        found = {name: entry.shape for name, entry in self._entries.items()}
        wanted = {gguf_name(name): shape for name, shape in expected_shapes(self.config).items()}
        check_tensors(found, wanted, where=path, config_name="its metadata")
        if len(self.vocabulary.tokens) != self.config.vocab_size:
            raise DataError(f"{path}: {len(self.vocabulary.tokens)} tokens, and vocab_size {self.config.vocab_size}")

    def names(self) -> list[str]:
        return list(expected_shapes(self.config))

    def shape(self, name: str) -> Shape:
        return self._entries[gguf_name(name)].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entries[gguf_name(name)].dtype

    def read(self, name: str) -> Tensor:
        tensor = read(self._entries[gguf_name(name)])
        return to_halves(tensor, self.config.head_size) if name.endswith(_ROTATED) else tensor


def _config(metadata: Mapping[str, Any], factors: Entry | None, *, tied: bool, path: Path) -> ModelConfig:
    if metadata.get("general.architecture") != "llama":
        raise DataError(f"{path}: its architecture is {metadata.get('general.architecture')!r:.40}, not 'llama'")
    said = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    if missing := [key for key in _NEEDED if key not in said]:
        raise DataError(f"{path}: key llama.{missing[0]} is missing")
    if unknown := [key for key in said if key not in (*_SHAPE, *_HEAD_SIZES)]:
        raise DataError(f"{path}: key llama.{unknown[0]} is not known to herd and may change what the model computes")
    values = {field: said[key] for key, field in _SHAPE.items() if key in said}
    # what a file leaves out has llama.cpp's defaults
    values = {"n_kv_heads": values["n_heads"], "rope_theta": 10_000.0, "tie_embeddings": tied} | values
    config = validate(ModelConfig, values, where=str(path))
    if wrong := [key for key in _HEAD_SIZES if said.get(key, config.head_size) != config.head_size]:
        raise DataError(f"{path}: llama.{wrong[0]} is {said[wrong[0]]!r:.40}, and a head has {config.head_size}")
    if factors is None:
        return config
    return config.model_copy(update={"rope_scaling": _scaling(metadata, config, factors)})


def _scaling(metadata: Mapping[str, Any], config: ModelConfig, entry: Entry) -> RopeScaling:
    """Return the scaling that the file names, or the published one, whose factors are those in the file."""
    said = {field: metadata[_SCALING + field] for field in RopeScaling.model_fields if _SCALING + field in metadata}
    published = [found.config.rope_scaling for found in PUBLISHED.values()]
    for scaling in [validate(RopeScaling, said, where=str(entry.file))] if said else filter(None, published):
        wanted = rope_factors(config.model_copy(update={"rope_scaling": scaling}))
        assert wanted is not None
        # others compute them in double precision
        if entry.shape == tuple(wanted.shape) and torch.allclose(read(entry).float(), wanted, rtol=1e-5, atol=0):
            return scaling
    raise DataError(f"{entry.file}: its {_FACTORS} are not those of {said or 'a published Llama'}")


def _vocabulary(metadata: Mapping[str, Any], path: Path) -> Vocabulary:
    said = {key.removeprefix(_TOKENIZER): value for key, value in metadata.items() if key.startswith(_TOKENIZER)}
    if (said.get("model"), said.get("pre")) != (_MODEL, _PRE):
        raise DataError(f"{path}: its tokenizer is {said.get('pre', said.get('model'))!r:.40}, not Llama 3's {_PRE!r}")
    lists = {"tokens": str, "token_type": int, "merges": str}
    for key, item in lists.items():
        values = said.setdefault(key, [])
        if not isinstance(values, list) or not all(type(value) is item for value in values):
            raise DataError(f"{path}: {_TOKENIZER}{key} is not a list of {item.__name__}")
    ids: dict[str, Any] = {field: said.get(f"{key}_token_id") for key, field in _IDS.items()}
    n_tokens = len(said["tokens"])
    if len(said["token_type"]) != n_tokens:
        raise DataError(f"{path}: {n_tokens} tokens and {len(said['token_type'])} token types")
    for field, value in ids.items():
        left_out = value is None and field not in ("bos_id", "eos_id")
        if not left_out and (type(value) is not int or not 0 <= value < n_tokens):
            raise DataError(f"{path}: {field} {value!r:.40} is none of its {n_tokens} tokens")
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise DataError(f"{path}: tokenizer.chat_template is not text")
    tokens, types, merges = (tuple(said[key]) for key in lists)
    return Vocabulary(tokens, types, merges, **ids, chat_template=template)
