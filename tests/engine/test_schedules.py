"""Every request gets the answer it would get alone: whoever else runs, in whatever pieces, blocks and order."""

import time
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_documents, toy_model

from herd.base.errors import HerdError
from herd.engine.engine import Engine
from herd.engine.request import Completion, Event, Request, Sampling

CLOSE = {"rtol": 0, "atol": 1e-5}
BASES = [tuple(ids) for ids in toy_documents([48, 48], seed=5)]
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.8, top_p=0.9, top_k=20),
    Sampling(temperature=1.2, min_p=0.05, repetition_penalty=1.3),
    Sampling(temperature=0.5, frequency_penalty=0.4, presence_penalty=0.2, logit_bias={3: 4.0}),
    Sampling(prompt_logprobs=True, top_logprobs=2),
]


@cache
def model() -> torch.nn.Module:
    """Return the one toy of this file."""
    return toy_model()


@dataclass(frozen=True)
class Arrival:
    """A request, the round it comes in, and how many rounds later it is cancelled (None: never)."""

    request: Request
    at: int
    cancelled: int | None = None


@st.composite
def arrivals(draw: st.DrawFn) -> Arrival:
    """Draw requests that share beginnings."""
    base, length = draw(st.sampled_from(BASES)), draw(st.integers(1, 40))
    own = draw(st.sampled_from([(), (7,), (9, 9, 1)]))
    sampling = replace(
        draw(st.sampled_from(SAMPLINGS)), max_tokens=draw(st.integers(1, 14)), seed=draw(st.integers(0, 3))
    )
    request = Request((*base[:length], *own), sampling, frozenset({4, 5}), priority=draw(st.sampled_from([0, 0, 1])))
    return Arrival(request, draw(st.integers(0, 12)), draw(st.sampled_from([None, None, None, 0, 3])))


@st.composite
def engines(draw: st.DrawFn) -> Engine:
    """Draw engines, most of them short of blocks: 64 positions hold the longest of these requests, and little else."""
    size = draw(st.sampled_from([1, 4, 16]))
    return Engine(
        model(),
        blocks=draw(st.sampled_from([64, 80, 200])) // size,
        block_size=size,
        max_running=draw(st.integers(1, 6)),
        prefill_chunk=draw(st.sampled_from([1, 3, 16, 512])),
        prefix_reuse=draw(st.booleans()),
    )


@cache
def _alone(prompt: tuple[int, ...], number: int, most: int, seed: int) -> Completion:
    sampling = replace(SAMPLINGS[number], max_tokens=most, seed=seed)
    engine = Engine(model(), blocks=6, max_running=1, prefix_reuse=False)
    return engine.generate([Request(prompt, sampling, frozenset({4, 5}))])[0]


def alone(request: Request) -> Completion:
    """Return what a fresh engine answers to nothing else."""
    sampling = request.sampling
    number = SAMPLINGS.index(replace(sampling, max_tokens=Sampling().max_tokens, seed=0))
    return _alone(request.prompt, number, sampling.max_tokens, sampling.seed)


def same(a: Completion, b: Completion) -> None:
    """Assert equal ids and reasons, and log-probabilities within 1e-5."""
    assert (a.ids, a.finish_reason) == (b.ids, b.finish_reason)
    numbers = [[*(t.logprob for t in c.tokens), *(c.prompt_logprobs or ())] for c in (a, b)]
    torch.testing.assert_close(*map(torch.tensor, numbers), **CLOSE)
    assert [[i for i, _ in t.top] for t in a.tokens] == [[i for i, _ in t.top] for t in b.tokens]


def nothing_is_held(engine: Engine) -> None:
    """Assert that every block is free again."""
    stats, pool = engine.stats(), engine._scheduler.pool
    assert (stats.waiting, stats.running, stats.blocks_used) == (0, 0, 0)
    assert pool.available == pool.total
    assert not any(pool._holders)


