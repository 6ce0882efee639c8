"""The kernels against the transformer that defines them, for each instruction set this processor has."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import TOY, toy_model

from herd.base.errors import ConfigError, HerdError
from herd.engine.engine import Engine
from herd.engine.native import library
from herd.engine.native.pack import pack
from herd.engine.native.runner import NativeRunner, supports
from herd.engine.request import Request, Sampling
from herd.engine.runner import TorchRunner
from herd.engine.runners import open_runner
from herd.engine.scheduler import Share
from herd.engine.sequence import Sequence
from herd.model.config import ModelConfig
from herd.model.quant import QuantLinear, quantise
from herd.model.transformer import Transformer

SETS = [name for name, needs in library._NEEDS.items() if needs <= library._processor_flags()]
pytestmark = pytest.mark.skipif(library.load() is None, reason="there is no C++ compiler to make the kernels with")

# proportions whose rows, strips, groups and heads end in the middle of a vector, and some that don't
CONFIGS = {
    "even": ModelConfig(
        dim=128, n_layers=2, n_heads=8, n_kv_heads=2, ffn_hidden=256, vocab_size=320, max_positions=512
    ),
    "ragged": ModelConfig(
        dim=96, n_layers=3, n_heads=3, n_kv_heads=3, head_dim=36, ffn_hidden=224, vocab_size=333, max_positions=512
    ),
    "many queries": ModelConfig(
        dim=160, n_layers=1, n_heads=20, n_kv_heads=1, ffn_hidden=96, vocab_size=97, max_positions=512,
        tie_embeddings=True,
    ),
}  # fmt: skip
# relative to the size of the scores; of integers, x is rounded to 8 bits too, which the transformer's own path isn't
TOLERANCES = {"fp32": 2e-6, "bf16": 1e-2, "int8": 2e-2, "int4": 2e-2}


@pytest.fixture(params=SETS)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run with each one."""
    monkeypatch.setenv("HERD_KERNELS", request.param)
    return request.param


def model_of(config: ModelConfig, form: str) -> Transformer:
    """Return a toy in a number format."""
    model = Transformer(config).eval()
    model.initialise(torch.Generator().manual_seed(7))
    if form == "bf16":
        model.bfloat16()
    elif form != "fp32":
        quantise(model, form)
    return model


