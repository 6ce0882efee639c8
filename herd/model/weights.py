"""Model folders: Hugging Face's or Meta's in, a Hugging Face directory out, and no pickle is ever executed."""

import json
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from herd.base.errors import ConfigError, DataError
from herd.base.files import write_atomic
from herd.model.config import ModelConfig, from_hf, to_hf
from herd.model.hf import HFSource
from herd.model.meta import PARAMS, MetaSource, meta_config
from herd.model.quant import DTYPES, NumberFormat, QuantLinear, planned, quant_format, replace_linears, stored_plan
from herd.model.quant_files import Scheme, read_schemes
from herd.model.source import Source
from herd.model.transformer import Transformer


def is_model(folder: Path) -> bool:
    """Say whether a folder looks like a model's: Hugging Face's config.json or Meta's params.json."""
    return (folder / "config.json").is_file() or (folder / PARAMS).is_file()


def load_config(folder: Path) -> ModelConfig:
    """Read a model folder's shape. Raises HerdError."""
    return _read_config(folder)[0]


def is_quantised(folder: Path) -> bool:
    """Say whether a model folder's weights are quantised. Raises HerdError."""
    return bool(_read_config(folder)[1])


def _read_config(folder: Path) -> tuple[ModelConfig, tuple[Scheme, ...]]:
    """Return a model folder's shape, and how matrices in it may be quantised."""
    path = folder / "config.json"
    if not path.exists() and (folder / PARAMS).exists():
        return meta_config(folder), ()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: no config.json or {PARAMS}, so this isn't a model folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    config = from_hf(values, where=str(path))
    return config, read_schemes(values.get("quantization_config"), where=str(path))


def open_source(folder: Path) -> Source:
    """Open a model folder's weights, Hugging Face's or Meta's. Raises HerdError."""
    config, schemes = _read_config(folder)
    if (folder / "config.json").exists():
        return HFSource(folder, config, schemes)
    return MetaSource(folder, config)


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quant: NumberFormat | None = None,
) -> Transformer:
    """Build the model of a folder and fill it, a matrix at a time.

    quant: 'fp32' or 'bf16' instead of `dtype`; 'int8' or 'int4' to quantise each matrix as it is read (the rest in
    `dtype`); None: as stored. The output head of quantised weights is int8.
    Raises DataError naming a missing, surplus or misshapen tensor, and ConfigError on a second quantisation.
    """
    source = open_source(folder)
    plan = stored_plan(source)
    if plan and quant:
        raise ConfigError(f"{folder}: its weights are stored quantised; leave out {quant!r}, or take the original ones")
    if plan:
        plan = planned(source.config, "int8", layers=False) | plan
    elif quant in DTYPES:
        dtype = DTYPES[quant]
    elif quant:
        plan = planned(source.config, quant_format(quant))
    with torch.device("meta"):
        model = Transformer(source.config)
    replace_linears(model, plan)
    for owner, names in groupby(source.names(), lambda name: name.rpartition(".")[0]):
        state = {name: source.read(name).to(device) for name in names}
        _fill(model, owner, state, dtype, folder)
        if owner == "tok_embeddings" and source.config.tie_embeddings:
            _fill(model, "output", {"output.weight": state["tok_embeddings.weight"]}, dtype, folder)
    if source.config.tie_embeddings and isinstance(model.output, nn.Linear):
        model.output.weight = model.tok_embeddings.weight
    return model


def _fill(model: Transformer, owner: str, state: dict[str, Tensor], dtype: torch.dtype, folder: Path) -> None:
    """Give a module its tensors, floats in `dtype`; a quantised one quantises the numbers as they are stored."""
    module = model.get_submodule(owner)
    state = {name.rpartition(".")[2]: tensor for name, tensor in state.items()}
    if not isinstance(module, QuantLinear):
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    try:
        module.load_state_dict(state, assign=True)
    except DataError as error:
        raise DataError(f"{folder}: {owner}.{error}") from None


def write_hf_configs(
    config: ModelConfig,
    folder: Path,
    *,
    bos_id: int,
    eos_ids: list[int],
    dtype: torch.dtype,
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Write `config.json`, with how the weights are quantised, and `generation_config.json` of a directory."""
    values = to_hf(config, bos_id=bos_id, eos_ids=eos_ids, dtype=str(dtype).removeprefix("torch."))
    values |= {"quantization_config": quantization} if quantization else {}
    write_atomic(folder / "config.json", json.dumps(values, indent=2) + "\n")
    generation = {
        "bos_token_id": bos_id,
        "eos_token_id": eos_ids,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
    }
    write_atomic(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
