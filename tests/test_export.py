"""Models out and in again: nothing gets its final name before it was read back and matched."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import TOY, byte_tokenizer, toy_model

from herd.base.errors import ConfigError, DataError, HerdError, RunError
from herd.base.messages import Dialog, Message
from herd.base.progress import Silent
from herd.engine.engine import Engine
from herd.engine.request import Request, Sampling
from herd.model.config import RopeScaling
from herd.model.hf import write_hf
from herd.model.source import WeightsSource
from herd.model.weights import load_model, open_source
from herd.stages import export as export_module
from herd.stages.export import Plan, export, write_hf_files
from herd.stages.importing import report
from herd.stages.models import find_model, open_folder
from herd.tokenizer.codec import DialogCodec
from herd.tokenizer.layout import Layout
from tests.conftest import ROOT, herd
from tests.conftest import TOY as TOY_RECIPE

CONFIG = TOY.model_copy(update={"vocab_size": 512, "rope_scaling": RopeScaling(factor=4.0), "n_kv_heads": 2})
COMPACT = Layout(tool_prompt="compact")


def make(folder: Path, *, tied: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """Write a toy model folder of 512 ids with everything that an instruct model has."""
    config = CONFIG.model_copy(update={"tie_embeddings": tied})
    model = toy_model(config)
    write_hf(WeightsSource(dict(model.named_parameters()), config), folder, dtype=dtype)
    write_hf_files(folder, config, DialogCodec(byte_tokenizer(), COMPACT), dtype=dtype, chat=True)
    return folder


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return make(tmp_path / "toy")


PLANS = {
    "hf": Plan("hf"),
    "hf in bf16": Plan("hf", dtype=torch.bfloat16),
    "meta": Plan("meta", mp=1),
    "meta on 4 ranks in fp16": Plan("meta", mp=4, dtype=torch.float16),
    "gguf": Plan("gguf"),
    "gguf in bf16": Plan("gguf", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_format_is_written_and_verified(tmp_path: Path, name: str, tied: bool) -> None:
    if PLANS[name].format == "gguf":
        pytest.importorskip("gguf")
    folder = make(tmp_path / "toy", tied=tied)
    target = tmp_path / "out"
    written = export(open_folder(folder), target, PLANS[name], Silent())
    assert json.loads((target / "export.json").read_text()) == written
    assert set(written["verified"]) >= {"weights", "logits", "ids"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "toy"]
    if PLANS[name].format != "gguf":
        ours, theirs = open_source(folder), open_source(target)
        dtype = PLANS[name].dtype or torch.float32
        assert all(torch.equal(theirs.read(n), ours.read(n).to(dtype)) for n in ours.names())


def test_meta_and_back_is_bit_equal_and_keeps_the_dialogs(toy: Path, tmp_path: Path) -> None:
    export(open_folder(toy), tmp_path / "meta", Plan("meta", mp=2), Silent())
    export(open_folder(tmp_path / "meta"), tmp_path / "back", Plan("hf"), Silent())
    ours, theirs = load_file(toy / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert open_folder(tmp_path / "back").layout == COMPACT


def damage_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name].view(2, -1, 2, 32).transpose(1, 2).reshape(tensors[name].shape).contiguous()
    save_file(tensors, file)


def damage_norm(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, file)


def damage_config(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"rope_theta": 10_000.0}))


def damage_tokenizer(folder: Path) -> None:
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+"
    tree["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(tree))


def damage_template(folder: Path) -> None:
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values["chat_template"] = values["chat_template"].replace("<|eot_id|>", "<|eot_id|>\\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (damage_weights, "k_proj|wk"),
        (damage_norm, "norm"),
        (damage_config, "shape"),
        (damage_tokenizer, "the ids of"),
        (damage_template, "rendered dialog"),
    ],
)
def test_what_differs_from_its_source_gets_no_name(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], what: str
) -> None:
    whole = export_module._WRITERS["hf"]

    def bad(model: object, folder: Path, *rest: object) -> object:
        written = whole(model, folder, *rest)  # type: ignore[arg-type]
        damage(folder)
        return written

    monkeypatch.setitem(export_module._WRITERS, "hf", bad)  # type: ignore[arg-type]
    with pytest.raises(HerdError, match=rf"doesn't match its source.*({what})"):
        export(open_folder(toy), tmp_path / "out", Plan("hf"), Silent())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy"]
    written = export(open_folder(toy), tmp_path / "out", Plan("hf", verified=False), Silent())
    assert written["verified"] is False


def test_killed_halfway_leaves_no_folder_and_runs_again(toy: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from herd.base.progress import Silent
from herd.stages.export import Plan, export
from herd.stages.models import open_folder
class Dies(Silent):
    def advance(self, done, total, **figures):
        if done == total // 2:
            os.kill(os.getpid(), signal.SIGKILL)
export(open_folder(Path({str(toy)!r})), Path({str(tmp_path / "out")!r}), Plan("meta", mp=2), Dies())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").is_dir()
    export(open_folder(toy), tmp_path / "out", Plan("meta", mp=2), Silent())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "toy"]


def test_targets_that_can_not_be_written_are_refused(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_folder(toy)
    (tmp_path / "there").mkdir()
    with pytest.raises(RunError, match="is there already"):
        export(model, tmp_path / "there", Plan(), Silent())
    with pytest.raises(ConfigError, match="can't be cut into 16"):
        export(model, tmp_path / "out", Plan("meta", mp=16), Silent())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(RunError, match=r"writes up to 0\.06 GB and the disk has 0\.00 GB free"):
        export(model, tmp_path / "out", Plan(), Silent())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there", "toy"]


def test_parts_that_do_not_belong_together_are_refused(toy: Path, tmp_path: Path) -> None:
    values = json.loads((toy / "config.json").read_text())
    (toy / "config.json").write_text(json.dumps(values | {"vocab_size": 500}))
    with pytest.raises(ConfigError, match="512 ids and the model's embedding 500 rows"):
        open_folder(toy)
    (toy / "config.json").write_text(json.dumps(values))
    template = toy / "tokenizer_config.json"
    template.write_text(json.dumps(json.loads(template.read_text()) | {"chat_template": "{% if %}"}))
    with pytest.raises(DataError, match=r"chat template, line 1"):
        report(toy)
    (toy / "dialog.json").write_text('{"cals": 1}')
    with pytest.raises(DataError, match="'cals'"):
        open_folder(toy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not a model"):
        find_model(tmp_path / "empty")


def test_import_says_what_it_found(toy: Path) -> None:
    found = dict(report(toy))
    assert "Hugging Face" in found["found"]
    assert found["shape"].startswith("2 layers, dim 32, 4 heads of 8 over 2 key/value heads")
    assert "scaled by 4 from 8192" in found["positions"]
    assert found["weights"].startswith(f"{CONFIG.parameters():,} parameters, float32")
    assert found["dialogs"] == "its chat template gives herd's own ids"


@pytest.mark.slow
def test_the_command_line(toy_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "meta"
    done = herd("export", str(toy_run / "flagship"), "--format", "meta", "--mp", "2", "--to", str(target))
    assert done.returncode == 0, done.stderr
    assert "bit equal" in done.stdout
    assert sorted(p.name for p in target.iterdir() if p.suffix == ".pth") == [
        "consolidated.00.pth",
        "consolidated.01.pth",
    ]
    done = herd("import", str(target), "--to", str(tmp_path / "hf"), "--dtype", "bf16", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert "2 model-parallel rank(s)" in done.stdout
    assert json.loads((tmp_path / "hf/export.json").read_text())["verified"] is False
    said = herd("chat", str(target), "--max-tokens", "4", stdin="Hello\n\n")
    assert said.returncode == 0, said.stderr
    assert "herd  " in said.stdout
    scores = herd("eval", str(tmp_path / "hf"), "--items", str(toy_run), "--to", str(tmp_path / "scores"))
    assert scores.returncode == 0, scores.stderr
    assert "arithmetic" in scores.stdout
    for arguments in (
        ["import", str(tmp_path)],
        ["export", str(target), "--format", "onnx"],
        ["export", str(target), "--mp", "8"],
        ["export", str(target), "--dtype", "int3"],
        ["export", str(target), "--to", str(toy_run)],
        ["eval", str(target)],
        ["chat", str(target), "--sibling", "small"],
    ):
        refused = herd(*arguments)
        assert refused.returncode == 2, arguments
        assert refused.stderr.startswith("herd: ")
        assert refused.stderr.count("\n") == 1


def test_quantised_weights_on_the_command_line(toy_run: Path, tmp_path: Path) -> None:
    packed = tmp_path / "int4"
    done = herd("export", str(toy_run / "flagship"), "--quant", "int4", "--to", str(packed))
    assert done.returncode == 0, done.stderr
    assert "bit equal" in done.stdout
    said = herd("chat", str(toy_run), "--quant", "int8", "--max-tokens", "4", stdin="Hello\n\n")
    assert said.returncode == 0, said.stderr
    assert "herd  " in said.stdout
    for arguments, message in (
        (["export", str(toy_run), "--quant", "int4", "--format", "gguf"], "--quant int4 is for --format hf only"),
        (["chat", str(toy_run), "--quant", "int3"], "'int3' is not one of fp32, bf16, int8, int4"),
        (["raise", str(TOY_RECIPE), f"flagship={packed}", "--run", str(tmp_path / "r")], "training needs the original"),
    ):
        refused = herd(*arguments)
        assert refused.returncode == 2, arguments
        assert message in refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_flagship_from_elsewhere(toy_run: Path, tmp_path: Path) -> None:
    """Continued from imported weights, with a stage of no tokens passing them on, siblings distilled from it."""
    export(open_folder(toy_run / "flagship/base"), tmp_path / "meta", Plan("meta"), Silent())
    run = tmp_path / "run"
    meta = tmp_path / "meta"
    overrides = [f"flagship={meta}", "pretrain.tokens=0", "long_context.stages=[]", "anneal.tokens=2000"]
    for verb in ("curate", "tokenizer", "pretrain", "distil"):
        done = herd(verb, str(TOY_RECIPE), *overrides, "--run", str(run))
        assert done.returncode == 0, done.stderr
    ours, start = load_model(run / "flagship/pretrain"), load_model(toy_run / "flagship/base")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), start.parameters(), strict=True))
    assert ours.config == load_model(run / "flagship/base").config
    assert not torch.equal(ours.output.weight, load_model(run / "flagship/base").output.weight)
    assert (run / "tokenizer/tokenizer.model").read_bytes() == (toy_run / "tokenizer/tokenizer.model").read_bytes()
    assert (run / "siblings/small/base/config.json").exists()
    refused = herd("curate", str(TOY_RECIPE), f"flagship={tmp_path / 'nowhere'}", "--run", str(tmp_path / "r"))
    assert refused.returncode == 2
    assert "no such folder" in refused.stderr


def test_transformers_runs_an_exported_folder_and_says_the_same(toy: Path, tmp_path: Path) -> None:
    """Weights, config, tokenizer, template and stop tokens together: the words that come out are herd's."""
    transformers = pytest.importorskip("transformers")
    export(open_folder(toy), tmp_path / "out", Plan("hf"), Silent())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ours = open_folder(toy)
    engine = Engine(load_model(toy))
    stop = frozenset(ours.tokenizer.stop_ids)
    for text in ("Hello", "Wie geht's?", "नमस्ते"):
        prompt = ours.codec.prompt(Dialog((Message("user", text),)))
        ids = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)[
            "input_ids"
        ]
        assert ids == prompt
        said = engine.generate([Request(tuple(prompt), Sampling(max_tokens=20), stop)])[0].ids
        theirs = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
        assert theirs == said
    assert set(model.generation_config.eos_token_id) == set(stop)
