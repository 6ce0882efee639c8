"""Model folders: Hugging Face's or Meta's in, a Hugging Face directory out, and no pickle is ever executed."""

import json
from pathlib import Path

import torch

from herd.base.errors import DataError
from herd.base.files import write_atomic
from herd.model.config import ModelConfig, from_hf, to_hf
from herd.model.hf import HFSource
from herd.model.meta import PARAMS, MetaSource, meta_config
from herd.model.source import Source
from herd.model.transformer import Transformer


def is_model(folder: Path) -> bool:
    """Say whether a folder looks like a model's: Hugging Face's config.json or Meta's params.json."""
    return (folder / "config.json").is_file() or (folder / PARAMS).is_file()


def load_config(folder: Path) -> ModelConfig:
    """Read a model folder's shape. Raises DataError."""
    path = folder / "config.json"
    if not path.exists() and (folder / PARAMS).exists():
        return meta_config(folder)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: no config.json or {PARAMS}, so this isn't a model folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    return from_hf(values, where=str(path))


def open_source(folder: Path) -> Source:
    """Open a model folder's weights, Hugging Face's or Meta's. Raises DataError."""
    config = load_config(folder)
    if (folder / "config.json").exists():
        return HFSource(folder, config)
    return MetaSource(folder, config)


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Transformer:
    """Build the model of a folder and fill it. Raises DataError naming a missing, surplus or misshapen tensor."""
    source = open_source(folder)
    with torch.device("meta"):
        model = Transformer(source.config)
    state = {name: source.read(name).to(device, dtype) for name in source.names()}
    if source.config.tie_embeddings:
        state["output.weight"] = state["tok_embeddings.weight"]
    model.load_state_dict(state, assign=True)
    if source.config.tie_embeddings:
        model.output.weight = model.tok_embeddings.weight
    return model


def write_hf_configs(config: ModelConfig, folder: Path, *, bos_id: int, eos_ids: list[int], dtype: torch.dtype) -> None:
    """Write `config.json` and `generation_config.json` of a Hugging Face directory."""
    values = to_hf(config, bos_id=bos_id, eos_ids=eos_ids, dtype=str(dtype).removeprefix("torch."))
    write_atomic(folder / "config.json", json.dumps(values, indent=2) + "\n")
    generation = {
        "bos_token_id": bos_id,
        "eos_token_id": eos_ids,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
    }
    write_atomic(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
