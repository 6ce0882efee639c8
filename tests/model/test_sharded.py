"""Hugging Face's directories: shards and their index, the config.json of every published model, and bounded memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import TOY, toy_model

from herd.base.errors import ConfigError, DataError, HerdError
from herd.model.config import ModelConfig, to_hf
from herd.model.hf import INDEX, write_hf
from herd.model.meta import write_meta
from herd.model.published import published
from herd.model.source import WeightsSource
from herd.model.weights import load_config, load_model, open_source, write_hf_configs
from tests.conftest import ROOT

LIMIT = 12_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a toy's directory of several shards."""
    weights = WeightsSource(dict(toy_model().named_parameters()), TOY)
    write_hf(weights, tmp_path, dtype=torch.float32, max_shard_bytes=LIMIT)
    write_hf_configs(TOY, tmp_path, bos_id=1, eos_ids=[2], dtype=torch.float32)
    return tmp_path


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def test_shards_hold_every_tensor_once_and_their_index_says_where(folder: Path) -> None:
    index, files = json.loads((folder / INDEX).read_text()), shards_of(folder)
    assert [file.name for file in files] == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    assert len(files) > 3
    held = {file.name: load_file(file) for file in files}
    assert index["weight_map"] == {name: file for file, tensors in held.items() for name in tensors}
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in held.values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert max(sizes) <= LIMIT
    assert all(
        torch.equal(ours, wanted)
        for ours, wanted in zip(load_model(folder).parameters(), toy_model().parameters(), strict=True)
    )


def test_a_tensor_above_the_limit_stands_alone(tmp_path: Path) -> None:
    write_hf(
        WeightsSource(dict(toy_model().named_parameters()), TOY), tmp_path, dtype=torch.bfloat16, max_shard_bytes=1
    )
    assert len(shards_of(tmp_path)) == len(list(toy_model().named_parameters()))


def test_shards_without_an_index_are_read_too(folder: Path) -> None:
    (folder / INDEX).unlink()
    assert load_model(folder).config.dim == TOY.dim


def test_tables_and_copies_that_older_files_carry_are_passed_over(tmp_path: Path) -> None:
    config = TOY.model_copy(update={"tie_embeddings": True})
    write_hf(WeightsSource(dict(toy_model(config).named_parameters()), config), tmp_path, dtype=torch.float32)
    write_hf_configs(config, tmp_path, bos_id=1, eos_ids=[2], dtype=torch.float32)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path).output.weight, toy_model(config).output.weight)


def test_a_missing_shard_is_named(folder: Path) -> None:
    files = shards_of(folder)
    files[1].unlink()
    with pytest.raises(DataError, match=rf"shard {files[1].name} is missing, 1 of {len(files)} are"):
        load_model(folder)
    (folder / INDEX).unlink()
    with pytest.raises(DataError, match=r"missing tensors \['model\.layers\.0"):
        load_model(folder)


def test_a_shard_cut_short_and_a_tensor_that_stands_twice_are_named(folder: Path) -> None:
    first, second = shards_of(folder)[:2]
    content = second.read_bytes()
    second.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"{second.name}: not a whole safetensors file"):
        load_model(folder)
    second.write_bytes(content)
    save_file(load_file(second) | {"model.embed_tokens.weight": torch.zeros(61, 32)}, second)
    with pytest.raises(DataError, match=rf"model\.embed_tokens\.weight is in {first.name} and in {second.name}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not an index of weights"),
        ("[" * 100_000, "not an index of weights"),
        ("{}", "not an index of weights"),
        ('{"weight_map": ["a"]}', "not an index of weights"),
        ('{"weight_map": {"a": ["b"]}}', "not an index of weights"),
        ('{"weight_map": {"a": 3}}', "3 is not the name of a file in this folder"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "is not the name of a file in this folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "'/etc/passwd' is not the name of a file in this folder"),
        ('{"weight_map": {"a": ".."}}', "shard .. is missing"),
        ('{"weight_map": {"a": ""}}', "shard  is missing"),
        ('{"weight_map": {}}', "missing tensors"),
    ],
)
def test_an_index_that_cannot_be_used_is_told_in_one_line(folder: Path, text: str, message: str) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(DataError, match=message) as told:
        load_model(folder)
    assert "\n" not in str(told.value)


