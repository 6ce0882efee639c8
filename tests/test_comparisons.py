"""The comparisons with other engines: who is held against whom, turns in other processes, what a load sums up to."""

import random
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize(
    ("peer", "ours"),
    [
        ("llama.cpp:q8_0", "herd:int8"),
        ("llama.cpp:q4_0", "herd:int4"),
        ("llama.cpp:q4_0-head8", "herd:int4"),
        ("llama.cpp:f16", "herd:bf16"),
        ("llama.cpp:f32", "herd:fp32"),
        ("genai:int8", "herd:int8"),
        ("transformers:eager", "herd:bf16"),
    ],
)
def test_a_peer_is_held_against_as_many_bits(peer: str, ours: str) -> None:
    from arena import rival

    assert rival(peer, ["herd:bf16", "herd:fp32", "herd:int4", "herd:int8"]) == ours
    assert rival(peer, ["herd:default"]) == "herd:default"
    assert rival(peer, []) is None


def test_a_worker_answers_and_fails_in_its_own_words() -> None:
    from arena import Worker

    worker = Worker("list", list, [3, 5, 7])
    try:
        assert worker.missing is None
        assert worker.turn("index", 5).value == 1
        with pytest.raises(RuntimeError, match="list: ValueError: 9 is not in list"):
            worker.turn("index", 9)
        assert worker.turn("index", 7).value == 2  # and goes on
    finally:
        worker.close()


def test_a_worker_that_cannot_start_says_why() -> None:
    from arena import Worker

    worker = Worker("int", int, "seven")
    assert worker.missing is not None
    assert "invalid literal" in worker.missing
    worker.close()


def test_ratios_are_taken_within_a_round() -> None:
    from arena import Rounds

    found = Rounds({"herd:int8": [20.0, 8.0], "llama.cpp:q8_0": [10.0, 4.0]}, dropped=0, disturbed=False)
    assert found.ratio("herd:int8", "llama.cpp:q8_0") == [2.0, 2.0]


def test_the_made_up_tokenizer_reaches_every_token() -> None:
    from forms import made_up_tokenizer

    tokenizer = made_up_tokenizer(32_000)
    assert tokenizer.n_vocab == 32_000
    for token in random.Random(0).sample([token for token in tokenizer.ranks if len(token) > 1], 200):
        assert tokenizer.encode(token.decode()) == [tokenizer.ranks[token]]


def test_a_load_sums_up_its_streams() -> None:
    from serve import Answer, Load

    load = Load.of([Answer(1.0, 3.0, 21), Answer(2.0, 4.0, 11), Answer(1.5, 3.5, 21)])
    assert load.rate == pytest.approx(53 / 4)
    assert load.first == 1.5
    assert load.first_95 == pytest.approx(1.95)
    assert load.each == pytest.approx(0.1)
