"""The pace of drafting in simulated worlds: long where it pays, none where not, and never dear."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.engine.pace import Pace, Round


@dataclass
class World:
    """Rounds by a clock of its own: a row costs `row` beyond `base`, a pass of the drafter `draft`, watching 0.05.

    prompt: seconds of each round in which the drafter reads. ends: tokens a request that never come, for it has ended.
    """

    acceptance: float
    row: float
    draft: float
    prompt: float = 0.0
    ends: float = 0.0
    base: float = 1.0

    def plain(self, requests: int) -> float:
        """Return the seconds of a plain round."""
        return self.base + self.row * requests

    def play(self, pace: Pace, rounds: int, *, requests: int = 1, seed: int = 0) -> list[Round | None]:
        """Play rounds; return what each showed, None where drafting rests."""
        dice, seen = random.Random(seed), list[Round | None]()
        for _ in range(rounds):
            if pace.rests(requests):
                seen.append(None)
                continue
            lengths = pace.lengths(dict.fromkeys(range(requests), 20))
            rows, longest, tokens = requests + sum(lengths.values()), max(lengths.values()), float(requests)
            for handle, length in lengths.items():
                hits = next((n for n in range(length) if dice.random() >= self.acceptance), length)
                tokens += hits
                if length:
                    pace.note_outcome(handle, hits, min(hits + 1, length))
            if longest:
                tokens = max(0.0, tokens - self.ends * requests)
            beside = 0.05 + (self.prompt if longest else 0.0)
            seen.append(
                Round(requests, rows, int(tokens), longest, self.base + self.row * rows, self.draft * longest, beside)
            )
            pace.note(seen[-1])
        return seen

    def lost(self, seen: Sequence[Round | None], requests: int) -> float:
        """Return the seconds that came on top of those that plain rounds would have taken for the same tokens."""
        watched = [each for each in seen if each is not None]
        spent = sum(each.model + each.drafting + each.beside for each in watched)
        return spent - self.plain(requests) * sum(each.tokens for each in watched) / requests


def drafted(seen: Sequence[Round | None]) -> list[int]:
    """Return the ids that each round drafted."""
    return [each.rows - each.sequences if each else 0 for each in seen]


def test_drafts_are_long_where_they_are_right_and_cheap() -> None:
    lengths = drafted(World(0.95, row=0.01, draft=0.05).play(Pace(), 400))
    assert lengths[:5] == [0] * 5  # what a plain round costs comes first
    assert lengths[5] == 1  # and a short draft
    assert sum(lengths[-100:]) > 600
    assert 0 in lengths[-100:]  # and plain rounds are looked at again


@pytest.mark.parametrize(
    ("world", "requests"),
    [
        (World(0.0, row=0.01, draft=0.0), 1),
        (World(0.95, row=0.01, draft=2.0), 1),
        (World(0.6, row=1.0, draft=0.1), 16),
        (World(0.05, row=0.2, draft=0.01), 4),
        (World(0.95, row=0.01, draft=0.05, prompt=8.0), 1),
        (World(0.95, row=0.01, draft=0.05, ends=7.0), 1),
    ],
)
def test_drafting_rests_where_it_doesnt_pay(world: World, requests: int) -> None:
    seen = world.play(Pace(), 3000, requests=requests)
    lengths = drafted(seen)
    assert any(lengths)
    assert sum(map(bool, lengths)) < 100
    assert seen.count(None) > 2300
    # of this time, one in a hundred, what the first trial may lose, and what its last round lost
    assert world.lost(seen, requests) < (0.01 * 3000 + 4 + 12) * world.plain(requests)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 3, 16]),
            st.builds(
                World,
                acceptance=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
                row=st.just(0.1),
                draft=st.sampled_from([0.0, 0.01, 0.3, 3.0]),
                prompt=st.sampled_from([0.0, 0.0, 1.0, 25.0]),
                ends=st.sampled_from([0.0, 0.0, 1.0, 6.0]),
            ),
            st.integers(1, 1000),
        ),
        min_size=1,
        max_size=10,
    ),
    st.integers(0, 3),
)
def test_no_world_makes_drafting_lose_more_than_a_hundredth(phases: list[tuple[int, World, int]], seed: int) -> None:
    """However costs and acceptance change between phases, for each kind of batch, at every moment."""
    pace = Pace()
    lost, rounds, worst = Counter[int](), Counter[int](), Counter[int]()
    for number, (requests, world, length) in enumerate(phases):
        for _ in range(length):
            seen = world.play(pace, 1, requests=requests, seed=seed + 31 * rounds.total() + number)
            loss = world.lost(seen, requests) / world.plain(requests)
            lost[requests] += loss
            worst[requests] = max(worst[requests], loss)
            rounds[requests] += 1
            assert lost[requests] <= 0.01 * rounds[requests] + 4 + worst[requests] + 1e-6


def test_what_lost_with_some_batches_is_put_off_with_others() -> None:
    pace, bad = Pace(), World(0.0, row=0.1, draft=2.0)
    bad.play(pace, 3, requests=8)  # it was about to be tried
    assert any(drafted(bad.play(pace, 20)))
    for requests in (8, 3):
        assert not any(drafted(bad.play(pace, 400, requests=requests)))
        assert any(drafted(bad.play(pace, 20, requests=requests)))


def test_drafting_starts_again_when_it_begins_to_pay() -> None:
    pace = Pace()
    assert not any(drafted(World(0.0, row=0.01, draft=0.1).play(pace, 500))[-100:])
    assert sum(drafted(World(0.95, row=0.01, draft=0.1).play(pace, 2500))[-100:]) > 400


def test_drafting_stops_when_plain_rounds_become_cheaper() -> None:
    pace = Pace()
    assert all(drafted(World(0.8, row=0.05, draft=0.9, base=5.0).play(pace, 300))[-20:-10])
    assert not any(drafted(World(0.8, row=0.05, draft=0.9, base=1.0).play(pace, 600))[-200:])


def test_a_bad_moment_ends_drafting_that_wins_only_for_a_moment() -> None:
    pace = Pace()
    World(0.95, row=0.01, draft=0.1).play(pace, 300)
    seen = list[Round | None]()
    for _ in range(1000):  # short requests, so that all of them are thought badly of
        seen += World(0.0, row=0.01, draft=0.1).play(pace, 5)
        pace.forget(0)
        if None in seen:
            break
    assert None in seen
    assert sum(drafted(World(0.95, row=0.01, draft=0.1).play(pace, 100))) > 100


def test_a_drafter_as_large_as_the_model_is_not_tried() -> None:
    world = World(0.95, row=0.01, draft=1.0)
    assert not any(drafted(world.play(Pace(share=1.0), 2000)))
    assert any(drafted(world.play(Pace(share=0.3), 2000)))


def test_one_request_may_draft_while_another_doesnt() -> None:
    pace = Pace()
    World(0.9, row=0.05, draft=0.01).play(pace, 40, requests=2)
    for _ in range(30):
        pace.note_outcome(0, 0, 1)
        pace.note_outcome(1, 4, 4)
    lengths = pace.lengths({0: 9, 1: 9})
    assert lengths[0] <= 1
    assert lengths[1] > 2
    assert pace.lengths({0: 9, 1: 1})[1] <= 1
    for _ in range(200):  # who was left out for long is tried again
        pace.note_outcome(1, 4, 4)
        lengths = pace.lengths({0: 9, 1: 9})
    assert lengths[0] > 0
