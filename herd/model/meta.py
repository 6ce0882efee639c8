"""Meta's original checkpoints: `params.json` and `consolidated.NN.pth`, one file a model-parallel rank.

    wq wk wv w1 w3 output tok_embeddings   cut along rows       [out / mp, in]
    wo w2                                  cut along columns    [out, in / mp]
    norms                                  the same on every rank
    more ranks than key/value heads: each head stands on several ranks in a row

Meta turns neighbouring pairs of a head's dimensions, Hugging Face (and herd) its halves, so rows of wq and wk change
places: the silent error of the field when it is forgotten.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.base.config import validate
from herd.base.errors import ConfigError, DataError
from herd.base.files import write_atomic
from herd.model.config import ModelConfig, RopeScaling
from herd.model.published import CONTEXT, PUBLISHED
from herd.model.source import Shape, Source, check_tensors, expected_shapes
from herd.model.tensorfile import Entry, blank_pth, pth_entries, read, sync, write_entry

PARAMS = "params.json"
_SHARD = re.compile(r"consolidated\.(\d{2})\.pth")
_COLUMNS = (".wo.weight", ".w2.weight")
_NORMS = ("norm.weight",)
_ROTATED = (".wq.weight", ".wk.weight")
_HEADS = (".wk.weight", ".wv.weight")
_BUFFER = "rope.freqs"
_KNOWN = {"dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps"}
_KNOWN |= {"rope_theta", "use_scaled_rope", "max_seq_len", "max_batch_size"}
_KNOWN |= {"rope_scaling", "tie_word_embeddings"}  # herd's own, which Meta's code doesn't read
_SMALL = [entry for entry in PUBLISHED.values() if entry.config.tie_embeddings]


def read_params(folder: Path) -> dict[str, Any]:
    """Read a folder's params.json. Raises DataError."""
    path = folder / PARAMS
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a mapping of names to numbers")
    return values


def meta_config(folder: Path) -> ModelConfig:
    """Return the shape that params.json describes. Raises DataError or ConfigError.

    Its `use_scaled_rope` names no factor: 8, but 32 for the shapes of Llama 3.2 (their config.json says so), whose
    embeddings are tied as well.
    """
    where, values = f"{folder / PARAMS}", read_params(folder)
    if unknown := [key for key, value in values.items() if key not in _KNOWN and value]:
        raise ConfigError(f"{where}: key {unknown[0]!r} is not known to herd and may change what the model computes")
    shape: dict[str, Any] = {key: values.get(key) for key in ("dim", "n_layers", "n_heads", "vocab_size")}
    if bad := [key for key, value in shape.items() if not isinstance(value, int) or not 0 < value < 1 << 32]:
        raise ConfigError(f"{where}: key {bad[0]!r} is missing or no whole number above 0")
    shape["n_kv_heads"] = values.get("n_kv_heads") or values["n_heads"]
    shape["norm_eps"] = values.get("norm_eps", 1e-5)
    shape["rope_theta"] = values.get("rope_theta", 500_000.0)
    shape["ffn_hidden"] = _ffn_hidden(values, where)
    small = any((entry.config.dim, entry.config.n_layers) == (shape["dim"], shape["n_layers"]) for entry in _SMALL)
    scaling = values.get("rope_scaling")
    if scaling is None and values.get("use_scaled_rope"):
        scaling = RopeScaling(factor=32.0 if small else 8.0).model_dump()
    shape["rope_scaling"] = scaling
    shape["max_positions"] = values.get("max_seq_len") or (CONTEXT if scaling else 8192)
    tied = _is_tied(folder, likely=small or bool(values.get("tie_word_embeddings")))
    return validate(ModelConfig, shape | {"tie_embeddings": tied}, where=where)