def play(engine: Engine, schedule: list[Arrival]) -> dict[int, tuple[Arrival, list[Event]]]:
    """Let the requests come and go; return each one's events."""
    seen: dict[int, tuple[Arrival, list[Event]]] = {}
    rounds, ends = 0, dict[int, int]()
    while engine.busy or rounds <= 12:
        for arrival in schedule:
            if arrival.at == rounds:
                handle = engine.submit(arrival.request)
                seen[handle] = (arrival, [])
                if arrival.cancelled is not None:
                    ends[handle] = rounds + arrival.cancelled
        for handle in [h for h, end in ends.items() if end == rounds]:
            engine.cancel(handle)
        for event in engine.step():
            seen[event.handle][1].append(event)
        rounds += 1
        assert rounds < 5000, "the engine is at a halt"
    return seen


@settings(max_examples=60, deadline=None)
@given(engines(), st.lists(arrivals(), min_size=1, max_size=10))
def test_no_schedule_changes_an_answer_or_leaks_a_block(engine: Engine, schedule: list[Arrival]) -> None:
    for arrival, events in play(engine, schedule).values():
        *before, last = events
        assert last.completion is not None
        assert all(event.finish_reason is None for event in before)
        assert [event.token for event in events if event.token] == list(last.completion.tokens)
        wanted = alone(arrival.request)
        if last.finish_reason == "cancelled":
            assert arrival.cancelled is not None
            assert last.completion.ids == wanted.ids[: len(last.completion.ids)]
        else:
            same(last.completion, wanted)
    nothing_is_held(engine)


def requests(count: int, *, length: int = 20, most: int = 20) -> list[Request]:
    """Return sampled requests that differ from their first id on."""
    return [Request((i, *BASES[0][:length]), Sampling(0.8, max_tokens=most, seed=i)) for i in range(count)]


def test_preempted_requests_go_on_where_they_were() -> None:
    roomy, tight = (Engine(model(), blocks=blocks, block_size=4, max_running=8) for blocks in (200, 16))
    for a, b in zip(roomy.generate(requests(8)), tight.generate(requests(8)), strict=True):
        same(a, b)
    assert roomy.stats().preemptions == 0
    assert tight.stats().preemptions > 0
    nothing_is_held(tight)


def test_a_prefix_is_computed_once_even_for_requests_that_come_together() -> None:
    prompt = BASES[0][:41]
    several = [Request((*prompt, i), Sampling(0.9, max_tokens=5, seed=i)) for i in range(4)]
    engine = Engine(model(), block_size=4)
    done = engine.generate(several)
    assert [c.reused for c in done] == [0, 40, 40, 40]
    assert engine.stats().reused_tokens == 120
    for one, request in zip(done, several, strict=True):
        same(one, Engine(model(), prefix_reuse=False).generate([request])[0])
    # a conversation's next turn begins with the answer before it
    answered = (*several[0].prompt, *done[0].ids)
    assert engine.generate([Request((*answered, 7), Sampling(max_tokens=2))])[0].reused == 44
    # the last id of a prompt is always run: its scores are what is asked for
    assert engine.generate([Request(prompt[:40], Sampling(max_tokens=2))])[0].reused == 36


def test_the_longest_unused_content_gives_way_first() -> None:
    engine = Engine(model(), block_size=4, blocks=12, max_running=1)
    first, second, third = (Request((i, *BASES[0][:16]), Sampling(max_tokens=1)) for i in range(3))
    engine.generate([first, second])
    assert engine.generate([first])[0].reused == 16
    engine.generate([third])  # takes the free blocks, then the second's
    assert engine.generate([first])[0].reused == 16
    assert engine.generate([second])[0].reused < 16


def test_new_weights_end_the_reuse_of_what_the_old_ones_computed() -> None:
    other = toy_model(seed=1)
    request = Request(BASES[0][:40], Sampling(max_tokens=8))
    engine = Engine(toy_model())
    engine.generate([request])
    handle = engine.submit(replace(request, sampling=Sampling(max_tokens=30)))
    kept = [engine.step()[0].token for _ in range(5)]
    engine.load_weights({name: p.detach().clone() for name, p in other.named_parameters()})
    same(engine.generate([request])[0], Engine(other).generate([request])[0])
    (done,) = [e.completion for _ in range(99) for e in engine.step() if e.handle == handle and e.completion] or [None]
    if done is None:
        pytest.fail("the request in flight never ended")
    continued = Request((*request.prompt, *done.ids[:5]), Sampling(max_tokens=25))
    assert [t.id for t in kept if t] == done.ids[:5]
    assert Engine(other).generate([continued])[0].ids == done.ids[5:]


