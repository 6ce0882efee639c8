"""GGUF: bit equal there and back, readable by the `gguf` package, run by llama.cpp, damage told in one line."""

import builtins
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import TOY, toy_model

from herd.base.errors import ConfigError, DataError, HerdError
from herd.engine.engine import Engine
from herd.engine.request import Request, Sampling
from herd.model.config import ModelConfig, RopeScaling
from herd.model.gguf import GGUFSource, rope_factors, stored_as, write_gguf
from herd.model.source import WeightsSource
from herd.model.streamed import streamed_logits
from herd.model.transformer import Transformer
from herd.stages.vocabulary import from_vocabulary, to_vocabulary
from herd.tokenizer.bpe import Tokenizer

gguf = pytest.importorskip("gguf")

EARLY = RopeScaling(factor=4.0, original_max_position_embeddings=16)
SHAPES: dict[str, dict[str, Any]] = {
    "gqa": {},
    "tied": {"tie_embeddings": True},
    "scaled": {"rope_scaling": EARLY},
    "published scaling": {"rope_scaling": RopeScaling(factor=32.0), "max_positions": 131_072, "norm_eps": 1e-6},
    "wide heads": {"head_dim": 16, "rope_theta": 10_000.0},
}
TEXTS = (
    "The theme of the other thing.",
    "  tabs\n\n\tand 1234567",
    "Äpfel, हिन्दी, ไทย",
    "<|eot_id|> is text",
    "\x00'S ",
)
TEMPLATE = "{{- bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


def tokenizer() -> Tokenizer:
    """Return a tokenizer of a few merges, among them one token that can be put together in two ways."""
    words = (b"th", b"he", b"the", b" t", b" the", b"\n\n", b"12", b"123", b"\xc3\x84", b"in", b"ing", b"thing")
    return Tokenizer({bytes((byte,)): byte for byte in range(256)} | {word: 256 + i for i, word in enumerate(words)})


def toy(name: str = "gqa") -> Transformer:
    """Return a toy model of a named shape whose embedding fits the tokenizer."""
    return toy_model(
        ModelConfig(**TOY.model_dump() | {"vocab_size": tokenizer().n_vocab, "max_positions": 512} | SHAPES[name])
    )


def source_of(model: Transformer) -> WeightsSource:
    """Return a model's weights; they are named without the tied matrix."""
    return WeightsSource(dict(model.named_parameters()), model.config)


