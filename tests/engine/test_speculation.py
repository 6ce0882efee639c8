"""Speculation changes no answer: whoever drafts, whatever is drafted, however requests come and go."""

import random
from collections.abc import Sequence
from dataclasses import replace
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
from herd.engine.request import Request, Sampling
from herd.engine.sequence import Sequence as InFlight
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
            for i in range(self._wrong - 1, len(answer) if self._wrong else 0, self._wrong):
                answer[i] = (answer[i] + 1) % TOY.vocab_size
            drafts.append(answer[len(sequence.tokens) :][:length])
        return drafts


def drafts(name: str) -> Transformer | Drafter | str:
    """Return somebody who drafts."""
    return {"sibling": sibling, "itself": model, "stranger": lambda: toy_model(seed=9), "hostile": Hostile}.get(
        name, lambda: name
    )()


def requests(**changes: object) -> list[Request]:
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