def test_higher_priority_goes_first_and_equals_in_order_of_arrival() -> None:
    engine = Engine(model(), max_running=1)
    handles = [engine.submit(replace(r, priority=p)) for r, p in zip(requests(4, most=3), (0, 0, 2, 1), strict=True)]
    ended = [event.handle for _ in range(99) for event in engine.step() if event.finish_reason]
    assert ended == [handles[i] for i in (2, 3, 0, 1)]


def test_a_late_request_ends_and_frees_its_blocks() -> None:
    engine = Engine(model(), max_running=1)
    soon, never = time.monotonic() + 0.05, time.monotonic() - 1
    running = engine.submit(replace(requests(1, most=70)[0], deadline=soon))
    waiting = engine.submit(replace(requests(1)[0], deadline=never))
    assert [(e.handle, e.finish_reason) for e in engine.step() if e.finish_reason] == [(waiting, "deadline")]
    assert engine.stats().blocks_used > 0
    time.sleep(0.06)
    (last,) = engine.step()
    assert (last.handle, last.token, last.finish_reason) == (running, None, "deadline")
    assert last.completion is not None
    assert len(last.completion.ids) == 1
    nothing_is_held(engine)


def test_cancelling_frees_blocks_at_once_and_the_end_is_told() -> None:
    engine = Engine(model())
    handles = [engine.submit(request) for request in requests(2)]
    engine.step()
    for handle in (*handles, 99):  # 99 never was
        engine.cancel(handle)
        engine.cancel(handle)
    nothing_is_held(engine)
    assert engine.busy
    assert [(e.handle, e.finish_reason) for e in engine.step()] == [(h, "cancelled") for h in handles]
    assert not engine.busy


def test_who_stops_streaming_leaves_nothing_behind_and_others_keep_their_events() -> None:
    engine = Engine(model())
    other = engine.submit(requests(1, most=6)[0])
    first, second = engine.stream(requests(2)[1]), engine.stream(requests(3)[2])
    streamed = [next(first).id, next(second).id, next(first).id]
    assert streamed[::2] == alone_ids(requests(2)[1])[:2]
    first.close()
    assert [t.id for t in second] == alone_ids(requests(3)[2])[1:]
    mine = [e for _ in range(9) for e in engine.step()]
    assert {e.handle for e in mine} == {other}
    assert [e.token.id for e in mine if e.token] == alone_ids(requests(1, most=6)[0])
    nothing_is_held(engine)


def alone_ids(request: Request) -> list[int]:
    """Return the ids that a fresh engine answers."""
    return Engine(model()).generate([request])[0].ids


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(()), "a prompt of 0 tokens doesn't fit"),
        (Request((1,) * 16), "a prompt of 16 tokens doesn't fit: this engine's key/value cache holds 16 positions"),
        (Request((1, 61)), "token id 61 is outside this model's vocabulary of 61"),
        (Request((1,), Sampling(logit_bias={-1: 1.0})), "token id -1 is outside"),
        (Request((1,), stop_strings=("a",)), "stop strings need the tokenizer"),
        (Request((1,), stop_strings=("",)), "an empty stop string"),
    ],
)
def test_what_cant_be_answered_is_refused_at_once(request_: Request, said: str) -> None:
    engine = Engine(model(), blocks=4, block_size=4)
    for ask in (engine.submit, lambda r: engine.generate([requests(1, length=2)[0], r])):
        with pytest.raises(HerdError, match=said):
            ask(request_)
    assert not engine.busy


@pytest.mark.parametrize("size", [{"blocks": 0}, {"memory": 100}, {"max_running": 0}, {"prefill_chunk": 0}])
def test_an_engine_without_room_is_refused(size: dict[str, int]) -> None:
    with pytest.raises(HerdError, match=r"give it more memory|must be 1 or more"):
        Engine(model(), **size)


def test_memory_is_divided_into_blocks() -> None:
    # 2 layers x (keys, values) x 2 heads x 6 x 4 bytes = 192 bytes a position or so: whatever it is, 10 blocks of 16
    from herd.model.cache import bytes_per_token

    size = 16 * bytes_per_token(model().config, torch.float32)
    assert Engine(model(), memory=10 * size + size - 1).stats().blocks_total == 10
    assert Engine(model(), max_running=2).stats().blocks_total == 12
