"""Who is behind, who is slow, and what ends a step that takes too long."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from toys import attempt

from herd.runtime.signals import EXIT_HUNG
from herd.train.clock import Clock
from herd.train.config import FaultsConfig
from herd.train.heart import Beat, Heart, last_beat, read_beats
from herd.train.watchdog import Watchdog, accusation, behind, stragglers


def ranks(*changes: dict[str, object]) -> list[Beat]:
    """Return beats of ranks that wait at step 7, changed as told."""
    usual = Beat(0, count=10, step=7, kind="useful", waiting=True, at="train/loop.py:60 fit")
    return [replace(usual, rank=rank, **change) for rank, change in enumerate(changes)]


def later(beats: list[Beat], *dead: int) -> list[Beat]:
    """Return the beats of a moment later; the dead have none."""
    return [beat if beat.rank in dead else replace(beat, count=beat.count + 3) for beat in beats]


@pytest.mark.parametrize(
    ("beats", "dead", "found"),
    [
        (ranks({}, {"waiting": False, "at": "x.py:1 f"}, {}), (), {1: "at x.py:1 f"}),
        (ranks({}, {}, {"step": 5}), (), {2: "2 steps behind, at train/loop.py:60 fit"}),
        (ranks({}, {}, {}), (1,), {1: "no sign of life, last at train/loop.py:60 fit"}),
        (ranks({}, {"waiting": False}, {"step": 6}), (0,), {
            0: "no sign of life, last at train/loop.py:60 fit",
            2: "1 steps behind, at train/loop.py:60 fit",
        }),
        (ranks({}, {}), (), {2: "it never began"}),
        # on a GPU nobody is seen to wait: who still draws data has not come as far
        (ranks({"waiting": False}, {"waiting": False, "kind": "data"}, {"waiting": False}), (), {
            1: "at train/loop.py:60 fit"
        }),
        (ranks({}, {}, {}), (), {}),
        (ranks({"waiting": False}, {"waiting": False}, {"waiting": False}), (), {}),
    ],
)  # fmt: skip
def test_who_others_wait_for(beats: list[Beat], dead: tuple[int, ...], found: dict[int, str]) -> None:
    assert behind(beats, later(beats, *dead), ranks=3) == found


def test_in_words() -> None:
    beats = ranks({}, {}, {})
    assert accusation({1: "at x.py:1 f"}, beats, ranks=3) == "rank 1 (at x.py:1 f) of 3 didn't arrive"
    many = accusation(dict.fromkeys(range(20), "no sign of life"), beats, ranks=64)
    assert many.endswith("rank 7 (no sign of life) and 12 more of 64 didn't arrive")
    assert accusation({}, beats, ranks=3).startswith("all 3 ranks wait for each other (at train/loop.py:60 fit)")
    assert accusation({}, beats[:1], ranks=1) == "it stands at train/loop.py:60 fit"


def test_a_rank_is_slow_where_it_works_while_others_wait() -> None:
    assert stragglers(ranks({"busy": 0.5}, {"busy": 0.5}, {"busy": 0.9}, {"busy": 0.55}), 1.5) == {
        2: pytest.approx(1.8)
    }
    assert stragglers(ranks({"busy": 0.9}, {"busy": 0.9}), 1.5) == {}
    assert stragglers(ranks({"busy": 1.0}), 1.5) == {}


def test_a_rank_is_named_when_it_was_slow_three_times_running_and_once(tmp_path: Path) -> None:
    heart = attempt(tmp_path).heart
    watchdog = Watchdog(heart, FaultsConfig(straggler_factor=1.5), ranks=2)

    def write(window: int, busy: float) -> None:
        for rank, share in ((0, 0.4), (1, busy)):
            beat = Beat(rank, busy=share, window=window)
            path = tmp_path / f"attempts/{heart.attempt}-{rank:05d}.json"
            path.write_text(json.dumps(vars(beat)))
        watchdog(Beat(0, busy=0.4, window=window))

    slow = []
    for window, busy in enumerate([0.9, 0.9, 0.4, 0.9, 0.9, 0.8, 0.9, 0.9], 1):
        write(window, busy)
        while not watchdog.slow.empty():
            slow.append((window, watchdog.slow.get()))
    assert slow == [(6, (1, pytest.approx(2.0)))]


class Time:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_a_step_may_take(tmp_path: Path) -> None:
    time = Time()
    clock = Clock(now=time)
    heart = Heart(tmp_path, "r0001", clock)
    watchdog = Watchdog(heart, FaultsConfig(hang_seconds=500.0, hang_factor=20.0))
    clock.training(0)
    assert watchdog.limit() == 500.0
    for step in range(1, 6):
        time.now += 2.0
        clock.stepped(step)
    assert watchdog.limit() == 40.0  # 20 times the median
    with clock.spending("eval"):
        assert watchdog.limit() == 500.0
    with clock.spending("checkpoint"):
        time.now += 100
        assert clock.current() == 100.0
    assert clock.current() == 0.0, "the step itself hasn't begun"
    assert Watchdog(heart, FaultsConfig(hang_seconds=None)).limit() is None
    quick = Clock(now=time)
    quick.training(0)
    for step in range(1, 6):
        time.now += 0.01
        quick.stepped(step)
    never_under = Watchdog(Heart(tmp_path, "r0002", quick), FaultsConfig(hang_factor=20.0))
    assert never_under.limit() == 10.0


def test_one_process_that_hangs_says_where_it_stands(tmp_path: Path) -> None:
    found = attempt(tmp_path, seconds=0.05)
    ended = threading.Event()
    said: list[tuple[int, str]] = []

    def end(status: int, message: str) -> None:
        said.append((status, message))
        ended.set()

    found.clock.training(3)
    found.heart.watch = Watchdog(found.heart, FaultsConfig(hang_seconds=0.2), end=end)
    with found.heart:
        assert ended.wait(60), "the watchdog noticed"
        found.heart.watch = lambda beat: None
    status, message = said[0]
    assert status == EXIT_HUNG
    assert message.startswith("step 4 took longer than 0.2 s: it stands at train/test_watchdog.py:")
    assert message.endswith("the same command goes on from the last checkpoint")
    (beat,) = read_beats(tmp_path / "attempts", found.heart.attempt)
    assert beat.attempt["spent"]["idle"] > 0.15
    assert last_beat(tmp_path / "attempts", found.heart.attempt) > 1.7e9


def test_torn_beats_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "r0001-00000.json").write_text('{"rank": 0, "count"')
    (tmp_path / "r0001-00001.json").write_text(json.dumps(vars(Beat(1, count=4))))
    (tmp_path / "r0009-00000.json").write_text(json.dumps(vars(Beat(0, count=4))))
    assert [beat.rank for beat in read_beats(tmp_path, "r0001")] == [1]
