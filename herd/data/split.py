"""Choices among documents by the hash of their text: each language's held-out part, a limit on size."""

from collections.abc import Sequence

MOST = 0.2  # of a language's documents, whatever the minimum says


def choose_heldout(
    alive: Sequence[int],
    keys: Sequence[float],
    sizes: Sequence[int],
    strata: Sequence[str],
    *,
    fraction: float,
    minimum: int,
    limit: float,
) -> set[int]:
    """Choose held-out positions per stratum (language), lowest key first.

    Takes `fraction` of the documents but at least `minimum`, never more than a fifth, and at most `limit`
    bytes (at least one document where the minimum asks for any). `keys` in [0, 1) are hashes of the texts.
    """
    groups: dict[str, list[int]] = {}
    for index in alive:
        groups.setdefault(strata[index], []).append(index)
    chosen: set[int] = set()
    for members in groups.values():
        members.sort(key=lambda index: (keys[index], index))
        wanted = min(max(round(fraction * len(members)), minimum), int(MOST * len(members)))
        used = 0
        taken = 0
        for index in members:
            if taken >= wanted:
                break
            if used + sizes[index] > limit and taken:
                continue  # a shorter one may still fit
            chosen.add(index)
            used += sizes[index]
            taken += 1
    return chosen


def choose_within(
    alive: Sequence[int], keys: Sequence[float], sizes: Sequence[int], *, limit: float | None
) -> bytearray:
    """Flag the positions kept under a limit in bytes: all of them, or those of the highest keys that fit."""
    flags = bytearray(len(keys))
    total = 0
    for index in sorted(alive, key=lambda index: (-keys[index], index)) if limit else alive:
        if limit and total + sizes[index] > limit:
            continue
        total += sizes[index]
        flags[index] = 1
    return flags
