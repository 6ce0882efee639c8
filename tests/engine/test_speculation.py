"""Speculation changes no answer: whoever drafts, whatever is drafted, however requests come and go."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schedules import SAMPLINGS, Arrival, alone, arrivals, nothing_is_held, play, same
from toys import TOY, byte_tokenizer, toy_documents, toy_model

from herd.base.errors import HerdError
from herd.engine.drafter import Drafter, NgramDrafter
from herd.engine.engine import Engine
from herd.engine.request import Completion, Request, Sampling
from herd.engine.runner import TorchRunner
from herd.engine.scheduler import Share
from herd.engine.sequence import Sequence as InFlight
from herd.engine.sibling import ModelDrafter, weights_read
from herd.engine.speculation import Speculation
from herd.model.transformer import Transformer

PROMPTS = [tuple(ids) for ids in toy_documents([5, 1, 17, 30, 40], seed=3)]


@cache
def model() -> Transformer:
    """Return the toy that answers: the one of `alone`."""
    return toy_model()


@cache
def sibling(noise: float = 0.03) -> Transformer:
    """Return a model that often, and not always, says what the other does."""
    other = toy_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return other


class Hostile:
    """Proposes anything."""

    def __init__(self, seed: int = 0, vocab_size: int = TOY.vocab_size) -> None:
        self._random, self._vocab_size = random.Random(seed), vocab_size

    def prepare(self, sequences: Sequence[InFlight]) -> list[InFlight]:
        return [sequence for sequence in sequences if self._random.random() < 0.8]

    def draft(self, sequences: Sequence[InFlight], lengths: Sequence[int]) -> list[list[int]]:
        return [
            [self._random.randrange(self._vocab_size) for _ in range(self._random.randint(0, length))]
            for length in lengths
        ]

    def forget(self, sequence: InFlight) -> None:
        pass


class Oracle(Hostile):
    """Knows the answers, by prompt; goes wrong at every `wrong`-th id."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]], *, wrong: int = 0) -> None:
        self._answers, self._wrong = answers, wrong

    def prepare(self, sequences: Sequence[InFlight]) -> list[InFlight]:
        return list(sequences)

    def draft(self, sequences: Sequence[InFlight], lengths: Sequence[int]) -> list[list[int]]:
        drafts = []
        for sequence, length in zip(sequences, lengths, strict=True):
            answer = list(self._answers[sequence.request.prompt])
            if self._wrong:
                answer[:: self._wrong] = [(token + 1) % TOY.vocab_size for token in answer[:: self._wrong]]
            drafts.append(answer[len(sequence.tokens) :][:length])
        return drafts


def drafts(name: str) -> Transformer | Drafter | str:
    """Return somebody who drafts."""
    return {"sibling": sibling, "itself": model, "stranger": lambda: toy_model(seed=9), "hostile": Hostile}.get(
        name, lambda: name
    )()


def requests() -> list[Request]:
    """Return requests of all settings."""
    return [
        Request(PROMPTS[i % len(PROMPTS)], replace(SAMPLINGS[i % len(SAMPLINGS)], max_tokens=3 + 7 * i % 40, seed=i))
        for i in range(11)
    ]


@pytest.mark.parametrize("length", [1, 3, 8])
@pytest.mark.parametrize("name", ["sibling", "itself", "stranger", "ngram", "hostile"])
def test_answers_are_those_without_speculation(name: str, length: int) -> None:
    plain = Engine(model(), max_running=4).generate(requests())
    engine = Engine(model(), max_running=4, draft=drafts(name), draft_length=length)  # ty: ignore
    for a, b in zip(engine.generate(requests()), plain, strict=True):
        same(a, b)
    stats = engine.stats()
    assert stats.accepted <= stats.drafted
    assert (stats.drafted > 0) == (stats.rounds > 0)
    if name == "itself":
        # a model agrees with itself, by the same dice, penalties and all
        assert stats.accepted == stats.drafted > 0
    nothing_is_held(engine)


