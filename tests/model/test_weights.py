"""Model folders: bit equal there and back, and damage is told apart from weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import TOY, save_model, toy_model

from herd.base.errors import DataError, HerdError
from herd.model.config import RopeScaling
from herd.model.weights import load_config, load_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = toy_model()
    save_model(dict(model.named_parameters()), model.config, tmp_path, bos_id=1, eos_ids=[2])
    return tmp_path


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": True}, {"rope_scaling": RopeScaling(factor=2.0)}, {"head_dim": 6}]
)
def test_weights_come_back_bit_equal(tmp_path: Path, changes: dict) -> None:
    model = toy_model(TOY.model_copy(update=changes))
    save_model(dict(model.named_parameters()), model.config, tmp_path, bos_id=1, eos_ids=[2])
    again = load_model(tmp_path)
    assert again.config == model.config.model_copy(update={"head_dim": model.config.head_size})
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert not any(p.is_meta for p in again.parameters())
    assert torch.equal(again.frequencies, model.frequencies)
    if model.config.tie_embeddings:
        assert again.output.weight is again.tok_embeddings.weight
        assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]


def test_weights_load_in_the_format_asked_for(folder: Path) -> None:
    model = load_model(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_named(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"model\.safetensors: not a whole safetensors file"):
        load_model(folder)


def test_other_bytes_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle or something" * 50)
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_model(folder)


def test_missing_surplus_and_misshapen_tensors_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, file)
    with pytest.raises(DataError, match=r"missing tensors \['model\.norm\.weight'\], surplus tensors \[\]"):
        load_model(folder)
    save_file(tensors | {"model.norm.weight": norm, "model.norm.bias": norm.clone()}, file)
    with pytest.raises(DataError, match=r"surplus tensors \['model\.norm\.bias'\]"):
        load_model(folder)
    save_file(tensors | {"model.norm.weight": norm[:-1].clone()}, file)
    with pytest.raises(DataError, match=r"model\.norm\.weight is \[31\], config\.json says \[32\]"):
        load_model(folder)


def test_folders_that_are_no_models_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.json or params\.json, so this isn't a model folder"):
        load_model(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no \.safetensors file"):
        load_model(folder)
    for text in ("{", "[]", '{"model_type": "llama"}', json.dumps({"model_type": "gpt2"})):
        (folder / "config.json").write_text(text)
        with pytest.raises(HerdError, match=r"config\.json: "):
            load_config(folder)