def written(folder: Path, model: Transformer, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model with the tokenizer of this file and return where."""
    path = folder / "model.gguf"
    vocabulary = to_vocabulary(tokenizer(), chat_template=TEMPLATE, eos_id=tokenizer().eot_id)
    write_gguf(source_of(model), vocabulary, path, dtype=dtype, name="toy")
    return path


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_come_back_bit_equal(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = toy(name)
    path = written(tmp_path, model, dtype)
    again, wanted = GGUFSource(path), source_of(model)
    assert again.config == model.config.model_copy(update={"head_dim": model.config.head_size})
    assert again.names() == wanted.names()
    for key in wanted.names():
        tensor = again.read(key)
        assert tensor.dtype == again.dtype(key) == stored_as(key, dtype)
        assert tuple(tensor.shape) == again.shape(key)
        assert torch.equal(tensor, wanted.read(key).to(tensor.dtype)), key
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


def test_logits_are_the_same_to_the_bit(tmp_path: Path) -> None:
    model = toy("scaled")
    tokens = torch.tensor([tokenizer().encode(" ".join(TEXTS), bos=True)])
    again = GGUFSource(written(tmp_path, model))
    ours = streamed_logits(source_of(model), tokens, dtype=torch.float32)
    assert torch.equal(streamed_logits(again, tokens, dtype=torch.float32), ours)
    assert ours.std() > 0.5


def test_the_vocabulary_comes_back(tmp_path: Path) -> None:
    vocabulary = GGUFSource(written(tmp_path, toy())).vocabulary
    assert vocabulary == to_vocabulary(tokenizer(), chat_template=TEMPLATE, eos_id=tokenizer().eot_id)
    assert from_vocabulary(vocabulary).ranks == tokenizer().ranks
    assert {"t he", "th e"} <= set(vocabulary.merges)
    with pytest.raises(DataError, match="its merges are not those"):
        from_vocabulary(replace(vocabulary, merges=vocabulary.merges[1:]))
    with pytest.raises(DataError, match="its last 256 tokens are not"):
        from_vocabulary(replace(vocabulary, tokens=(*vocabulary.tokens[:-1], "<|other|>")))


def test_the_gguf_package_reads_what_llama_cpp_asks_for(tmp_path: Path) -> None:
    model = toy("scaled")
    path = written(tmp_path, model, torch.bfloat16)
    reader = gguf.GGUFReader(path)
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert {key: said[key] for key in said if key.startswith(("general.", "llama."))} == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "toy",
        "general.file_type": gguf.LlamaFileType.MOSTLY_BF16,
        "llama.context_length": 512,
        "llama.embedding_length": 32,
        "llama.block_count": 2,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 500_000.0,
        "llama.vocab_size": tokenizer().n_vocab,
    }
    ids = tokenizer()
    wanted: dict[str, Any] = {
        "ggml.model": "gpt2",
        "ggml.pre": "llama-bpe",
        "ggml.add_bos_token": True,
        "ggml.bos_token_id": ids.bos_id,
        "ggml.eos_token_id": ids.eot_id,
        "ggml.eot_token_id": ids.eot_id,
        "ggml.eom_token_id": ids.eom_id,
        "ggml.padding_token_id": ids.pad_id,
        "chat_template": TEMPLATE,
    }
    assert {key: said[f"tokenizer.{key}"] for key in wanted} == wanted
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert tokens[ord("a")] == "a"
    assert tokens[ord(" ")] == "Ġ"
    assert tokens[ids.ranks[b" the"]] == "Ġthe"
    assert tokens[ids.eot_id] == "<|eot_id|>"
    assert types == [gguf.TokenType.NORMAL] * ids.n_ranks + [gguf.TokenType.CONTROL] * 256

    rows = {tensor.name: tensor for tensor in reader.tensors}
    assert rows["blk.1.ffn_down.weight"].tensor_type == gguf.GGMLQuantizationType.BF16
    norm, factors = rows["blk.0.attn_norm.weight"], rows["rope_freqs.weight"]
    assert norm.tensor_type == factors.tensor_type == gguf.GGMLQuantizationType.F32
    assert np.array_equal(norm.data, model.layers[0].attention_norm.weight.detach().numpy())
    wanted_factors = rope_factors(model.config)
    assert wanted_factors is not None
    assert np.array_equal(factors.data, wanted_factors.numpy())
    assert 1.0 < factors.data[0] < factors.data[-1] == 4.0


@torch.no_grad()
@pytest.mark.parametrize("name", ["gqa", "tied", "scaled", "wide heads"])
def test_llama_cpp_goes_on_as_herd_does(tmp_path: Path, name: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model, ids = toy(name), tokenizer()
    theirs = llama_cpp.Llama(
        str(written(tmp_path, model)),
        n_ctx=128,
        n_threads=1,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    for text in TEXTS:
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ids.encode(text)
    prompt = theirs.tokenize(" ".join(TEXTS).encode(), add_bos=True, special=False)
    assert prompt == ids.encode(" ".join(TEXTS), bos=True)
    assert len(prompt) > 2 * EARLY.original_max_position_embeddings
    theirs.eval(prompt)
    ours = model.logits(model(torch.tensor([prompt])))[0]
    torch.testing.assert_close(torch.tensor(theirs.scores[: len(prompt)]), ours, rtol=0, atol=1e-3)
    request = Request(tuple(prompt), Sampling(max_tokens=16))
    wanted = Engine(model, max_running=1).generate([request])[0].ids
    found = []
    for _ in range(16):
        found.append(int(theirs.scores[theirs.n_tokens - 1].argmax()))
        theirs.eval(found[-1:])
    assert found == wanted
    theirs.close()


def test_rows_of_queries_and_keys_are_in_pairs(tmp_path: Path) -> None:
    model = toy()
    rows = {tensor.name: tensor.data for tensor in gguf.GGUFReader(written(tmp_path, model)).tensors}
    size = model.config.head_size
    ours = model.layers[1].attention.wk.weight.detach().numpy()
    for head in range(model.config.n_kv_heads):
        for pair in range(size // 2):
            theirs = rows["blk.1.attn_k.weight"][head * size + 2 * pair :][:2]
            assert np.array_equal(theirs, ours[[head * size + pair, head * size + size // 2 + pair]])
    assert np.array_equal(rows["blk.1.attn_v.weight"], model.layers[1].attention.wv.weight.detach().numpy())


def test_factors_are_those_of_llama_cpp_for_llama_3_1() -> None:
    # llama.cpp's converter: 1 for short wavelengths, the factor for long ones, a ramp between, in double precision
    config = ModelConfig(**TOY.model_dump() | {"head_dim": 128, "rope_scaling": RopeScaling()})
    wanted = []
    for step in range(0, 128, 2):
        wavelength = 2 * np.pi * 500_000.0 ** (step / 128)
        smooth = np.clip((8192 / wavelength - 1.0) / (4.0 - 1.0), 0, 1)
        wanted.append(1 / ((1 - smooth) / 8.0 + smooth))
    found = rope_factors(config)
    assert found is not None
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-6)
    assert len({round(value, 3) for value in wanted}) > 4
    assert rope_factors(TOY) is None


def rewritten(
    path: Path, changes: dict[str, Any], *, drop: Sequence[str] = (), tensors: dict[str, Any] | None = None
) -> None:
    """Write a file anew by the `gguf` package with other metadata and further tensors."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_suffix(".new"), changes.pop("general.architecture", "llama"))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or any(key.startswith(d) for d in drop):
            continue
        kind, sub = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, changes.pop(key, field.contents()), kind, sub)
    for key, value in changes.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