def test_folders_in_the_place_of_files_are_named(folder: Path) -> None:
    for name in (INDEX, "config.json"):
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(DataError, match=name):
            load_model(folder)


# The keys of the published config.json files, with what transformers of their day wrote into them.
COMMON: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0}
COMMON |= {"bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "initializer_range": 0.02}
COMMON |= {"model_type": "llama", "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05}
COMMON |= {"rope_scaling": None, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
COMMON |= {"transformers_version": "4.40.0.dev0", "use_cache": True, "vocab_size": 128256}
ROPE = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"}
ROPE |= {"original_max_position_embeddings": 8192}
SCALED = COMMON | {"rope_scaling": ROPE, "mlp_bias": False, "max_position_embeddings": 131072}
SCALED |= {"eos_token_id": [128001, 128008, 128009], "transformers_version": "4.43.0.dev0"}
SMALL = SCALED | {"rope_scaling": ROPE | {"factor": 32.0}, "tie_word_embeddings": True}
SIZES: dict[str, dict[str, Any]] = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 80},
    "405b": {"hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128, "num_hidden_layers": 126},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_hidden_layers": 16},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_hidden_layers": 28},
}
OFFICIAL = {
    "llama3-8b": COMMON | SIZES["8b"] | {"max_position_embeddings": 8192},
    "llama3-70b": COMMON | SIZES["70b"] | {"max_position_embeddings": 8192},
    "llama3.1-8b": SCALED | SIZES["8b"],
    "llama3.1-70b": SCALED | SIZES["70b"],
    "llama3.1-405b": SCALED | SIZES["405b"],
    "llama3.2-1b": SMALL | SIZES["1b"] | {"head_dim": 64, "transformers_version": "4.45.0.dev0"},
    "llama3.2-3b": SMALL | SIZES["3b"] | {"head_dim": 128, "transformers_version": "4.45.0.dev0"},
    "llama3.3-70b": SCALED | SIZES["70b"] | {"head_dim": 128, "transformers_version": "4.47.0.dev0"},
    "llama-guard-3-8b": SCALED | SIZES["8b"] | {"_name_or_path": "llama-guard-3-8b", "eos_token_id": 128009},
    "llama-guard-3-1b": SMALL | SIZES["1b"] | {"head_dim": 64, "_attn_implementation_autoset": True},
}


def read_config(folder: Path, values: dict[str, Any]) -> ModelConfig:
    """Read such a config.json."""
    (folder / "config.json").write_text(json.dumps(values))
    return load_config(folder)


@pytest.mark.parametrize("name", OFFICIAL)
def test_published_config_files_give_the_published_shapes(tmp_path: Path, name: str) -> None:
    config = read_config(tmp_path, OFFICIAL[name])
    assert config == published(name).model_copy(update={"head_dim": OFFICIAL[name].get("head_dim")})
    assert config.head_size == published(name).head_size
    # transformers 5 writes the same under other names
    values = OFFICIAL[name] | {"dtype": "bfloat16", "transformers_version": "5.0.0"}
    theta, scaling = values.pop("rope_theta"), values.pop("rope_scaling")
    del values["torch_dtype"]
    values["rope_parameters"] = {"rope_theta": theta} | (scaling or {"rope_type": "default"})
    assert read_config(tmp_path, values) == config
    # and between the two, both spellings of the type
    assert read_config(tmp_path, OFFICIAL[name] | {"rope_scaling": scaling and scaling | {"type": "llama3"}}) == config


def test_every_key_that_transformers_writes_is_known(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    values = {key: OFFICIAL["llama3.2-1b"][key] for key in OFFICIAL["llama3.2-1b"] if key != "torch_dtype"}
    theirs = transformers.LlamaConfig(**values)
    (tmp_path / "config.json").write_text(theirs.to_json_string(use_diff=False))
    assert load_config(tmp_path) == published("llama3.2-1b").model_copy(update={"head_dim": 64})


LLAMA3 = {"rope_type": "llama3", **{key: value for key, value in ROPE.items() if key != "rope_type"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logit_scale": 0.5}, r"key 'logit_scale' \(0\.5\) is not known to herd"),
        ({"sliding_window": 4096}, "key 'sliding_window'"),
        ({"layer_types": ["sliding_attention"]}, "key 'layer_types'"),
        ({"partial_rotary_factor": 0.5}, "key 'partial_rotary_factor'"),
        ({"attention_multiplier": 0.1}, "key 'attention_multiplier'"),
        ({"num_local_experts": 8}, "key 'num_local_experts'"),
        ({"attention_bias": True}, "biases off"),
        ({"mlp_bias": True}, "biases off"),
        ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, r"\('fbgemm_fp8', None\) is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling type 'yarn' is not known"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling type 'linear' is not known"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, "is not known"),
        ({"rope_scaling": "llama3"}, "rope_scaling 'llama3' is not a mapping"),
        ({"rope_scaling": {k: v for k, v in LLAMA3.items() if k != "factor"}}, "'factor' is amiss"),
        ({"rope_scaling": LLAMA3 | {"attention_factor": 1.2}}, "'attention_factor' is amiss"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor above low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"factor": float("nan")}}, "factor"),
        ({"rope_theta": -1.0}, "rope_theta -1.0 must be above 0"),
        ({"hidden_size": None}, "dim"),
        ({"num_hidden_layers": 0}, "at least 1"),
        ({"num_hidden_layers": 10**9}, "more n_layers than 16,384"),
        ({"num_attention_heads": float("inf")}, "n_heads"),
        ({"head_dim": "wide"}, "head_dim"),
        ({"vocab_size": -5}, r"model\.embed_tokens\.weight is \[61, 32\], config\.json says \[-5, 32\]"),
    ],
)
def test_a_config_that_cannot_be_used_is_told_in_one_line(folder: Path, changes: dict, message: str) -> None:
    values = to_hf(TOY, bos_id=1, eos_ids=[2]) | changes
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(HerdError, match=message) as told:
        load_model(folder)
    assert "\n" not in str(told.value)
    assert isinstance(told.value, ConfigError | DataError)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's peak is read from Linux's /proc")
def test_converting_takes_little_more_memory_than_the_largest_tensor(tmp_path: Path) -> None:
    """About 110 MB, its largest tensor 17 MB, there and back in processes that measure themselves."""
    config = TOY.model_copy(update={"dim": 512, "ffn_hidden": 2048, "n_heads": 8, "vocab_size": 16_384, "n_layers": 9})
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in toy_model(config).named_parameters()}
    (tmp_path / "meta").mkdir()
    write_meta(WeightsSource(weights, config), tmp_path / "meta", mp=8, dtype=torch.bfloat16)
    whole = sum(file.stat().st_size for file in (tmp_path / "meta").iterdir())
    largest = config.vocab_size * config.dim * 2
    assert whole > 6 * largest
    for what, source, target in (("hf", "meta", "hf"), ("meta", "hf", "back")):
        command = [sys.executable, str(ROOT / "benchmarks/convert.py"), "--child", what]
        command += ["--source", str(tmp_path / source), "--target", str(tmp_path / target)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200, cwd=ROOT)
        assert 0 < json.loads(done.stdout)["memory"] < 2 * largest + 8_000_000
    back = open_source(tmp_path / "back")
    assert all(torch.equal(back.read(name), tensor) for name, tensor in weights.items())
