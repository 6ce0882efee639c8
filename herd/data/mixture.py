"""Sampling weights: how much of the training text comes from each (language, kind), given what there is.

The temperature rule is q ∝ p^(1/temperature) over byte shares p: 1 keeps the corpus as it is, larger values
give small languages more than their share (as in XLM-R, arXiv:1911.02116, section 3.1).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from herd.base.errors import ConfigError
from herd.data.document import Document

Stratum = tuple[str, str]  # (language, kind)


@dataclass(frozen=True)
class Mixture:
    """Weights per (language, kind) that sum to 1, and the bytes that each stratum has."""

    weights: Mapping[Stratum, float]
    bytes: Mapping[Stratum, int]

    def epochs(self, total_bytes: float) -> dict[Stratum, float]:
        """Return how often each stratum is read when `total_bytes` are drawn from the mixture."""
        return {key: weight * total_bytes / self.bytes[key] for key, weight in self.weights.items()}

    def by_language(self) -> dict[str, float]:
        """Return the weight of each language, over all kinds."""
        totals: dict[str, float] = {}
        for (language, _), weight in self.weights.items():
            totals[language] = totals.get(language, 0.0) + weight
        return totals


def stratum(document: Document) -> Stratum:
    """Return the (language, kind) under which a document is counted and weighted."""
    return document.lang or "und", document.kind or "text"


def count_bytes(documents: Iterable[Document]) -> dict[Stratum, int]:
    """Count UTF-8 bytes per (language, kind)."""
    totals: dict[Stratum, int] = {}
    for document in documents:
        key = stratum(document)
        totals[key] = totals.get(key, 0) + document.bytes
    return totals


def mixture_weights(
    sizes: Mapping[Stratum, int],
    *,
    temperature: float = 1.0,
    languages: Mapping[str, float] | None = None,
    kinds: Mapping[str, float] | None = None,
) -> Mixture:
    """Turn bytes per (language, kind) into sampling weights that sum to 1.

    `temperature` flattens the languages' shares. `languages` gives relative shares of languages outright
    (those not named get none); `kinds` multiplies kinds (those not named count 1, and 0 leaves one out).
    Raises ConfigError for a temperature below 1, a negative weight, or a mixture without any text.
    """
    if not math.isfinite(temperature) or temperature < 1:
        raise ConfigError(f"mixture temperature {temperature} must be at least 1 (1 keeps the corpus shares)")
    for name, given in [*(languages or {}).items(), *(kinds or {}).items()]:
        if not math.isfinite(given) or given < 0:
            raise ConfigError(f"mixture weight of {name!r} is {given}; it must be zero or a positive number")
    present = {key: size for key, size in sizes.items() if size > 0}
    weighted = {key: size * (kinds or {}).get(key[1], 1.0) for key, size in present.items()}
    per_language: dict[str, float] = {}
    for (language, _), size in weighted.items():
        per_language[language] = per_language.get(language, 0.0) + size
    total = sum(per_language.values())
    share = {name: (size / total) ** (1 / temperature) for name, size in per_language.items() if size > 0}
    if languages is not None:
        share = {name: languages.get(name, 0.0) for name in share}
    normal = sum(share.values())
    if normal <= 0:
        raise ConfigError(
            f"the mixture selects no text: the corpus has {sorted(present)}, the weights leave none of it"
        )
    weights = {
        key: share[key[0]] / normal * size / per_language[key[0]]
        for key, size in weighted.items()
        if size > 0 and share.get(key[0], 0.0) > 0
    }
    return Mixture(weights, {key: present[key] for key in weights})
