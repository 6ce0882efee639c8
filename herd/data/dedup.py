"""Duplicates: exact ones by the hash of the normalised text, near ones by datatrove's MinHash and a check.

    texts -> signatures (14 bands of 8 hashes of word 5-grams) -> pairs sharing a band -> Jaccard >= threshold

MinHash alone links a chain of merely similar documents into one cluster; here each candidate is compared
with earlier kept ones, so what is dropped has a kept partner at least `threshold` like it. The first is kept.
"""

import hashlib
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as TroveDocument
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupSignature
from datatrove.utils.text import split_into_words

from herd.data.words import Words

NGRAMS, BANDS, HASHES = 5, 14, 8
SPACES = re.compile(r"\s+")
COMPARED = 4  # first and last members of a band's group that a document is compared with
REMEMBERED = 2048  # shingle sets kept in memory while candidates are compared


def text_digest(text: str) -> bytes:
    """Return 16 bytes that are equal for texts that differ only in case and spacing."""
    return hashlib.blake2b(SPACES.sub(" ", text.strip()).casefold().encode(), digest_size=16).digest()


@dataclass(frozen=True)
class NearDuplicate:
    """One dropped document: its position, the earlier kept one it is like, and how much."""

    index: int
    of: int
    jaccard: float


class Shingler(MinhashDedupSignature):
    """datatrove's first MinHash stage over our own words: numbers, accents and Indic vowel signs count."""

    def __init__(self, folder: Path, words: Words) -> None:
        config = MinhashConfig(n_grams=NGRAMS, num_buckets=BANDS, hashes_per_bucket=HASHES)
        super().__init__(str(folder / "signatures"), config, language=words)  # ty: ignore[invalid-argument-type]

    def get_shingles(self, text: str) -> np.ndarray:
        """Return the hashed word 5-grams of a text, shape (n, 1); a shorter text is one shingle."""
        words = [word.lower() for word in split_into_words(text, self.language)]
        count = max(1, len(words) - NGRAMS + 1) if words else 0
        hashes = (self._hash_func(" ".join(words[i : i + NGRAMS])) for i in range(count))
        return np.fromiter(hashes, dtype=np.uint64, count=count).reshape(-1, 1)

    def write(self, texts: Iterable[str]) -> None:
        """Write the signatures of all texts, in order."""
        pipeline: Any = (TroveDocument(text=text, id="") for text in texts)
        self.run(pipeline)


def find_near_duplicates(
    shingler: Shingler, folder: Path, *, text_at: Callable[[int], str], threshold: float
) -> Iterator[NearDuplicate]:
    """Yield near-duplicates in order of position, after `shingler.write`; `text_at(i)` is the i-th text."""
    candidates = _candidates(folder, shingler.config)
    shingles: OrderedDict[int, np.ndarray] = OrderedDict()

    def shingles_of(index: int) -> np.ndarray:
        if index not in shingles:
            shingles[index] = np.unique(shingler.get_shingles(text_at(index)))
            if len(shingles) > REMEMBERED:
                shingles.popitem(last=False)
        return shingles[index]

    keeper: dict[int, int] = {}
    for index in sorted(candidates):
        mine = shingles_of(index)
        for other in sorted({keeper.get(earlier, earlier) for earlier in candidates[index]}):
            theirs = shingles_of(other)
            if min(len(mine), len(theirs)) < threshold * max(len(mine), len(theirs)):
                continue
            shared = len(np.intersect1d(mine, theirs, assume_unique=True))
            jaccard = shared / (len(mine) + len(theirs) - shared)
            if jaccard >= threshold:
                keeper[index] = other
                yield NearDuplicate(index, other, jaccard)
                break


def _candidates(folder: Path, config: MinhashConfig) -> dict[int, set[int]]:
    """Run datatrove's second stage and return each document's earlier ones that share a band with it."""
    stage = MinhashDedupBuckets(str(folder / "signatures"), str(folder / "pairs"), config=config, lines_to_buffer=4096)
    for band in range(BANDS):
        stage.run(rank=band, world_size=BANDS)
    candidates: dict[int, set[int]] = {}
    for path in sorted((folder / "pairs").glob("*.dups")):
        group: list[int] = []
        for _, first, _, second in struct.iter_unpack("<4I", path.read_bytes()):
            if not group or group[-1] != first:
                group = [first]
            candidates.setdefault(second, set()).update(group[:COMPARED] + group[-COMPARED:])
            group.append(second)
    return candidates
