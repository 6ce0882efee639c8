"""The runner of a GPU, uncaptured on a processor: the same scores as the plain runner, whatever the rounds are."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import TOY, toy_documents, toy_model

from herd.engine import kernels, runners
from herd.engine.engine import Engine
from herd.engine.graphs import GraphRunner, Kernels
from herd.engine.passes import PLAIN, TRITON, DecodeKernels, PackedAttention, Spans, packed_plain, packed_rows
from herd.engine.request import Completion, Request, Sampling
from herd.engine.runner import Runner
from herd.engine.runners import choose_kernels, open_runner
from herd.model.transformer import Transformer

CLOSE = {"rtol": 0, "atol": 3e-5}
CONFIG = TOY.model_copy(update={"dim": 64, "head_dim": 16})
MODEL = toy_model(CONFIG)


def engine(model: Transformer = MODEL, *, decode: DecodeKernels = PLAIN, **options: int) -> Engine:
    """Return an engine on a graph runner that captures nothing."""

    def opened(model: Transformer, *, blocks: int, block_size: int, keep_weights: bool) -> Runner:
        return GraphRunner(model, blocks=blocks, block_size=block_size, kernels=Kernels(decode))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("herd.engine.engine.open_runner", opened)
        return Engine(model, **options)


def requests(lengths: list[int], **changes: object) -> list[Request]:
    """Return requests of prompts of these lengths, every second one sampled."""
    prompts = [tuple(ids) for ids in toy_documents(lengths, seed=3)]
    return [
        Request(prompt, replace(Sampling(temperature=0.7 * (i % 2), max_tokens=3 + 5 * i % 11, seed=i), **changes))
        for i, prompt in enumerate(prompts)
    ]


def same(a: list[Completion], b: list[Completion]) -> None:
    """Assert equal ids and log-probabilities."""
    for one, other in zip(a, b, strict=True):
        assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)
        torch.testing.assert_close(*(torch.tensor([t.logprob for t in c.tokens]) for c in (one, other)), **CLOSE)
        for mine, theirs in zip(one.prompt_logprobs or (), other.prompt_logprobs or (), strict=True):
            assert mine == pytest.approx(theirs, abs=3e-5)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    max_running=st.integers(1, 9),
    chunk=st.sampled_from([1, 3, 64]),
    block_size=st.sampled_from([1, 4, 16]),
    tight=st.booleans(),
    scored=st.booleans(),
)
def test_it_answers_as_the_plain_runner(
    lengths: list[int], max_running: int, chunk: int, block_size: int, tight: bool, scored: bool
) -> None:
    wanted = requests(lengths, prompt_logprobs=scored)
    blocks = -(-(60 if tight else 400) // block_size)  # tight: requests are preempted and blocks used again
    options = {"max_running": max_running, "prefill_chunk": chunk, "block_size": block_size, "blocks": blocks}
    same(engine(**options).generate(wanted), Engine(toy_model(CONFIG), **options).generate(wanted))


def test_more_rows_than_a_graph_takes_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.engine.graphs._MOST_ROWS", 4)
    wanted = requests([5, 9, 2, 30, 7, 7, 1, 12, 3, 20, 4])
    same(engine(max_running=11).generate(wanted), Engine(toy_model(CONFIG), max_running=11).generate(wanted))


def test_joined_projections_see_new_weights_and_keep_their_names() -> None:
    model, other = toy_model(CONFIG), toy_model(CONFIG, seed=1)
    ours, names = engine(model), set(model.state_dict())
    ours.load_weights({name: value.clone() for name, value in other.state_dict().items()})
    assert set(model.state_dict()) == names
    joined = model.layers[0].attention.joined
    engine(model)
    assert model.layers[0].attention.joined is joined
    assert model.layers[0].attention.wk.weight.data_ptr() > model.layers[0].attention.wq.weight.data_ptr()
    wanted = requests([5, 20])
    same(ours.generate(wanted), Engine(other).generate(wanted))


def test_a_joined_model_still_learns() -> None:
    ids = torch.tensor([toy_documents([12])[0]])
    plain, joined = toy_model(CONFIG), toy_model(CONFIG)
    engine(joined)
    for model in (plain, joined):
        model.logits(model(ids)).logsumexp(-1).sum().backward()
    for one, other in zip(plain.parameters(), joined.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_wrong_or_failing_kernel_is_not_taken(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    def wrong(*args: object, **options: object) -> torch.Tensor:
        return PLAIN.attend(*args, **options) * 1.01

    def failing(*args: object) -> torch.Tensor:
        raise RuntimeError("no such kernel\nat all")

    monkeypatch.setattr(kernels, "fits", lambda *sizes: True)
    monkeypatch.setattr(runners, "TRITON", replace(PLAIN, attend=wrong, whole=False))
    monkeypatch.setattr(runners, "packed_flash", failing)
    monkeypatch.setattr(runners, "packed_rows", failing)
    chosen = choose_kernels(CONFIG, block_size=16, dtype=torch.float32, device="cpu")
    assert (chosen.decode, chosen.prompt, chosen.capture) == (PLAIN, packed_plain, False)
    assert "differs from the plain operators by" in caplog.text
    assert "failing: RuntimeError: no such kernel;" in caplog.text
    monkeypatch.setattr(runners, "TRITON", replace(PLAIN, whole=False))
    monkeypatch.setattr(runners, "packed_flash", packed_plain)
    assert choose_kernels(CONFIG, block_size=16, dtype=torch.float32, device="cpu").unused == ()


@pytest.mark.parametrize("attention", [packed_plain, packed_rows])
def test_packed_rows_see_what_is_before_them(attention: PackedAttention, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.engine.passes._QUERIES", 3)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(9, heads, 8, generator=generator) for heads in (4, 2, 2))
    spans = Spans((0, 4, 5), (0, 6, 9))
    out = attention(q[:5], k, v, spans, torch.zeros(2, 3))
    for new, held, rows in ((slice(0, 4), slice(0, 6), 4), (slice(4, 5), slice(6, 9), 1)):
        keys, values = (x[held].repeat_interleave(2, 1).transpose(0, 1) for x in (k, v))
        scores = q[new].transpose(0, 1) @ keys.transpose(1, 2) / 8**0.5
        unseen = torch.ones(scores.shape[1:]).triu(keys.shape[1] - rows + 1).bool()
        wanted = scores.masked_fill(unseen, float("-inf")).softmax(-1) @ values
        torch.testing.assert_close(out[new], wanted.transpose(0, 1))


def test_on_a_processor_the_model_itself_runs() -> None:
    assert type(open_runner(MODEL, blocks=1, block_size=1)).__name__ == "TorchRunner"


@pytest.mark.skipif(not kernels.AVAILABLE, reason="needs Triton; on a processor also TRITON_INTERPRET=1")
def test_the_triton_kernels_answer_alike() -> None:
    assert choose_kernels(CONFIG, block_size=4, dtype=torch.float32, device="cpu").decode == TRITON
    wanted = requests([5, 33], max_tokens=3)
    same(engine(decode=TRITON, block_size=4).generate(wanted), Engine(toy_model(CONFIG)).generate(wanted))
