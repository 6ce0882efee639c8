"""Shapes: the published parameter counts, the closed form against the built model, and config.json both ways."""

import pytest
import torch
from toys import TOY

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig, RopeScaling, from_hf, to_hf
from herd.model.published import published
from herd.model.transformer import Transformer


def count(config: ModelConfig) -> int:
    """Count the parameters of the model as built, a shared matrix once."""
    with torch.device("meta"):
        model = Transformer(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama3.1-8b", 8_030_261_248), ("llama3.1-70b", 70_553_706_496), ("llama3.1-405b", 405_853_388_800)],
)
def test_published_parameter_counts(name: str, parameters: int) -> None:
    assert count(published(name)) == parameters
    assert published(name).parameters() == parameters


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True},
        {"n_heads": 8, "n_kv_heads": 1},
        {"n_kv_heads": 4},
        {"head_dim": 10, "tie_embeddings": True},
        {"n_layers": 5, "ffn_hidden": 7, "vocab_size": 3},
    ],
)
def test_the_closed_form_is_the_built_model(changes: dict) -> None:
    config = TOY.model_copy(update=changes)
    assert config.parameters() == count(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_heads": 3}, "n_heads 4 must be a multiple of n_kv_heads 3"),
        ({"dim": 34}, "dim 34 must be a multiple of n_heads 4"),
        ({"head_dim": 7}, "the size of a head, 7, must be even"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**TOY.model_dump() | changes)


def test_flops_per_token_of_the_8b_shape() -> None:
    # 6 x (8,030,261,248 - 525,336,576) + 6 x 32 layers x 4,096 x 8,192
    assert published("llama3.1-8b").flops_per_token(8192) == 6 * 7_504_924_672 + 6 * 32 * 4096 * 8192


@pytest.mark.parametrize(
    "config", [TOY, published("llama3.1-8b"), TOY.model_copy(update={"tie_embeddings": True, "head_dim": 12})]
)
def test_config_json_goes_both_ways(config: ModelConfig) -> None:
    values = to_hf(config, bos_id=1, eos_ids=[2, 3])
    read = from_hf(values, where="x")
    assert read.model_dump() == config.model_copy(update={"head_dim": config.head_size}).model_dump()
    # transformers 5 gathers what it knows of RoPE under another key
    rope = dict(values.pop("rope_scaling") or {"rope_type": "default"}) | {"rope_theta": values.pop("rope_theta")}
    assert from_hf(values | {"rope_parameters": rope}, where="x") == read


def test_what_config_json_leaves_out_has_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    values = to_hf(TOY, bos_id=1, eos_ids=[2])
    absent = (
        "rope_theta",
        "rope_scaling",
        "rms_norm_eps",
        "max_position_embeddings",
        "num_key_value_heads",
        "head_dim",
    )
    short = {key: value for key, value in values.items() if key not in absent}
    theirs = transformers.LlamaConfig(**{k: v for k, v in short.items() if k != "torch_dtype"})
    ours = from_hf(short, where="x")
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.n_kv_heads == theirs.num_key_value_heads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "c.json: model_type 'mistral' is not 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"attention_bias": True}, "biases off"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling type 'yarn' is not known"),
        ({"hidden_size": "wide"}, "c.json: dim:"),
        ({"num_key_value_heads": 3}, "c.json: n_heads 4 must be a multiple"),
    ],
)
def test_other_mathematics_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_hf(to_hf(TOY, bos_id=1, eos_ids=[2]) | changes, where="c.json")


def test_a_missing_key_is_named() -> None:
    values = to_hf(TOY, bos_id=1, eos_ids=[2])
    del values["intermediate_size"]
    with pytest.raises(ConfigError, match="intermediate_size"):
        from_hf(values, where="c.json")
    with pytest.raises(ConfigError, match="no published shape 'llama4'"):
        published("llama4")


def test_rope_scaling_keeps_short_waves_and_stretches_long_ones() -> None:
    from herd.model.rope import inverse_frequencies

    config = TOY.model_copy(update={"head_dim": 128})
    plain = inverse_frequencies(config)
    scaled = inverse_frequencies(config.model_copy(update={"rope_scaling": RopeScaling()}))
    wave = 2 * torch.pi / plain
    assert torch.equal(scaled[wave < 8192 / 4], plain[wave < 8192 / 4])
    torch.testing.assert_close(scaled[wave > 8192], plain[wave > 8192] / 8)
    between = (wave >= 8192 / 4) & (wave <= 8192)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()