@st.composite
def drafting(draw: st.DrawFn) -> Engine:
    """Draw engines that draft, most of them short of blocks, their siblings' caches too."""
    size = draw(st.sampled_from([1, 4, 16]))
    engine = Engine(
        model(),
        blocks=draw(st.sampled_from([64, 80, 200])) // size,
        block_size=size,
        max_running=draw(st.integers(1, 6)),
        prefill_chunk=draw(st.sampled_from([1, 3, 16, 512])),
        prefix_reuse=draw(st.booleans()),
        draft=drafts(draw(st.sampled_from(["sibling", "itself", "ngram", "hostile"]))),  # ty: ignore
        draft_length=draw(st.sampled_from([None, 1, 2, 5])),
    )
    return engine


@settings(max_examples=60, deadline=None)
@given(drafting(), st.lists(arrivals(), min_size=1, max_size=8))
def test_no_schedule_changes_an_answer_or_leaks_a_block(engine: Engine, schedule: list[Arrival]) -> None:
    for arrival, events in play(engine, schedule).values():
        last = events[-1].completion
        assert last is not None
        assert [event.token for event in events if event.token] == list(last.tokens)
        wanted = alone(arrival.request)
        if last.finish_reason == "cancelled":
            assert last.ids == wanted.ids[: len(last.ids)]
        else:
            same(last, wanted)
    nothing_is_held(engine)


