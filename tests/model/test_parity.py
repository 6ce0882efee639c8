"""The same numbers as transformers' Llama, and the same bytes in both directions."""

import json
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import TOY, save_model, toy_model

from herd.model.cache import PagedCache, Row
from herd.model.config import ModelConfig, RopeScaling, to_hf
from herd.model.hf import hf_name, write_hf
from herd.model.published import published
from herd.model.source import WeightsSource
from herd.model.transformer import Transformer
from herd.model.weights import load_model, write_hf_configs

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
# the published proportions at toy width: heads, key/value heads, SwiGLU width over the model's, scaling, tying
PROPORTIONS = {
    "8B": published("llama3.1-8b"),
    "70B": published("llama3.1-70b"),
    "405B": published("llama3.1-405b"),
    "1B": published("llama3.2-1b"),
    "3B": published("llama3.2-3b"),
}
SPANS = {
    "0 to 300": range(301),
    "8,192": range(8180, 8204),
    "20,000": range(19_990, 20_014),
    "the last": range(131_048, 131_072),
    # far apart in one row: angles between tokens, not only those of one place
    "all at once": [*range(12), *range(8186, 8198), *range(19_994, 20_006), *range(131_060, 131_072)],
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


def causal(count: int) -> Tensor:
    """Return the mask of one row: without it transformers takes a jump of positions for a new document."""
    return torch.zeros(1, 1, count, count).masked_fill(torch.ones(count, count).triu(1).bool(), float("-inf"))


def shape(name: str) -> ModelConfig:
    """Return a toy shape by name."""
    return ModelConfig(**TOY.model_dump() | SHAPES[name])


@pytest.fixture(scope="module", params=PROPORTIONS)
def pair(request: pytest.FixtureRequest) -> tuple[Transformer, Any]:
    """Return a published shape at toy width, ours and theirs with the same weights."""
    real = PROPORTIONS[request.param]
    dim = 8 * real.n_heads
    narrow = {"n_layers": 2, "dim": dim, "ffn_hidden": dim * real.ffn_hidden // real.dim, "vocab_size": 61}
    model = toy_model(real.model_copy(update=narrow), std=dim**-0.5)
    return model, theirs_of(model)


@torch.no_grad()
@pytest.mark.parametrize("span", SPANS)
def test_published_proportions_give_the_logits_of_transformers(pair: tuple[Transformer, Any], span: str) -> None:
    model, theirs = pair
    positions = torch.tensor([[*SPANS[span]]])
    count = positions.shape[1]
    tokens = torch.randint(0, model.config.vocab_size, (1, count), generator=torch.Generator().manual_seed(3))
    wanted = theirs(tokens, position_ids=positions, attention_mask=causal(count)).logits
    assert 0.5 < wanted.std() < 2
    plain = model.logits(model(tokens, positions=positions))
    torch.testing.assert_close(plain, wanted, rtol=0, atol=1e-5)
    cache = PagedCache(model.config, blocks=count, block_size=1, dtype=torch.float32)
    pieces = []
    for start, end in pairwise((0, count // 2, count - 3, count - 2, count - 1, count)):  # prompt, more, single tokens
        view = cache.view([Row(range(count), start, end - start)])
        given = None if span.startswith("0") else positions[:, start:end]  # a cache counts from 0 by itself
        pieces.append(model.logits(model(tokens[:, start:end], positions=given, cache=view)))
    torch.testing.assert_close(torch.cat(pieces, dim=1), wanted, rtol=0, atol=1e-5)


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
def test_shards_of_ours_are_read_by_transformers(tmp_path: Path) -> None:
    model = toy_model(shape("scaled"))
    source = WeightsSource(dict(model.named_parameters()), model.config)
    write_hf(source, tmp_path, dtype=torch.float32, max_shard_bytes=12_000)
    write_hf_configs(model.config, tmp_path, bos_id=1, eos_ids=[2], dtype=torch.float32)
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    state = theirs.state_dict()
    assert all(torch.equal(state[hf_name(key)], parameter) for key, parameter in model.named_parameters())


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
