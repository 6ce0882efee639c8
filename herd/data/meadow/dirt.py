"""Deliberately dirty documents, so that every rule of the curation stage has something to find.

Their ids say what is wrong: 'dirt-duplicate-...', 'dirt-near-...', and so on.
"""

import random
from collections.abc import Callable
from typing import Any

from herd.base.languages import CODES

Row = dict[str, Any]
_BOILERPLATE = (
    "Home | About | Contact | Privacy policy | Terms of use | Sign in | Register | Cookies",
    "We use cookies to improve your experience. Click accept to continue. Accept all | Reject all | Settings",
    "Share on social media. Subscribe to our newsletter. All rights reserved. Back to top. Read more ...",
)
_LETTERS = "bcdfghjklmnpqrstvwxz"


def _duplicate(row: Row, rng: random.Random) -> Row:
    return row


def _near(row: Row, rng: random.Random) -> Row:
    return row | {"text": row["text"] + rng.choice((" ...", " !", "\n* * *"))}


def _boilerplate(row: Row, rng: random.Random) -> Row:
    line = rng.choice(_BOILERPLATE)
    return row | {"text": "\n".join([line] * rng.randint(4, 9)), "lang": "en"}


def _wronglang(row: Row, rng: random.Random) -> Row:
    return row | {"lang": rng.choice([code for code in CODES if code != row["lang"]])}


def _pii(row: Row, rng: random.Random) -> Row:
    number = f"555-01{rng.randint(0, 99):02d}"
    mail = f"{rng.choice(('emma', 'otto', 'lisa', 'bruno'))}{rng.randint(1, 99)}@example.com"
    return row | {"text": f"{row['text']} {mail}, +1 {rng.randint(201, 999)}-{number}"}


def _late(row: Row, rng: random.Random) -> Row:
    return row | {"date": f"2026-{rng.randint(7, 12):02d}-{rng.randint(1, 28):02d}"}


def _undated(row: Row, rng: random.Random) -> Row:
    return row | {"date": None}


def _gibberish(row: Row, rng: random.Random) -> Row:
    words = ("".join(rng.choices(_LETTERS, k=rng.randint(9, 24))) + rng.choice("#@%&") for _ in range(60))
    return row | {"text": " ".join(words)}


def _short(row: Row, rng: random.Random) -> Row:
    return row | {"text": row["text"][: rng.randint(3, 20)]}


DIRT: dict[str, Callable[[Row, random.Random], Row]] = {
    "duplicate": _duplicate,
    "near": _near,
    "boilerplate": _boilerplate,
    "wronglang": _wronglang,
    "pii": _pii,
    "late": _late,
    "undated": _undated,
    "gibberish": _gibberish,
    "short": _short,
}


def spoil(earlier: list[Row], fresh: Row, rng: random.Random, *, number: int) -> Row:
    """Make one dirty document: of a fresh one, or a copy of an earlier one where being a copy is the fault."""
    kind = rng.choice(tuple(DIRT))
    row = rng.choice(earlier) if kind in ("duplicate", "near") else fresh
    return DIRT[kind](row, rng) | {"id": f"dirt-{kind}-{number:06d}"}
