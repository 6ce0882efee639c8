"""Quantised weights in folders: as quantised while loading, read by transformers, refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import TOY, byte_tokenizer, toy_model

from herd.base.errors import ConfigError, DataError, HerdError, RunError
from herd.base.progress import Silent
from herd.model.hf import write_hf
from herd.model.packing import Packing
from herd.model.quant import QuantFormat, QuantLinear, quantise, stored_plan
from herd.model.source import WeightsSource
from herd.model.weights import is_quantised, load_model, open_source
from herd.stages.export import Plan, export, write_hf_files
from herd.stages.importing import report
from herd.stages.models import ModelFolder, open_folder
from herd.tokenizer.codec import DialogCodec
from herd.tokenizer.layout import Layout

# heads of 24, so that wo's width, 96, has other groups of int8 than 64 and 256
CONFIG = TOY.model_copy(update={"dim": 64, "head_dim": 24, "ffn_hidden": 256, "vocab_size": 512})
FORMATS: list[QuantFormat] = ["int8", "int4"]


def make(folder: Path, *, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> ModelFolder:
    """Write a toy model folder of 512 ids."""
    config = CONFIG.model_copy(update=changes)
    write_hf(WeightsSource(dict(toy_model(config).named_parameters()), config), folder, dtype=dtype)
    write_hf_files(folder, config, DialogCodec(byte_tokenizer(), Layout()), dtype=dtype, chat=True)
    return open_folder(folder)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Return a folder in int4."""
    export(make(tmp_path / "toy"), tmp_path / "int4", Plan(quant="int4"), Silent())
    return tmp_path / "int4"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_stored_equals_loaded_equals_quantised_in_memory(tmp_path: Path, form: QuantFormat, tied: bool) -> None:
    original = make(tmp_path / "toy", tie_embeddings=tied)
    written = export(original, tmp_path / "out", Plan(quant=form), Silent())
    assert written["quant"] == form
    assert set(written["verified"]) >= {"weights", "logits", "ids"}
    bf16 = torch.bfloat16
    models = [
        load_model(tmp_path / "out", dtype=bf16),
        load_model(original.path, dtype=bf16, quant=form),
        quantise(load_model(original.path, dtype=bf16), form),
    ]
    first, *others = (model.state_dict() for model in models)
    for other in others:
        assert first.keys() == other.keys()
        assert all(first[name].dtype == other[name].dtype and torch.equal(first[name], other[name]) for name in first)
    assert isinstance(models[0].output, QuantLinear)
    assert (is_quantised(original.path), is_quantised(tmp_path / "out")) == (False, True)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_stored_is_written_and_compared_once_more(tmp_path: Path, form: QuantFormat) -> None:
    """From float32: the layers from its own numbers, the rest in bfloat16."""
    original = make(tmp_path / "toy", dtype=torch.float32)
    export(original, tmp_path / "out", Plan(quant=form), Silent())
    source = open_source(tmp_path / "out")
    assert {source.dtype(name) for name in source.names()} == {torch.bfloat16, torch.int32, torch.int64}
    ours = quantise(load_model(original.path), form)
    theirs = load_model(tmp_path / "out")
    for name, module in ours.named_modules():
        if isinstance(module, QuantLinear) and name != "output":
            assert torch.equal(theirs.get_submodule(name).levels(), module.levels())
            assert torch.equal(theirs.get_submodule(name).weight_scale, module.weight_scale)
    said = dict(report(tmp_path / "out"))["weights"]
    assert f"{CONFIG.parameters():,} parameters, {form} in groups of " in said


@pytest.mark.parametrize("quant", ["fp32", "bf16"])
def test_float_formats_are_number_formats_too(tmp_path: Path, quant: Any) -> None:
    folder = make(tmp_path / "toy").path
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[quant]
    assert {p.dtype for p in load_model(folder, dtype=torch.float16, quant=quant).parameters()} == {dtype}


