"""Model folders: a complete Hugging Face Llama directory in, the same out, without a byte of pickle.

herd keeps Hugging Face's RoPE convention in memory, so names are all that differs between the two.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from herd.base.errors import DataError
from herd.base.files import write_atomic
from herd.model.config import ModelConfig, from_hf, to_hf
from herd.model.transformer import Transformer

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


def hf_name(name: str) -> str:
    """Return Hugging Face's name of one of herd's parameters."""
    stem = name.removesuffix(".weight")
    if stem.startswith("layers."):
        _, layer, rest = stem.split(".", 2)
        return f"model.layers.{layer}.{_LAYER[rest]}.weight"
    return f"{_TOP[stem]}.weight"


def save_model(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    folder: Path,
    *,
    bos_id: int,
    eos_ids: list[int],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `model.safetensors`, `config.json` and `generation_config.json`, each whole or not at all.

    `weights` go by herd's parameter names; a tied output matrix is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {hf_name(name): tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights.items()}
    temporary = folder / ".model.safetensors.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(folder / "model.safetensors")
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


def load_config(folder: Path) -> ModelConfig:
    """Read a model folder's shape. Raises DataError."""
    path = folder / "config.json"
    try:
        return from_hf(json.loads(path.read_text(encoding="utf-8")), where=str(path))
    except FileNotFoundError:
        raise DataError(f"{folder}: no config.json, so this isn't a model folder") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error})") from None


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Transformer:
    """Build the model of a folder and fill it. Raises DataError naming a missing, surplus or misshapen tensor."""
    with torch.device("meta"):
        model = Transformer(load_config(folder))
    tensors = _read_tensors(folder)
    wanted = {name: hf_name(name) for name in _state(model)}
    missing = sorted(set(wanted.values()) - set(tensors))
    surplus = sorted(set(tensors) - set(wanted.values()) - {"lm_head.weight"})
    if missing or surplus:
        raise DataError(f"{folder}: missing tensors {missing[:3]}, surplus tensors {surplus[:3]}")
    state = {}
    for name, parameter in _state(model).items():
        tensor = tensors[wanted[name]]
        if tensor.shape != parameter.shape:
            raise DataError(
                f"{folder}: {wanted[name]} is {list(tensor.shape)}, config.json says {list(parameter.shape)}"
            )
        state[name] = tensor.to(device, dtype)
    if model.config.tie_embeddings:
        state["output.weight"] = state["tok_embeddings.weight"]
    model.load_state_dict(state, assign=True)
    if model.config.tie_embeddings:
        model.output.weight = model.tok_embeddings.weight
    return model


def _state(model: Transformer) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    if model.config.tie_embeddings:
        state.pop("output.weight")
    return state


def _read_tensors(folder: Path) -> Mapping[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder}: no .safetensors file, so there are no weights to load")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as reader:
                tensors.update({name: reader.get_tensor(name) for name in reader.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise DataError(f"{file}: not a whole safetensors file ({error})") from None
    return tensors