class Slow(Hostile):
    """Always wrong, and takes ten rounds of the model, by a clock that counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.asked = 0.0, 0

    def clock(self) -> float:
        self.asked += 1
        return self.now

    def prepare(self, sequences: Sequence[InFlight]) -> list[InFlight]:
        return list(sequences)

    def draft(self, sequences: Sequence[InFlight], lengths: Sequence[int]) -> list[list[int]]:
        self.now += 10.0
        return [[TOY.vocab_size - 1] * length for length in lengths]


def test_a_drafter_that_rests_isnt_asked_and_no_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, slow = Engine(model()), Slow()
    engine._speculation = Speculation(slow, clock=slow.clock)
    run = engine._runner.run

    def counted(shares: Sequence[Share]) -> torch.Tensor:
        slow.now += 1.0
        return run(shares)

    monkeypatch.setattr(engine._runner, "run", counted)
    request = Request(PROMPTS[2], Sampling(max_tokens=60))
    (plain,) = Engine(model()).generate([request])
    same(engine.generate([request])[0], plain)
    asked, stats = slow.asked, engine.stats()
    assert (stats.rounds, stats.drafted, stats.accepted) == (
        2,
        2,
        0,
    )  # the first one, which packs weights, isn't judged
    same(engine.generate([request])[0], plain)
    assert (slow.asked, engine.stats().rounds) == (asked, 2)


def test_what_a_text_repeats_is_found() -> None:

    def guess(ids: list[int], length: int) -> list[int]:
        return NgramDrafter().draft([InFlight(1, Request(tuple(ids)), tokenizer=None)], [length])[0]

    assert guess([1, 2, 3, 4, 5, 1, 2], 3) == [3, 4, 5]
    assert guess([1, 2, 3, 4, 1], 3) == []  # one id is too little
    assert guess([7, 7], 4) == []
    assert guess([7, 7, 7], 4) == [7, 7, 7, 7]
    assert guess([8, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
    assert guess([5, 1, 2, 9, 6, 1, 2, 8, 5, 1, 2], 2) == [9, 6]  # the longest match counts, not the newest
    assert guess([5, 1, 2, 9, 5, 1, 2, 8, 5, 1, 2], 1) == [8]  # of equal ones the newest
    assert guess([3], 2) == []


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 6))
def test_an_index_that_grows_finds_what_a_new_one_does(ids: list[int], length: int) -> None:
    sequence, drafter = InFlight(1, Request((ids[0],)), tokenizer=None), NgramDrafter()
    for token in ids[1:]:
        sequence.ids.append(token)
        fresh = NgramDrafter().draft([InFlight(1, Request(tuple(sequence.ids)), tokenizer=None)], [length])
        assert drafter.draft([sequence], [length]) == fresh


def answered(requests: list[Request], **settings: object) -> list[Completion]:
    """Answer with and without speculation, compare, and return the former."""
    plain = Engine(model(), tokenizer=byte_tokenizer()).generate(requests)
    answers = dict(zip((request.prompt for request in requests), (each.ids for each in plain), strict=True))
    free = {request.prompt: Request(request.prompt, Sampling(max_tokens=60)) for request in requests}
    for prompt, done in zip(free, Engine(model()).generate(list(free.values())), strict=True):
        answers[prompt] += done.ids[len(answers[prompt]) :]  # so that it goes on behind the end
    engine = Engine(
        model(),
        tokenizer=byte_tokenizer(),
        draft=Oracle(answers),
        draft_length=5,
        **settings,  # ty: ignore
    )
    done = engine.generate(requests)
    for a, b in zip(done, plain, strict=True):
        same(a, b)
        assert a.cut == b.cut
    nothing_is_held(engine)
    return done


def test_an_answer_ends_in_the_middle_of_a_draft() -> None:
    (whole,) = Engine(model()).generate([Request(PROMPTS[2], Sampling(max_tokens=40))])
    for most in range(1, 9):
        (done,) = answered([Request(PROMPTS[2], Sampling(max_tokens=most))])
        # the first token comes with the prompt, and none is drafted where one is left to say
        assert done.accepted == (most - 1) - done.rounds - ((most - 1) % 6 == 1)
    stop = whole.ids[8]
    (done,) = answered([Request(PROMPTS[2], Sampling(max_tokens=40), frozenset({stop}))])
    assert (done.finish_reason, done.ids) == ("stop", whole.ids[: whole.ids.index(stop) + 1])
    # a stop string that lies across two tokens, both drafted: the bytes of ids 7 and 8
    text = bytes(whole.ids).decode("latin-1")
    (done,) = answered([Request(PROMPTS[2], Sampling(max_tokens=40), stop_strings=(text[7:9],))])
    assert (done.finish_reason, done.text(byte_tokenizer())) == ("stop", text[: text.index(text[7:9])])
    small = answered([Request(PROMPTS[2], Sampling(max_tokens=40))])
    assert small[0].acceptance_length > 4


def test_the_capacity_ends_a_draft() -> None:
    for blocks in (5, 6):
        plain, drafting = (
            Engine(model(), blocks=blocks, block_size=4, max_running=1, **more)  # ty: ignore
            for more in ({}, {"draft": model(), "draft_length": 6})
        )
        request = Request(PROMPTS[2], Sampling(max_tokens=50))
        same(*(engine.generate([request])[0] for engine in (plain, drafting)))


@dataclass
class Alternating:
    """Allows only even ids, then only odd ones, and so on; counts what it was told."""

    told: int = 0

    def allowed(self) -> torch.Tensor:
        return torch.arange(TOY.vocab_size) % 2 == self.told % 2

    def accept(self, token_id: int) -> None:
        assert token_id % 2 == self.told % 2
        self.told += 1

    def fork(self) -> "Alternating":
        return Alternating(self.told)


@pytest.mark.parametrize("name", ["sibling", "itself", "ngram", "hostile"])
def test_a_grammar_is_told_of_what_stood_and_nothing_else(name: str) -> None:
    requests = [
        Request(prompt, Sampling(0.8 * (i % 2), max_tokens=30, seed=i), constraint=Alternating())
        for i, prompt in enumerate(PROMPTS)
    ]
    plain = Engine(model()).generate(requests)
    engine = Engine(model(), draft=drafts(name), draft_length=4)  # ty: ignore
    for a, b in zip(engine.generate(requests), plain, strict=True):
        same(a, b)
        assert [token % 2 for token in a.ids] == [i % 2 for i in range(len(a.ids))]
    if name == "itself":
        assert engine.stats().accepted == engine.stats().drafted


def test_a_prefix_of_what_was_drafted_and_refused_is_not_shared() -> None:
    """Blocks are published for accepted ids only: the next turn, right behind a refused draft, finds no wrong block."""
    prompt = PROMPTS[2]
    first = Request(prompt, Sampling(max_tokens=20))
    (done,) = Engine(model()).generate([first])
    engine = Engine(model(), block_size=2, draft=Oracle({prompt: done.ids}, wrong=3), draft_length=8)
    engine.generate([first])
    again = Request((*prompt, *done.ids), Sampling(max_tokens=20))
    engine._speculation = None
    (turn,) = engine.generate([again])
    assert turn.reused > len(prompt)
    same(turn, Engine(model(), prefix_reuse=False).generate([again])[0])


def test_nobody_is_preempted_for_a_draft() -> None:
    requests = [Request((i, *PROMPTS[2]), Sampling(max_tokens=20)) for i in range(6)]
    answers = {request.prompt: alone(request).ids for request in requests}
    wrong = Oracle(answers, wrong=1)
    plain, drafting = (Engine(model(), blocks=24, block_size=4, draft=d, draft_length=8) for d in (None, wrong))
    for a, b in zip(plain.generate(requests), drafting.generate(requests), strict=True):
        same(a, b)
    assert drafting.stats().drafted > 0
    assert drafting.stats().preemptions == plain.stats().preemptions > 0
    nothing_is_held(drafting)


def test_a_siblings_cache_without_room_drafts_for_whom_it_can() -> None:
    requests = [Request((i, *PROMPTS[3]), Sampling(max_tokens=30)) for i in range(6)]
    engine = Engine(model(), draft=model(), draft_length=3)
    assert engine._speculation is not None
    drafter = engine._speculation._drafter = ModelDrafter(
        TorchRunner(model(), blocks=10, block_size=8), blocks=10, block_size=8, max_positions=96, chunk=7, reuse=True
    )
    done = engine.generate(requests)
    for a, b in zip(done, Engine(model()).generate(requests), strict=True):
        same(a, b)
    assert sum(each.drafted for each in done) > 0
    assert drafter._pool.available == drafter._pool.total


def test_sampled_ids_follow_the_exact_distribution() -> None:
    """Chi-square of the second and third id, of 3,000 seeds, against the model's own probabilities."""
    config = TOY.model_copy(update={"vocab_size": 5})
    answers, guesses, n = toy_model(config), toy_model(config, seed=3), 3000
    requests = [Request((1, 2), Sampling(1.0, max_tokens=3, seed=seed)) for seed in range(n)]
    engine = Engine(answers, draft=guesses, draft_length=2, max_running=64)
    counts = Counter(tuple(done.ids) for done in engine.generate(requests))
    assert 0.1 < engine.stats().accepted / engine.stats().drafted < 0.95
    with torch.no_grad():
        triples = torch.cartesian_prod(*[torch.arange(5)] * 3)
        rows = torch.cat([torch.tensor([[1, 2]]).expand(125, 2), triples], 1)
        logprobs = answers.logits(answers(rows[:, :-1])).log_softmax(-1)
        expected = n * logprobs.gather(2, rows[:, 1:, None])[:, 1:, 0].sum(1).exp()
    cells = sorted(zip(expected.tolist(), map(tuple, triples.tolist()), strict=True), reverse=True)
    common = [(wanted, counts[ids]) for wanted, ids in cells if wanted >= 5]
    rest = n - sum(wanted for wanted, _ in common), n - sum(seen for _, seen in common)
    statistic = sum((seen - wanted) ** 2 / wanted for wanted, seen in [*common, rest])
    freedom = len(common)
    # the normal approximation of Wilson and Hilferty: 4 standard deviations
    assert ((statistic / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / (2 / (9 * freedom)) ** 0.5 < 4


def test_the_same_dice_guess_well_at_any_temperature() -> None:
    """The likeliest id would be right in one case of ten; a sibling that rolls the request's own dice is in half."""
    requests = [Request(PROMPTS[2], Sampling(1.5, max_tokens=40, seed=seed)) for seed in range(12)]
    engine = Engine(model(), draft=sibling(0.01), draft_length=1)
    engine.generate(requests)
    assert engine.stats().accepted / engine.stats().drafted > 0.5


def test_a_siblings_share_is_that_of_the_weights_that_a_token_reads() -> None:
    small = toy_model(TOY.model_copy(update={"n_layers": 1}))
    layer = sum(parameter.numel() for parameter in small.layers[0].parameters())
    head = small.output.weight.numel()
    assert weights_read(small) == 4 * (layer + head)
    assert weights_read(model()) == 4 * (TOY.n_layers * layer + head)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"draft": toy_model(TOY.model_copy(update={"vocab_size": 60}))}, "60 ids can't guess for one of 61"),
        ({"draft": "ngram", "draft_length": 0}, "draft_length 0: must be 1 or more"),
    ],
)
def test_a_draft_that_doesnt_fit_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(HerdError, match=said):
        Engine(model(), **wrong)
