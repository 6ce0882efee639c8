"""The engine: the trainer's own log-probabilities, whoever else is in the batch; and how tokens are chosen."""

import math
from collections.abc import Iterator

import pytest
import torch
from toys import TOY, toy_documents, toy_examples, toy_model

from herd.base.errors import HerdError
from herd.engine.engine import Engine
from herd.engine.request import Completion, Request, Sampling
from herd.engine.sampler import Picker, choose
from herd.train.batch import collate
from herd.train.objective import NextToken

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module", params=["kernels", "pytorch"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Return an engine on herd's own kernels, where they can be had, and one on PyTorch's operators."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "pytorch":
            patch.setenv("HERD_KERNELS", "off")
        yield Engine(toy_model(), max_running=4)


def prompts(lengths: list[int]) -> list[tuple[int, ...]]:
    """Draw prompts."""
    return [tuple(ids) for ids in toy_documents(lengths, seed=7)]


def mixed(count: int = 11) -> list[Request]:
    """Return requests of many lengths, greedy and sampled."""
    requests = []
    for i, prompt in enumerate(prompts([1 + (7 * i) % 23 for i in range(count)])):
        sampling = Sampling(temperature=0.9 * (i % 2), top_p=0.9, top_k=20, max_tokens=3 + 5 * i % 19, seed=i)
        requests.append(Request(prompt, sampling, frozenset({4, 5, 6}) if i % 3 else frozenset()))
    return requests


@torch.no_grad()
def forward(model: torch.nn.Module, ids: list[int]) -> list[float]:
    """Return the trainer's log-probability of every id but the first."""
    row = torch.tensor([ids])
    documents = torch.zeros_like(row)
    logprobs = model.logits(model(row, documents=documents))[0].log_softmax(-1)
    return logprobs[:-1].gather(1, row[0, 1:, None])[:, 0].tolist()


def same(a: Completion, b: Completion) -> None:
    """Assert equal ids, reasons and log-probabilities."""
    assert (a.ids, a.finish_reason) == (b.ids, b.finish_reason)
    torch.testing.assert_close(*(torch.tensor([t.logprob for t in c.tokens]) for c in (a, b)), **CLOSE)


def test_generated_logprobs_are_the_trainers(engine: Engine) -> None:
    requests = mixed()
    for request, done in zip(requests, engine.generate(requests), strict=True):
        wanted = forward(engine.model, [*request.prompt, *done.ids])[len(request.prompt) - 1 :]
        torch.testing.assert_close(torch.tensor([t.logprob for t in done.tokens]), torch.tensor(wanted), **CLOSE)


def test_scored_logprobs_are_the_trainers_and_sum_to_its_loss(engine: Engine) -> None:
    examples = toy_examples([9, 30, 2, 17, 24, 1, 12], share=1.0)
    sequences = [example.ids.tolist() for example in examples]
    scored = engine.score(sequences)
    assert engine.score([[], sequences[0], sequences[5]])[::2] == [[], []]
    for ids, row in zip(sequences, scored, strict=True):
        torch.testing.assert_close(torch.tensor(row), torch.tensor(forward(engine.model, ids)), **CLOSE)
    whole = [type(e)(e.ids) for e in examples]
    loss = NextToken().loss(engine.model, collate([whole[:3], whole[3:]], row_length=90, pad_id=0))
    assert -math.fsum(map(math.fsum, scored)) == pytest.approx(loss.total.item(), rel=1e-5)


@pytest.mark.parametrize("max_running", [1, 2, 3, 16])
def test_completions_dont_depend_on_who_else_is_there(engine: Engine, max_running: int) -> None:
    requests = mixed()
    together = Engine(engine.model, max_running=max_running).generate(requests)
    for request, completion in zip(requests, together, strict=True):
        same(completion, engine.generate([request])[0])


def test_completions_dont_depend_on_the_order_of_arrival(engine: Engine) -> None:
    requests = mixed()
    straight, turned = engine.generate(requests), engine.generate(requests[::-1])
    for a, b in zip(straight, turned[::-1], strict=True):
        same(a, b)


def test_streaming_gives_the_same_tokens(engine: Engine) -> None:
    for request in mixed(5):
        done = engine.generate([request])[0]
        streamed = list(engine.stream(request))
        assert [t.id for t in streamed] == done.ids
        torch.testing.assert_close(
            torch.tensor([t.logprob for t in streamed]), torch.tensor([t.logprob for t in done.tokens]), **CLOSE
        )


def test_a_stop_id_ends_an_answer_and_is_kept(engine: Engine) -> None:
    prompt = prompts([10])[0]
    free = engine.generate([Request(prompt, Sampling(max_tokens=12))])[0]
    assert (free.finish_reason, len(free.ids)) == ("length", 12)
    stop = free.ids[5]
    first = free.ids.index(stop)
    stopped = engine.generate([Request(prompt, Sampling(max_tokens=12), frozenset({stop}))])[0]
    assert (stopped.finish_reason, stopped.ids) == ("stop", free.ids[: first + 1])


