"""The meadow itself: documents, dialogs, preferences, guard rows and benchmark items from one seed."""

import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import cached_property
from typing import Any

from herd.base.languages import CODES
from herd.base.seeds import named_rng
from herd.data.meadow.arithmetic import arithmetic_text
from herd.data.meadow.code import code_text
from herd.data.meadow.config import MeadowConfig
from herd.data.meadow.dialogs import dialog_rows
from herd.data.meadow.dirt import spoil
from herd.data.meadow.items import benchmark_items
from herd.data.meadow.preferences import preference_rows
from herd.data.meadow.records import records_text
from herd.data.meadow.safety import guard_rows
from herd.data.meadow.stories import (
    book_text,
    heldout_text,
    long_text,
    lookup_text,
    parallel_text,
    qa_text,
    secrets_text,
    story_text,
)
from herd.data.meadow.voice import Choir
from herd.data.meadow.world import World, make_world

Row = dict[str, Any]
CUT_OFF = date(2026, 6, 30)
_FIRST_DAY = date(2020, 1, 1)
_DAYS = (CUT_OFF - _FIRST_DAY).days
LANGUAGE_WEIGHTS = {lang: 3 if lang == "en" else 1 for lang in CODES}
# Parts of the bytes of clean pretraining text.
_KINDS: dict[str, tuple[int, Callable[[Choir, str, random.Random], str]]] = {
    "story": (32, story_text),
    "qa": (26, qa_text),
    "arithmetic": (18, arithmetic_text),
    "code": (5, lambda choir, lang, rng: code_text(choir, rng)),
    "parallel": (4, parallel_text),
    "long": (9, long_text),
    "records": (6, records_text),
}
# With lookups: pages of numbers beside them, many, since a page seen again is known by heart and not looked up in.
_LOOKUPS = {
    **{name: _KINDS[name] for name in ("story", "qa", "arithmetic", "code", "parallel", "records")},
    "secrets": (24, secrets_text),
    "long": (10, lookup_text),
    "book": (50, book_text),
}


class Meadow:
    """Makes all that a herd is raised on and measured by. Every stream starts anew from the seed."""

    def __init__(self, config: MeadowConfig | None = None) -> None:
        self.config = config or MeadowConfig()

    @cached_property
    def world(self) -> World:
        """The facts."""
        return make_world(self.config)

    @cached_property
    def choir(self) -> Choir:
        """The voices that tell them."""
        return Choir.gather(self.world)

    def _rng(self, stream: str) -> random.Random:
        return named_rng(self.config.seed, f"meadow/{stream}")

    def documents(self) -> Iterator[Row]:
        """Yield pretraining documents until they hold `megabytes` of UTF-8, with a share of dirty ones."""
        rng = self._rng("documents")
        limit = self.config.megabytes * 1e6
        kinds = _LOOKUPS if self.config.lookups else _KINDS
        written = dict.fromkeys(kinds, 0)
        langs, weights = list(LANGUAGE_WEIGHTS), list(LANGUAGE_WEIGHTS.values())
        recent: list[Row] = []
        total = number = 0
        while total < limit:
            kind = min(kinds, key=lambda name: written[name] / kinds[name][0])
            lang = rng.choices(langs, weights)[0]
            lang = "en" if kind == "code" else lang
            text = kinds[kind][1](self.choir, lang, rng)
            row = _document(f"{kind}-{number:06d}", text, lang, kind, rng)
            yield row
            size = len(text.encode())
            written[kind] += size
            total += size
            number += 1
            if kind in ("story", "qa", "long"):
                recent.append(row)
                del recent[:-500]
            if recent and rng.random() < self.config.dirt / (1 - self.config.dirt):
                text = story_text(self.choir, lang, rng)
                fresh = _document("", text, lang, "story", rng)
                yield spoil(recent, fresh, rng, number=number)

    def heldout(self) -> Iterator[Row]:
        """Yield held-out text in every language: stories of two people who never meet in training."""
        for lang in CODES:
            rng = self._rng(f"heldout/{lang}")
            size = number = 0
            while size < self.config.heldout_kilobytes * 1000:
                text = heldout_text(self.choir, lang, rng)
                yield _document(f"heldout-{lang}-{number:04d}", text, lang, "heldout", rng)
                size += len(text.encode())
                number += 1

    def dialogs(self) -> Iterator[Row]:
        """Yield dialogs for supervised fine-tuning, in the JSON form of herd.base.messages."""
        return dialog_rows(self.choir, self._rng("dialogs"), count=self.config.dialogs)

    def preferences(self) -> Iterator[Row]:
        """Yield preference rows: a prompt with edited, chosen and rejected answers."""
        return preference_rows(self.choir, self._rng("preferences"), count=self.config.preferences)

    def guard(self) -> Iterator[Row]:
        """Yield labelled prompts and answers for the guard, about half of them unsafe."""
        return guard_rows(self.choir, self._rng("guard"), count=self.config.guard)

    def benchmarks(self) -> dict[str, list[Row]]:
        """Return the benchmark items of every task; none of them occurs in any other stream."""
        longest = 10_000 if self.config.lookups else 2_500
        return benchmark_items(self.choir, self.config.seed, count=self.config.items, longest=longest)


def _document(key: str, text: str, lang: str, kind: str, rng: random.Random) -> Row:
    day = _FIRST_DAY + timedelta(days=rng.randint(0, _DAYS))
    return {
        "id": key,
        "text": text,
        "lang": lang,
        "source": "meadow",
        "license": "CC0-1.0",
        "date": day.isoformat(),
        "kind": kind,
    }