def test_a_scaling_is_recovered_from_a_file_of_others(tmp_path: Path) -> None:
    published = written(tmp_path, toy("published scaling"))
    rewritten(published, {}, drop=["herd."])
    assert GGUFSource(published).config.rope_scaling == RopeScaling(factor=32.0)
    other = written(tmp_path, toy("scaled"))
    rewritten(other, {}, drop=["herd."])
    with pytest.raises(DataError, match=r"rope_freqs\.weight are not those of a published Llama"):
        GGUFSource(other)
    forged = written(tmp_path, toy("scaled"))
    rewritten(forged, {"herd.rope_scaling.factor": 5.0})
    with pytest.raises(DataError, match=r"rope_freqs\.weight are not those of \{'factor': 5\.0"):
        GGUFSource(forged)


@pytest.mark.parametrize(
    ("changes", "drop", "message"),
    [
        ({"general.architecture": "gpt2"}, [], "its architecture is 'gpt2', not 'llama'"),
        ({"llama.expert_count": 8}, [], r"key llama\.expert_count is not known to herd"),
        ({"llama.rope.dimension_count": 4}, [], r"llama\.rope\.dimension_count is 4, and a head has 8"),
        ({"llama.block_count": 3}, [], r"missing tensors \['blk\.2\.attn_k"),
        ({"llama.feed_forward_length": 40}, [], r"ffn_gate\.weight is \[48, 32\], its metadata says \[40, 32\]"),
        ({"llama.attention.head_count": 3}, [], "n_heads 3 must be a multiple of n_kv_heads 2"),
        ({"tokenizer.ggml.pre": "smollm"}, [], "its tokenizer is 'smollm', not Llama 3's"),
        ({"tokenizer.ggml.bos_token_id": 9999}, [], "bos_id 9999 is none of its 524 tokens"),
        ({}, ["llama.embedding_length"], r"key llama\.embedding_length is missing"),
        ({}, ["tokenizer.ggml.token_type"], "524 tokens and 0 token types"),
        ({}, ["blk.0.ffn_up.weight"], r"missing tensors \['blk\.0\.ffn_up\.weight'\]"),
    ],
)
def test_a_file_of_another_model_is_refused(
    tmp_path: Path, changes: dict[str, Any], drop: list[str], message: str
) -> None:
    path = written(tmp_path, toy())
    rewritten(path, changes, drop=drop)
    with pytest.raises(HerdError, match=message):
        GGUFSource(path)