def test_capacity_ends_an_answer(engine: Engine) -> None:
    small = Engine(engine.model, max_running=2, blocks=1)
    one, two = small.generate([Request(p, Sampling(max_tokens=50)) for p in prompts([15, 10])])
    assert (len(one.ids), one.finish_reason) == (1, "length")
    assert (len(two.ids), two.finish_reason) == (6, "length")


@pytest.mark.parametrize("length", [0, 96, 200])
def test_a_prompt_that_doesnt_fit_is_refused(engine: Engine, length: int) -> None:
    with pytest.raises(HerdError, match=f"a prompt of {length} tokens doesn't fit: this model holds 96 positions"):
        engine.generate([Request(prompts([3])[0]), Request(tuple([1] * length))])


def test_progress_counts_every_completion(engine: Engine) -> None:
    seen: list[int] = []
    engine.generate(mixed(), on_done=seen.append)
    assert seen == list(range(1, 12))
    assert engine.generate([]) == []
    assert engine.score([]) == []


def test_the_same_seed_gives_the_same_answer_and_another_gives_another(engine: Engine) -> None:
    prompt = prompts([8])[0]
    answers = [
        engine.generate([Request(prompt, Sampling(temperature=1.0, max_tokens=20, seed=seed))])[0].ids
        for seed in (0, 0, 1, 2)
    ]
    assert answers[0] == answers[1]
    assert len({tuple(a) for a in answers}) == 3


def drawn(scores: list[float], n: int = 4000, **settings: float | int) -> dict[int, float]:
    """Return how often each id is chosen."""
    picker = Picker(Request((0,), Sampling(**{"temperature": 1.0, **settings})))  # type: ignore[arg-type]
    chosen = choose(torch.tensor([scores]).expand(n, -1), [picker] * n)
    ids = [token.id for token in chosen if token is not None]
    return {i: ids.count(i) / n for i in sorted(set(ids))}


SCORES = [math.log(p) for p in (0.1, 0.5, 0.25, 0.15)]


def test_sampling_follows_the_distribution() -> None:
    assert drawn(SCORES) == pytest.approx({0: 0.1, 1: 0.5, 2: 0.25, 3: 0.15}, abs=0.03)
    # at temperature 1/2 probabilities are squared: 1 : 25 : 6.25 : 2.25 of 34.5
    wanted = {0: 1 / 34.5, 1: 25 / 34.5, 2: 6.25 / 34.5, 3: 2.25 / 34.5}
    assert drawn(SCORES, temperature=0.5) == pytest.approx(wanted, abs=0.03)


def test_top_k_and_top_p_cut_the_tail() -> None:
    assert drawn(SCORES, n=2000, top_k=2) == pytest.approx({1: 2 / 3, 2: 1 / 3}, abs=0.04)
    assert drawn(SCORES, n=200, top_k=1) == {1: 1.0}
    # the smallest set of at least 0.7: 0.5 and 0.25; of at least 0.8: with 0.15
    assert drawn(SCORES, n=2000, top_p=0.7) == pytest.approx({1: 2 / 3, 2: 1 / 3}, abs=0.04)
    assert set(drawn(SCORES, n=2000, top_p=0.8)) == {1, 2, 3}
    assert drawn(SCORES, n=200, top_p=0.01) == {1: 1.0}
    assert set(drawn(SCORES, n=500, top_k=100)) == {0, 1, 2, 3}


def test_greedy_takes_the_likeliest_and_reports_the_models_own_logprob() -> None:
    scores = torch.tensor([SCORES, SCORES[::-1]]) + 3.0
    samplings = [Sampling(), Sampling(temperature=0.1, top_k=1)]
    picks = choose(scores, [Picker(Request((0,), sampling)) for sampling in samplings])
    assert [token.id for token in picks if token] == [1, 2]
    assert [token.logprob for token in picks if token] == pytest.approx([math.log(0.5)] * 2)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"max_tokens": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(HerdError, match="sampling out of range"):
        Sampling(**wrong)


@pytest.mark.parametrize("tied", [False, True])
def test_new_weights_take_effect_at_once(tied: bool) -> None:
    config = TOY.model_copy(update={"tie_embeddings": tied})
    old, new = toy_model(config), toy_model(config, seed=1)
    engine, requests = Engine(old, max_running=2), mixed(3)
    engine.load_weights({name: p.detach().clone() for name, p in new.named_parameters()})
    for a, b in zip(engine.generate(requests), Engine(new, max_running=2).generate(requests), strict=True):
        same(a, b)