def sequences(config: ModelConfig, lengths: list[int], *, reverse: bool = False) -> list[Sequence]:
    """Return sequences whose blocks lie one after the other, or in the opposite order."""
    generator, taken, made = torch.Generator().manual_seed(3), 0, []
    for handle, length in enumerate(lengths):
        ids = torch.randint(0, config.vocab_size, (length,), generator=generator).tolist()
        sequence = Sequence(handle, Request(tuple(ids)))
        blocks = list(range(taken, taken + -(-length // 16)))
        sequence.table, taken = blocks[::-1] if reverse else blocks, taken + len(blocks)
        made.append(sequence)
    return made


class Part(Share):
    """A share of which scores after its last `wanted` ids are asked for."""

    def __init__(self, sequence: Sequence, count: int, wanted: int) -> None:
        super().__init__(sequence, count)
        object.__setattr__(self, "wanted", wanted)

    @property
    def scored(self) -> int:
        return self.wanted


@torch.inference_mode()
def run(runner: TorchRunner | NativeRunner, rounds: list[list[tuple[Sequence, int, int]]]) -> list[torch.Tensor]:
    """Run rounds of (sequence, count, wanted); return the scores of each."""
    scores = []
    for shares in rounds:
        parts = [Part(*share) for share in shares]
        scores.append(runner.run(parts))
        for part in parts:
            part.sequence.stored += part.count
    return scores


def mixed(config: ModelConfig) -> list[list[tuple[Sequence, int, int]]]:
    """Return rounds in which prompts begin, go on in pieces and end while others decode and have drafts judged."""
    a, b, c = sequences(config, [50, 130, 20], reverse=True)
    return [[(a, 20, 0), (b, 100, 0)], [(a, 29, 1), (b, 28, 3), (c, 5, 0)], [(a, 1, 1), (b, 1, 1), (c, 15, 15)],
            [(b, 1, 1)]]  # fmt: skip


@pytest.mark.parametrize("form", TOLERANCES)
@pytest.mark.parametrize("shape", CONFIGS)
def test_scores_are_those_of_the_transformer(instruction_set: str, shape: str, form: str) -> None:
    config, scores = CONFIGS[shape], []
    model = model_of(config, form)
    for kind in (TorchRunner, NativeRunner):
        runner = kind(model, blocks=32, block_size=16)
        scores.append(torch.cat(run(runner, mixed(config))))
    assert scores[0].shape == (1 + 3 + 1 + 1 + 15 + 1, config.vocab_size)
    error = (scores[0] - scores[1]).norm() / scores[0].norm()
    assert error < TOLERANCES[form]


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_sequences_are_scored_as_the_transformer_scores_them(instruction_set: str, form: str) -> None:
    model, generator = model_of(CONFIGS["ragged"], form), torch.Generator().manual_seed(5)
    texts = [torch.randint(0, 333, (length,), generator=generator).tolist() for length in (1, 90, 2, 512, 17)]
    results = []
    for kind in (TorchRunner, NativeRunner):
        with torch.inference_mode():
            done: list[int] = []
            results.append(kind(model, blocks=1, block_size=16).score(texts, on_done=done.append))
        assert done[-1] == len(texts)
    assert [len(row) for row in results[1]] == [0, 89, 1, 511, 16]
    for plain, ours in zip(*results, strict=True):
        tolerance = 1e-5 if form == "fp32" else 0.1
        assert torch.allclose(torch.tensor(plain), torch.tensor(ours), rtol=0, atol=tolerance)


@settings(max_examples=30, deadline=None)
@given(
    form=st.sampled_from(["fp32", "bf16", "int8", "int4"]),
    pieces=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    others=st.lists(st.integers(1, 40), max_size=9),
    threads=st.sampled_from([1, 2]),
)
def test_the_same_bits_in_any_batch_any_pieces_and_any_number_of_threads(
    form: str, pieces: list[int], others: list[int], threads: int
) -> None:
    config = CONFIGS["ragged"]
    model, length = _kept(form), sum(pieces)
    alone = sequences(config, [length])
    runner = NativeRunner(model, blocks=64, block_size=16)
    expected = run(runner, [[(alone[0], length, length)]])[0]
    torch.set_num_threads(threads)
    try:
        runner = NativeRunner(model, blocks=64, block_size=16)
        one, *rest = sequences(config, [length, *others])
        found = []
        for number, count in enumerate(pieces):
            crowd = [(sequence, len(sequence.ids), 1) for sequence in rest[number::6]]
            scores = run(runner, [[*crowd, (one, count, count)]])[0]
            found.append(scores[len(crowd) :])
        assert torch.equal(torch.cat(found), expected)
    finally:
        torch.set_num_threads(1)


_MODELS: dict[str, Transformer] = {}


def _kept(form: str) -> Transformer:
    return _MODELS.setdefault(form, model_of(CONFIGS["ragged"], form))


@pytest.mark.parametrize("bits", [8, 4])
def test_integer_products_are_exact(instruction_set: str, bits: int) -> None:
    # one layer without a model: levels and scales chosen so that the sum in integers is all there is
    config = ModelConfig(dim=64, n_layers=1, n_heads=2, n_kv_heads=2, ffn_hidden=64, vocab_size=80, max_positions=64)
    model = model_of(config, f"int{bits}")
    head = model.output
    assert isinstance(head, QuantLinear)
    runner = NativeRunner(model, blocks=4, block_size=16)
    generator = torch.Generator().manual_seed(bits)
    levels = torch.randint(-127, 128, (9, 64), generator=generator)
    levels[:, ::32] = 127  # the largest of each group: the rounding of x is then no rounding
    found = runner._scores(levels.float())
    expected = levels.double() @ head.dequantise(torch.float32).double().T
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-3)


def test_what_other_requests_left_in_the_cache_is_not_read(instruction_set: str) -> None:
    config = CONFIGS["even"]
    runner = NativeRunner(model_of(config, "fp32"), blocks=4, block_size=16)
    one, other = sequences(config, [20, 20])
    expected = run(runner, [[(one, 20, 20)]])[0]
    poison = NativeRunner(model_of(config, "fp32"), blocks=4, block_size=16)
    run(poison, [[(other, 20, 0)]])
    with torch.inference_mode():
        poison._kept._keys.fill_(float("nan"))
        poison._kept._values.fill_(float("nan"))
    one.stored = 0
    assert torch.equal(run(poison, [[(one, 20, 20)]])[0], expected)


def test_new_weights_are_packed_anew() -> None:
    model, other = toy_model(), toy_model(seed=1)
    engine, expected = Engine(model), Engine(other)
    request = Request((1, 2, 3), Sampling(max_tokens=5))
    engine.generate([request])
    engine.load_weights({name: p.detach().clone() for name, p in other.named_parameters()})
    assert engine.generate([request]) == expected.generate([request])


def test_weights_that_are_given_away_take_no_memory_and_cannot_be_changed() -> None:
    model, request = toy_model(replace_config(tie_embeddings=True)), Request((1, 2, 3), Sampling(max_tokens=5))
    expected = Engine(toy_model(replace_config(tie_embeddings=True))).generate([request])
    engine = Engine(model, keep_weights=False)
    assert engine.generate([request]) == expected
    left = {name for name, p in model.named_parameters() if p.untyped_storage().nbytes() >= p.nbytes}
    assert left == {name for name, p in model.named_parameters() if p.dim() == 1 or "embeddings" in name}
    with pytest.raises(HerdError, match="keep_weights"):
        engine.load_weights(dict(toy_model().named_parameters()))
    with pytest.raises(HerdError, match="keep_weights"):
        engine.refresh()


def replace_config(**changes: object) -> ModelConfig:
    """Return the toy's proportions with changes."""
    return TOY.model_copy(update=changes) if hasattr(TOY, "model_copy") else replace(TOY, **changes)


def test_a_packed_weight_takes_its_bits_and_scales() -> None:
    linear = model_of(CONFIGS["even"], "int4").layers[0].attention.wo
    packed = pack([linear])
    assert packed.nbytes == 128 * 128 // 2 + 128 * 128 // 32 * 2


def test_what_the_kernels_cannot_run_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    assert isinstance(open_runner(model, blocks=4, block_size=16), NativeRunner)
    assert isinstance(open_runner(model, blocks=4, block_size=4), TorchRunner)
    assert not supports(toy_model().half(), block_size=16)
    monkeypatch.setenv("HERD_KERNELS", "off")
    assert isinstance(open_runner(model, blocks=4, block_size=16), TorchRunner)


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_KERNELS", "sse9")
    with pytest.raises(ConfigError, match=r"sse9.*off, avx512"):
        library.load()


@pytest.mark.parametrize(
    ("compiler", "said"), [(None, "no C\\+\\+ compiler"), ("#!/bin/sh\necho 'error: disk is full' >&2; exit 1", "full")]
)
def test_without_a_working_compiler_there_is_one_line_and_pytorch(
    compiler: str | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if compiler:
        (tmp_path / "c++").write_text(compiler)
        (tmp_path / "c++").chmod(0o700)
    library._load.cache_clear()
    try:
        assert isinstance(open_runner(toy_model(), blocks=4, block_size=16), TorchRunner)
        assert isinstance(open_runner(toy_model(), blocks=4, block_size=16), TorchRunner)
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1
        assert re.search(said, lines[0])
    finally:
        library._load.cache_clear()