def test_quantising_twice_exporting_again_and_other_formats_are_refused(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stored quantised; leave out 'int8'"):
        load_model(stored, quant="int8")
    with pytest.raises(RunError, match="quantised already"):
        export(open_folder(stored), tmp_path / "again", Plan("gguf"), Silent())
    for plan in ({"format": "gguf"}, {"format": "meta"}, {"dtype": torch.float32}):
        with pytest.raises(ConfigError, match="--quant int8"):
            Plan(quant="int8", **plan)
    bad = make(tmp_path / "bad")
    tensors = load_file(bad.path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, bad.path / "model.safetensors")
    with pytest.raises(DataError, match=r"bad: layers\.1\.feed_forward\.w3\.weight holds NaN"):
        load_model(bad.path, quant="int8")


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((folder / "config.json").read_text())
    change(values["quantization_config"])
    (folder / "config.json").write_text(json.dumps(values))


def group(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of the first group's weights."""
    return lambda values: values["config_groups"]["group_0"]["weights"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(quant_method="gptq"), r"\('gptq', 'pack-quantized'\) is not supported; herd reads compr"),
        (lambda v: v.update(format="float-quantized"), "'float-quantized'"),
        (lambda v: v.update(config_groups={}), "no config_groups"),
        (lambda v: v.update(config_groups={"a": 3}), "'a' has no weights"),
        (lambda v: v.update(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (lambda v: v.update(sparsity_config={"format": "sparse-24"}), "sparsity_config"),
        (lambda v: v["config_groups"]["group_0"].update(input_activations={"num_bits": 8}), "input_activations"),
        (group(symmetric=False), "not supported"),
        (group(type="float"), "'float'"),
        (group(num_bits=3), "3 bits"),
        (group(actorder="group"), "actorder 'group'"),
        (group(strategy="block"), "strategy 'block'"),
        (group(group_size="x"), "group_size 'x'"),
        (group(group_size=0), "group_size 0"),
        (group(group_size=48), r"no group of config\.json divides 64"),
        (group(group_size=16), r"weight_scale is \[\d+, 2\], config\.json says \[\d+, 4\]"),
        (group(num_bits=8), r"weight_packed is \[\d+, 8\], config\.json says \[\d+, 16\]"),
    ],
)
def test_a_config_that_cannot_be_used_is_told_in_one_line(stored: Path, change: Any, message: str) -> None:
    edit(stored, change)
    with pytest.raises(HerdError, match=message) as told:
        load_model(stored)
    assert "\n" not in str(told.value)


def test_settings_that_only_describe_are_read(stored: Path) -> None:
    edit(stored, group(actorder="static", observer="minmax", observer_kwargs={"a": 1}))
    edit(stored, lambda v: v.update(version="0.9", global_compression_ratio=1.5, ignore=[]))
    assert any(isinstance(part, QuantLinear) for part in load_model(stored).modules())


UP = "model.layers.0.mlp.up_proj."


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight_packed", None, "missing tensors"),
        ("weight_zero_point", torch.zeros(3), "surplus tensors"),
        ("weight_shape", torch.tensor([64, 256]), r"weight_shape holds \[64, 256\], config\.json says \[256, 64\]"),
        ("weight_shape", torch.tensor([256, 64], dtype=torch.int32), "weight_shape is int32, not int64"),
        ("weight_scale", torch.zeros(256, 2, dtype=torch.float16), "weight_scale is float16, not bfloat16"),
        ("weight_packed", torch.zeros(256, 8), "weight_packed is float32, not int32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(stored: Path, name: str, value: torch.Tensor | None, message: str) -> None:
    file = stored / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(UP + name, None)
    save_file(tensors | ({} if value is None else {UP + name: value}), file)
    with pytest.raises(DataError, match=message):
        load_model(stored)


def test_integers_are_no_float_weights(tmp_path: Path) -> None:
    folder = make(tmp_path / "toy").path
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(64, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.norm\.weight is int32, not a float"):
        load_model(folder)


def test_rows_that_share_one_scale_and_a_packed_head_are_read(tmp_path: Path) -> None:
    """As others write them: channels, and the head among them."""
    toy = make(tmp_path / "toy")
    model = toy_model(CONFIG)
    plan = {name: Packing(8, 64) for name in ("layers.0.attention.wq", "output")}
    from herd.model.quant_files import QuantisedSource, quantization_config

    write_hf(QuantisedSource(open_source(toy.path), plan), tmp_path / "rows", dtype=torch.bfloat16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "rows" / name).write_bytes((toy.path / name).read_bytes())
    values = json.loads((toy.path / "config.json").read_text())
    values["quantization_config"] = quantization_config({"q_proj": Packing(8, 64)}, [])
    values["quantization_config"]["config_groups"]["group_0"]["weights"] |= {"strategy": "channel", "group_size": None}
    (tmp_path / "rows/config.json").write_text(json.dumps(values))
    assert stored_plan(open_source(tmp_path / "rows")) == plan
    loaded = load_model(tmp_path / "rows")
    wanted = model.layers[0].attention.wq.weight
    assert (loaded.layers[0].attention.wq.dequantise(torch.float32) - wanted).abs().max() < wanted.abs().max() / 100
    assert isinstance(loaded.layers[1].attention.wq, torch.nn.Linear)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_the_folder_and_computes_the_same(tmp_path: Path, form: QuantFormat, tied: bool) -> None:
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    original = make(tmp_path / "toy", tie_embeddings=tied, head_dim=18)  # wo's width, 72, has no group
    export(original, tmp_path / "out", Plan(quant=form), Silent())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ours = load_model(tmp_path / "out")
    ours.output = torch.nn.Linear(CONFIG.dim, CONFIG.vocab_size, bias=False)  # theirs stays as it is in the file
    head = "tok_embeddings.weight" if tied else "output.weight"
    ours.output.weight = torch.nn.Parameter(open_source(tmp_path / "out").read(head).float())
    tokens = torch.tensor([byte_tokenizer().encode("the weights are the same in both", bos=True)])
    with torch.no_grad():
        found, wanted = theirs(tokens).logits, ours.logits(ours(tokens))
        plain = load_model(original.path)
        far = (plain.logits(plain(tokens)) - wanted).abs().max()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert far > 1e-2
