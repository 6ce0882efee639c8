"""The same numbers as transformers' Llama, and the same bytes in both directions."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import TOY, toy_model

from herd.model.config import ModelConfig, RopeScaling, to_hf
from herd.model.hf import hf_name
from herd.model.transformer import Transformer
from herd.model.weights import load_model, save_model

transformers = pytest.importorskip("transformers")

SCALED = RopeScaling(factor=8.0, original_max_position_embeddings=8192)
SHAPES = {
    "gqa": {},
    "mha": {"n_kv_heads": 4},
    "mqa": {"n_kv_heads": 1},
    "tied": {"tie_embeddings": True},
    "wide heads": {"head_dim": 16},
    "scaled": {"rope_scaling": SCALED, "max_positions": 131_072},
    "scaled early": {
        "rope_scaling": RopeScaling(factor=4.0, original_max_position_embeddings=16),
        "tie_embeddings": True,
    },
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Let transformers warn of its own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def theirs_of(model: Transformer) -> Any:
    """Build transformers' Llama with the weights of ours."""
    values = to_hf(model.config, bos_id=1, eos_ids=[2]) | {"attn_implementation": "eager"}
    values.pop("torch_dtype")
    values.pop("architectures")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values)).eval()
    missing, surplus = theirs.load_state_dict({hf_name(n): p for n, p in model.state_dict().items()}, strict=False)
    assert not missing
    assert not surplus
    return theirs


def shape(name: str) -> ModelConfig:
    """Return a toy shape by name."""
    return ModelConfig(**TOY.model_dump() | SHAPES[name])


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("first", [0, 8190, 100_000])
def test_logits_equal_those_of_transformers(name: str, first: int) -> None:
    model = toy_model(shape(name))
    tokens = torch.randint(0, TOY.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(first, first + 40).expand(2, -1)
    ours = model.logits(model(tokens, positions=positions))
    theirs = theirs_of(model)(tokens, position_ids=positions).logits
    assert ours.std() > 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@torch.no_grad()
def test_logits_equal_over_a_gap_of_thousands_of_positions() -> None:
    """A token at 9,000 that looks back at one at 0: RoPE's relative angles, not only its absolute ones."""
    model = toy_model(shape("scaled"))
    tokens = torch.randint(0, TOY.vocab_size, (1, 24), generator=torch.Generator().manual_seed(2))
    positions = torch.cat((torch.arange(12), torch.arange(9000, 9012))).unsqueeze(0)
    ours = model.logits(model(tokens, positions=positions))
    # without a mask transformers takes a jump of positions for a new document, which this isn't
    causal = torch.ones(1, 1, 24, 24, dtype=torch.bool).tril()
    bias = torch.zeros(1, 1, 24, 24).masked_fill(~causal, float("-inf"))
    theirs = theirs_of(model)(tokens, position_ids=positions, attention_mask=bias).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("name", ["gqa", "tied", "scaled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_of_ours_is_read_by_transformers(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = toy_model(shape(name))
    save_model(dict(model.named_parameters()), model.config, tmp_path, bos_id=1, eos_ids=[2, 3], dtype=dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert theirs.dtype == dtype
    state = theirs.state_dict()
    for key, parameter in model.named_parameters():
        assert torch.equal(state[hf_name(key)], parameter.to(dtype))
    assert theirs.generation_config.eos_token_id == [2, 3]
    assert theirs.config.rope_parameters["rope_theta"] == model.config.rope_theta
    if dtype == torch.float32:
        tokens = torch.arange(30).unsqueeze(0)
        torch.testing.assert_close(model.logits(model(tokens)), theirs(tokens).logits, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gqa", "tied", "scaled", "wide heads"])
def test_a_folder_of_transformers_is_read_by_ours(tmp_path: Path, name: str) -> None:
    model = toy_model(shape(name))
    theirs = theirs_of(model)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    ours = load_model(tmp_path)
    assert ours.config == model.config.model_copy(update={"head_dim": model.config.head_size})
    for (key, loaded), (_, wanted) in zip(ours.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(loaded, wanted), key


@torch.no_grad()
def test_several_files_of_transformers_are_read_as_one(tmp_path: Path) -> None:
    model = toy_model()
    theirs_of(model).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_model(tmp_path).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())