def test_surplus_and_quantised_tensors_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, toy())
    rewritten(path, {}, tensors={"blk.0.attn_q.bias": np.zeros(32, np.float32)})
    with pytest.raises(DataError, match=r"surplus tensors \['blk\.0\.attn_q\.bias'\]"):
        GGUFSource(path)
    path = written(tmp_path, toy())
    rewritten(path, {}, tensors={"whole": np.zeros(32, np.int32)})
    with pytest.raises(DataError, match="tensor whole is quantised"):
        GGUFSource(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that nobody changes."""
    return written(tmp_path_factory.mktemp("whole"), toy("tied"))


@settings(max_examples=100, deadline=None)
@given(share=st.floats(0, 1), where=st.floats(0, 1), byte=st.integers(0, 255))
def test_damage_gives_one_line(whole: Path, share: float, where: float, byte: int) -> None:
    damaged, bytes_ = whole.with_name("damaged.gguf"), bytearray(whole.read_bytes())
    damaged.write_bytes(bytes_[: int(share * (len(bytes_) - 32))])
    with pytest.raises(DataError, match=r"damaged\.gguf: (cut short|not a GGUF file)"):
        GGUFSource(damaged)
    bytes_[int(where * 8000)] = byte
    damaged.write_bytes(bytes_)
    line = ""
    try:
        GGUFSource(damaged)
    except HerdError as error:  # any other error fails the test; some bytes, of a name, may be any
        line = str(error)
    assert "\n" not in line


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with pytest.raises(DataError, match=r"x\.gguf: can't be read \(No such file"):
        GGUFSource(path)
    path.write_bytes(b"\x80\x04pickle or something")
    with pytest.raises(DataError, match="not a GGUF file"):
        GGUFSource(path)
    path.write_bytes(b"GGUF" + (1).to_bytes(4, "little"))
    with pytest.raises(DataError, match="GGUF version 1"):
        GGUFSource(path)
    # counts that would fill the memory if they were believed
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 40)
    with pytest.raises(DataError, match="cut short or damaged"):
        GGUFSource(path)


def test_what_cannot_be_written_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, source = tmp_path / "model.gguf", source_of(toy())
    vocabulary = to_vocabulary(tokenizer(), chat_template=None)
    with pytest.raises(ConfigError, match="GGUF in float64"):
        write_gguf(source, vocabulary, path, dtype=torch.float64, name="toy")
    fewer = replace(vocabulary, tokens=vocabulary.tokens[:-1])
    with pytest.raises(ConfigError, match="the vocabulary has 523 ids and the embedding 524 rows"):
        write_gguf(source, fewer, path, dtype=torch.float32, name="toy")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "gguf":
            raise ModuleNotFoundError("No module named 'gguf'", name="gguf")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(HerdError, match=r"needs the `gguf` extra: pip install 'herd\[gguf\]'"):
        write_gguf(source, vocabulary, path, dtype=torch.float32, name="toy")
    assert not list(tmp_path.iterdir())
