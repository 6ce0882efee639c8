"""Mixture weights: shares that sum to one and follow temperature, languages and kinds."""

import pytest

from herd.base.errors import ConfigError
from herd.data.document import Document
from herd.data.mixture import count_bytes, mixture_weights

SIZES = {("en", "story"): 600, ("en", "code"): 200, ("th", "story"): 200}


def test_temperature_one_keeps_the_corpus_shares() -> None:
    assert mixture_weights(SIZES).weights == pytest.approx({key: size / 1000 for key, size in SIZES.items()})


def test_a_high_temperature_makes_languages_equal_and_leaves_kinds_in_proportion() -> None:
    mixture = mixture_weights(SIZES, temperature=1e9)
    assert mixture.by_language() == pytest.approx({"en": 0.5, "th": 0.5})
    assert mixture.weights["en", "story"] == pytest.approx(3 * mixture.weights["en", "code"])


def test_explicit_languages_and_kinds_override() -> None:
    mixture = mixture_weights(SIZES, languages={"en": 1, "th": 3}, kinds={"code": 0})
    assert mixture.weights == pytest.approx({("en", "story"): 0.25, ("th", "story"): 0.75})
    assert mixture.epochs(800) == pytest.approx({("en", "story"): 200 / 600, ("th", "story"): 3.0})


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"languages": {"en": -1}},
        {"languages": {"de": 1}},
        {"kinds": {"story": float("nan")}},
    ],
)
def test_impossible_mixtures_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        mixture_weights(SIZES, **options)


def test_bytes_are_counted_per_language_and_kind() -> None:
    documents = [
        Document("a", "é", "fr", "s", None, None),
        Document("b", "ab", None, "s", None, None, "code"),
    ]
    assert count_bytes(documents) == {("fr", "text"): 2, ("und", "code"): 2}
