"""Quantised weights: what is packed comes back, errors are bounded, and a quantised model keeps the engine's laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import TOY, toy_documents, toy_model

from herd.base.errors import DataError
from herd.engine.engine import Engine
from herd.engine.request import Request, Sampling
from herd.model.packing import Packing, dequantised, pack, quantised, unpack
from herd.model.quant import QuantFormat, QuantLinear, planned, quantise
from herd.model.source import linear_shapes

WIDE = TOY.model_copy(update={"dim": 64, "ffn_hidden": 96})  # groups of 64 and 32
PACKINGS = [Packing(8, 128), Packing(8, 64), Packing(8, 32), Packing(4, 32), Packing(4, 128)]


def draw(n: int, k: int, *, seed: int = 0) -> torch.Tensor:
    """Draw weights with a few large ones among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, k, generator=generator)
    return x * (1 + 5 * (torch.rand(n, k, generator=generator) < 0.01))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 9), words=st.integers(1, 12), bits=st.sampled_from([4, 8]), seed=st.integers(0, 99))
def test_levels_come_back_from_their_words(n: int, words: int, bits: int, seed: int) -> None:
    half = 1 << (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(-half, half, (n, words * 32 // bits), generator=generator).to(torch.int8)
    packed = pack(levels, bits)
    assert (packed.dtype, packed.shape) == (torch.int32, (n, words))
    assert torch.equal(unpack(packed, bits), levels)


def test_the_first_level_is_in_the_lowest_bits() -> None:
    """The format's own words: offset binary, low bits first."""
    levels = torch.tensor([[-8, -7, -6, -5, 0, 1, 2, 7]], dtype=torch.int8)
    assert pack(levels, 4).view(torch.uint8).tolist() == [[0x10, 0x32, 0x98, 0xFA]]
    assert pack(torch.tensor([[-128, -1, 0, 127]], dtype=torch.int8), 8).view(torch.uint8).tolist() == [
        [0, 127, 128, 255]
    ]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 5),
    groups=st.integers(1, 4),
    packing=st.sampled_from(PACKINGS),
    power=st.integers(-130, 119),
    seed=st.integers(0, 99),
)
def test_errors_are_bounded_at_every_size(n: int, groups: int, packing: Packing, power: int, seed: int) -> None:
    weight = draw(n, groups * packing.group, seed=seed)
    weight = (weight / weight.abs().max()).double().mul(2.0**power).float()
    words, scale = quantised(weight, packing)
    error = (dequantised(words, scale, packing, torch.float32) - weight).abs().double()
    step = scale.double().abs().repeat_interleave(packing.group, dim=1)
    assert scale.isfinite().all()
    if packing.bits == 8:
        assert (error <= step * 0.500001).all()
    # int4 trades the largest against all others: never worse, in squares, than the plain grid that keeps it exact
    largest = weight.unflatten(1, (-1, packing.group)).abs().amax(-1).double()
    assert (error.unflatten(1, (-1, packing.group)).amax(-1) <= largest * 0.5 + torch.finfo(torch.bfloat16).tiny).all()


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """Round as llama.cpp's Q4_0 does: the largest weight becomes -8, the scale is a float16."""
    x = weight.unflatten(1, (-1, 32))
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    levels = (x / scale + 8.5).floor().clamp(0, 15) - 8
    return (levels * scale.half().float()).flatten(1)


@pytest.mark.parametrize("kind", ["normal", "laplace", "student"])
def test_int4_is_nearer_than_the_rule_of_q4_0(kind: str) -> None:
    torch.manual_seed(0)
    draws = {"normal": torch.distributions.Normal(0.0, 1.0), "laplace": torch.distributions.Laplace(0.0, 1.0)}
    draws["student"] = torch.distributions.StudentT(4.0)
    weight = draws[kind].sample((500, 320))
    ours = dequantised(*quantised(weight, Packing(4, 32)), Packing(4, 32), torch.float32)
    assert (ours - weight).square().sum() < 0.94 * (q4_0(weight) - weight).square().sum()


@pytest.mark.parametrize("packing", PACKINGS)
def test_groups_of_zeros_and_exact_levels_stay_exact(packing: Packing) -> None:
    weight = torch.zeros(3, 2 * packing.group)
    half = 1 << (packing.bits - 1)
    weight[1, : packing.group] = torch.arange(packing.group) % half * -0.25
    weight[1, 0] = -0.25 * (half - (packing.bits == 8))
    back = dequantised(*quantised(weight, packing), packing, torch.float32)
    assert torch.equal(back, weight)
    assert torch.equal(dequantised(*quantised(-weight, packing), packing, torch.float32), -weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_numbers_that_cannot_be_quantised_are_refused_by_name(bad: float) -> None:
    model = toy_model(WIDE)
    with torch.no_grad():
        model.layers[1].feed_forward.w3.weight[5, 7] = bad
    with pytest.raises(DataError, match=r"^layers\.1\.feed_forward\.w3\.weight holds NaN, infinity"):
        quantise(model, "int4")


def test_a_layer_is_its_dequantised_weight_in_every_number_format() -> None:
    torch.set_num_threads(1)
    x = draw(7, 64, seed=3)
    for packing in (Packing(8, 64), Packing(4, 32)):
        layer = QuantLinear(64, 48, packing)
        layer.load_state_dict({"weight": draw(48, 64)})
        assert (layer.weight_packed.shape, layer.weight_scale.shape) == (
            (48, 64 * packing.bits // 32),
            (48, 64 // packing.group),
        )
        scales = layer.weight_scale.float().repeat_interleave(packing.group, dim=1)
        assert torch.equal(layer.dequantise(torch.float32), layer.levels() * scales)
        for dtype in (torch.float32, torch.bfloat16):
            wanted = torch.nn.functional.linear(x.to(dtype), layer.dequantise(dtype))
            assert torch.equal(layer(x.to(dtype)), wanted)
        assert layer(x.view(7, 1, 64)).shape == (7, 1, 48)


def test_a_forward_pass_dequantises_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantLinear(64, 50, Packing(4, 32))
    layer.load_state_dict({"weight": draw(50, 64)})
    x = draw(3, 64)
    whole, seen = layer(x), []
    import herd.model.quant as module

    monkeypatch.setattr(module, "row_pieces", lambda n, k: (slice(i, i + 7) for i in range(0, n, 7)))
    plain = module.dequantised
    monkeypatch.setattr(module, "dequantised", lambda words, *rest: seen.append(len(words)) or plain(words, *rest))
    torch.testing.assert_close(layer(x), whole, rtol=0, atol=1e-5)
    assert seen == [7] * 7 + [1]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_layers_and_head_are_quantised_and_nothing_else(form: QuantFormat, tied: bool) -> None:
    config = WIDE.model_copy(update={"tie_embeddings": tied})
    model = quantise(toy_model(config), form)
    found = {name: m.packing for name, m in model.named_modules() if isinstance(m, QuantLinear)}
    bits = 8 if form == "int8" else 4
    assert found == planned(config, form)
    assert set(found) == set(linear_shapes(config)) | {"output"}
    assert found["output"] == Packing(8, 64)
    assert found["layers.0.feed_forward.w2"] == Packing(bits, 32)
    assert {name for name, _ in model.named_parameters()} == {
        name for name, _ in toy_model(config).named_parameters() if "norm" in name or "tok" in name
    }
    if tied:
        embedding = model.tok_embeddings.weight
        assert (model.output.dequantise(torch.float32) - embedding).abs().max() < embedding.abs().max() / 250


def test_widths_that_no_group_divides_stay_as_they_are() -> None:
    config = TOY.model_copy(update={"dim": 40, "ffn_hidden": 256})
    assert planned(config, "int8") == {f"layers.{i}.feed_forward.w2": Packing(8, 128) for i in range(2)}
    model = quantise(toy_model(config), "int8")
    assert isinstance(model.output, torch.nn.Linear)
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 40)


def requests() -> list[Request]:
    """Draw requests of many lengths, greedy and sampled."""
    prompts = toy_documents([3 + 7 * i % 40 for i in range(9)], seed=5)
    return [
        Request(tuple(ids), Sampling(temperature=0.8 * (i % 2), max_tokens=12, seed=i)) for i, ids in enumerate(prompts)
    ]


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_quantised_engine_says_the_same_in_any_batch_and_chunk(form: QuantFormat) -> None:
    torch.set_num_threads(1)
    model = quantise(toy_model(WIDE), form)
    alone = [c.ids for c in Engine(model, max_running=1, prefix_reuse=False).generate(requests())]
    for options in ({"max_running": 9}, {"max_running": 4, "prefill_chunk": 5}, {"max_running": 3, "blocks": 9}):
        done = Engine(model, **options).generate(requests())
        assert [c.ids for c in done] == alone
        whole = [[*r.prompt, *c.ids] for r, c in zip(requests(), done, strict=True)]
        for row, c in zip(Engine(model).score(whole), done, strict=True):
            got = torch.tensor([t.logprob for t in c.tokens])
            torch.testing.assert_close(got, torch.tensor(row[-len(c.ids) :]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_new_float_weights_are_quantised_again(tied: bool) -> None:
    config = WIDE.model_copy(update={"tie_embeddings": tied})
    engine = Engine(quantise(toy_model(config), "int4"))
    other = toy_model(config, seed=1)
    engine.load_weights({name: p.detach() for name, p in other.named_parameters()})
    wanted = quantise(other, "int4").state_dict()
    found = engine.model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