def _ffn_hidden(values: dict[str, Any], where: str) -> int:
    """Return the SwiGLU width: 8/3 of the model's, times a multiplier, rounded up to a multiple."""
    multiple, multiplier = values.get("multiple_of", 256), values.get("ffn_dim_multiplier")
    plausible = isinstance(multiplier, int | float | None) and 0 < (1 if multiplier is None else multiplier) < 1000
    if not isinstance(multiple, int) or multiple < 1 or not plausible:
        raise ConfigError(f"{where}: multiple_of and ffn_dim_multiplier must be positive numbers")
    hidden = int(8 * values["dim"] / 3)
    hidden = int(multiplier * hidden) if multiplier is not None else hidden
    return -(-hidden // multiple) * multiple


def _is_tied(folder: Path, *, likely: bool) -> bool:
    """Say whether the output matrix is the embedding: not in the files, or (looked at where likely) the same."""
    for file in _shards(folder):
        entries = pth_entries(file)
        if "output.weight" in entries and not (
            likely
            and "tok_embeddings.weight" in entries
            and torch.equal(read(entries["output.weight"]), read(entries["tok_embeddings.weight"]))
        ):
            return False
    return True


def _shards(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.glob("consolidated.*.pth") if _SHARD.fullmatch(file.name))
    if not files:
        raise DataError(f"{folder}: no consolidated.NN.pth beside {PARAMS}, so there are no weights to load")
    numbers = [int(file.name.split(".")[1]) for file in files]
    if numbers != list(range(len(files))) or len(files) & (len(files) - 1):
        raise DataError(
            f"{folder}: found shards {numbers}, and a checkpoint has 1, 2, 4, 8 or 16, from 00 without gaps; "
            "copy the missing ones"
        )
    return files


class MetaSource:
    """The weights of Meta's files, merged over ranks."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        """Read the files' headers. Raises DataError naming a damaged file or a missing, surplus or misshapen tensor."""
        self.config = config
        self._ranks = [pth_entries(file) for file in _shards(folder)]
        for rank, entries in zip(_shards(folder), self._ranks, strict=True):
            entries.pop(_BUFFER, None)
            found = {name: entry.shape for name, entry in entries.items()}
            if config.tie_embeddings:
                found.pop("output.weight", None)
            wanted = rank_shapes(config, self.model_parallel)
            check_tensors(found, wanted, where=rank, config_name=PARAMS)

    @property
    def model_parallel(self) -> int:
        """How many ranks the files are cut into."""
        return len(self._ranks)

    def names(self) -> list[str]:
        return list(expected_shapes(self.config))

    def shape(self, name: str) -> Shape:
        return expected_shapes(self.config)[name]

    def dtype(self, name: str) -> torch.dtype:
        return self._ranks[0][name].dtype

    def read(self, name: str) -> Tensor:
        entries = [ranks[name] for ranks in self._ranks]
        whole = _merge(entries, name, self.config)
        if name.endswith(_ROTATED):
            whole = to_halves(whole, self.config.head_size)
        return whole


def _merge(entries: list[Entry], name: str, config: ModelConfig) -> Tensor:
    """Read the ranks' pieces of one tensor into the whole."""
    if name.endswith(_NORMS):
        return read(entries[0])
    if name.endswith(_HEADS) and len(entries) > config.n_kv_heads:
        entries = entries[:: len(entries) // config.n_kv_heads]
    if len({entry.dtype for entry in entries}) > 1:
        raise DataError(f"{entries[0].file}: {name} has another number format than on other ranks")
    if name.endswith(_COLUMNS):
        return torch.cat([read(entry) for entry in entries], dim=1) if len(entries) > 1 else read(entries[0])
    rows = entries[0].shape[0]
    whole = torch.empty((rows * len(entries), *entries[0].shape[1:]), dtype=entries[0].dtype)
    for i, entry in enumerate(entries):
        read(entry, whole[i * rows : (i + 1) * rows])
    return whole


def to_halves(weight: Tensor, head_size: int) -> Tensor:
    """Reorder the rows of wq or wk [heads * head_size, dim] from neighbouring pairs to halves of a head."""
    return weight.view(-1, head_size // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def to_pairs(weight: Tensor, head_size: int) -> Tensor:
    """Undo `to_halves`."""
    return weight.view(-1, 2, head_size // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def rank_shapes(config: ModelConfig, mp: int) -> dict[str, Shape]:
    """Return the shapes of one rank's tensors. Raises ConfigError when the model can't be cut into `mp`."""
    for what, count in (
        ("n_heads", config.n_heads),
        ("ffn_hidden", config.ffn_hidden),
        ("vocab_size", config.vocab_size),
    ):
        if count % mp:
            raise ConfigError(f"{what} {count} can't be cut into {mp} model-parallel ranks")
    if config.n_kv_heads % mp and mp % config.n_kv_heads:
        raise ConfigError(f"n_kv_heads {config.n_kv_heads} can't be cut into {mp} model-parallel ranks")
    shapes = {}
    for name, shape in expected_shapes(config).items():
        parts = min(mp, config.n_kv_heads) if name.endswith(_HEADS) else mp
        if name.endswith(_COLUMNS):
            shape = (shape[0], shape[1] // parts)
        elif not name.endswith(_NORMS):
            shape = (shape[0] // parts, shape[1])
        shapes[name] = shape
    return shapes


def write_meta(
    source: Source,
    folder: Path,
    *,
    mp: int,
    dtype: torch.dtype,
    advance: Callable[[str], None] = lambda name: None,
) -> None:
    """Write `params.json` and `mp` consolidated files, one tensor in memory at a time.

    Raises ConfigError on a shape that Meta's format has no words for.
    """
    config = source.config
    params = to_params(config)
    shapes = rank_shapes(config, mp)
    if config.tie_embeddings:  # Meta's files hold the matrix twice
        shapes["output.weight"] = shapes["tok_embeddings.weight"]
    ranks = [blank_pth(folder / f"consolidated.{rank:02d}.pth", shapes, dtype) for rank in range(mp)]
    for name in source.names():
        whole = source.read(name).to(dtype)
        if name.endswith(_ROTATED):
            whole = to_pairs(whole, config.head_size)
        for entries, piece in zip(ranks, _pieces(whole, name, config, mp), strict=True):
            write_entry(entries[name], piece)
            if config.tie_embeddings and name == "tok_embeddings.weight":
                write_entry(entries["output.weight"], piece)
        del whole, piece  # before the next is read
        advance(name)
    for entries in ranks:
        sync(next(iter(entries.values())).file)
    write_atomic(folder / PARAMS, json.dumps(params, indent=2) + "\n")


def _pieces(whole: Tensor, name: str, config: ModelConfig, mp: int) -> Iterator[Tensor]:
    """Yield each rank's part of a tensor."""
    if name.endswith(_NORMS):
        yield from (whole for _ in range(mp))
        return
    parts = min(mp, config.n_kv_heads) if name.endswith(_HEADS) else mp
    for piece in whole.chunk(parts, dim=1 if name.endswith(_COLUMNS) else 0):
        yield from (piece for _ in range(mp // parts))


def to_params(config: ModelConfig) -> dict[str, Any]:
    """Return the params.json of a shape. Raises ConfigError when Meta's format can't say it.

    A RoPE scaling other than the published ones goes into a key of herd's own, which Meta's code doesn't read.
    """
    if config.head_size * config.n_heads != config.dim:
        raise ConfigError(
            f"Meta's format has no head_dim: {config.n_heads} heads of {config.head_size} are not dim {config.dim}"
        )
    known = next(
        (e for e in PUBLISHED.values() if (e.config.dim, e.config.ffn_hidden) == (config.dim, config.ffn_hidden)), None
    )
    # any width: (8/3 dim) times this is just above it, and rounding to a multiple of 1 cuts the rest off
    multiplier = (config.ffn_hidden + 0.5) / int(8 * config.dim / 3)
    params: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": known.multiple_of if known else 1,
        "ffn_dim_multiplier": known.ffn_dim_multiplier if known else multiplier,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    }
    if config.rope_scaling is not None:
        params["use_scaled_rope"] = True
        if not says_meta(config):
            params["rope_scaling"] = config.rope_scaling.model_dump()
    if config.tie_embeddings and known not in _SMALL:
        params["tie_word_embeddings"] = True
    if config.max_positions != (CONTEXT if config.rope_scaling else 8192):
        params["max_seq_len"] = config.max_positions
    return params


def says_meta(config: ModelConfig) -> bool:
    """Say whether Meta's own code computes this RoPE scaling from params.json."""
    small = any((e.config.dim, e.config.n_layers) == (config.dim, config.n_layers) for e in _SMALL)
    return config.rope_scaling in (None, RopeScaling(factor=32.0 if small else 8.0))
