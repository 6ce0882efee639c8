"""Needle in a haystack by length: one secret number told at some depth of a long text, and asked for at its end.

    held-out text ... The secret number of Nora is 482. ... held-out text
    Question: What is the secret number of Nora?
    Answer:                                                  <- a base model goes on from here

The haystack is a run's own held-out text, again from its beginning where there is too little of it, without the
sentences that name who is asked about: they may tell another number. What is hidden and asked is the meadow's, in eight
languages. Numbers are ones that no training text of the meadow holds. The numbers of `others`, hidden at random depths,
tell a model that looks up whose number it is from one that copies the only number there is.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

from herd.base.files import read_jsonl
from herd.base.languages import CODES
from herd.base.seeds import named_rng
from herd.data.meadow.stories import draw_code, plain_qa
from herd.data.meadow.voice import Choir
from herd.eval.subject import ROOM
from herd.tokenizer.bpe import Tokenizer

Item = dict[str, Any]
# Thai ends a sentence with a space and has none between words
_SENTENCE = {"th": re.compile(r"(?<=\s)(?=\S)")}
_ENDS = re.compile(r"(?<=[.!?।]\s)(?=\S)|(?<=\n)(?=\S)")


def needle_items(
    tokenizer: Tokenizer,
    haystack: Mapping[str, Sequence[str]],
    choir: Choir,
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    repeats: int,
    seed: int,
    others: int = 0,
) -> list[Item]:
    """Return `repeats` items for each length and depth, the languages of the haystack by turns.

    haystack: language -> texts; languages without phrases of their own are asked in English. lengths: in tokens, the
    room for an answer included, so that an item of a model's full context uses all of it. others: people in an item
    whose numbers are told and not asked for.
    """
    texts = {lang: rows for lang, rows in haystack.items() if lang in CODES and rows}
    if not texts:
        texts = {"en": [text for rows in haystack.values() for text in rows]}
    langs, items = sorted(texts, key=CODES.index), []
    for number, (length, depth, _) in enumerate(product(lengths, depths, range(repeats))):
        lang = langs[number % len(langs)]
        rng = named_rng(seed, f"needle/{number}")
        secret, *rest = _secrets(choir, lang, rng, count=1 + others)
        room = length - ROOM - secret.size(tokenizer) - sum(len(tokenizer.encode(f"{one.told} ")) for one in rest)
        sentences = _fitting(tokenizer, texts[lang], lang, rng, room=room, without=secret.name)
        for other in rest:
            sentences.insert(rng.randint(0, len(sentences)), f"{other.told} ")
        place = round(depth * len(sentences))
        passage = "".join([*sentences[:place], f"{secret.told} ", *sentences[place:]]).strip()
        items.append(
            {
                "id": f"needle-{length}-{number:04d}",
                "task": "needle",
                "lang": lang,
                "type": "needle",
                "context": f"{passage}\n{secret.asked}",
                "target": secret.code,
                "length": length,
                "depth": depth,
            }
        )
    return items


def read_haystack(corpus: Path) -> dict[str, list[str]]:
    """Return a run's held-out texts by language, from its corpus folder."""
    texts: dict[str, list[str]] = {}
    for row in read_jsonl(corpus / "heldout.jsonl"):
        texts.setdefault(row["lang"], []).append(row["text"])
    return texts


class _Secret:
    """Someone's number: the sentence that tells it and the prompt that asks for it."""

    def __init__(self, choir: Choir, lang: str, rng: random.Random, *, name: str, code: str) -> None:
        phrases = choir.phrases[lang]
        self.name, self.code = name, code
        forms = choir.voices[lang].subject(name) | {"c": code}
        self.told = rng.choice(phrases.keeper).format_map(forms)
        self.asked = plain_qa(choir, lang, rng.choice(phrases.keeper_ask).format_map(forms))

    def size(self, tokenizer: Tokenizer) -> int:
        """Return the tokens of both, begin_of_text and a few that joints may cost included."""
        return len(tokenizer.encode(f"{self.told} \n{self.asked}", bos=True)) + 4


def _secrets(choir: Choir, lang: str, rng: random.Random, *, count: int) -> list[_Secret]:
    """Draw different people with different numbers."""
    codes: list[str] = []
    while len(codes) < count:
        codes = list(dict.fromkeys([*codes, draw_code(choir, rng, held=True)]))
    names = rng.sample(choir.voices[lang].names, count)
    return [_Secret(choir, lang, rng, name=name, code=code) for name, code in zip(names, codes, strict=True)]


def _fitting(
    tokenizer: Tokenizer, texts: Sequence[str], lang: str, rng: random.Random, *, room: int, without: str
) -> list[str]:
    """Return sentences of texts in random order that don't name `without`, as many as make up `room` tokens."""
    found: list[str] = []
    left = room
    for sentence in _endless(texts, lang, rng, without):
        size = len(tokenizer.encode(sentence))
        if size > left:
            # together sentences take fewer tokens than one by one: count anew before giving up
            left = room - len(tokenizer.encode("".join(found)))
            if size > left:
                return found
        found.append(sentence)
        left -= size
    return found


def _endless(texts: Sequence[str], lang: str, rng: random.Random, without: str) -> Iterator[str]:
    """Yield the sentences of shuffled texts, each with the white space behind it, over and over."""
    order = rng.sample(texts, len(texts))
    ends = _SENTENCE.get(lang, _ENDS)
    alone = all(without in s for text in order for s in ends.split(text))  # nothing else is told: then they stay
    for text in cycle(order):
        yield from (s for s in ends.split(f"{text.strip()}\n") if alone or without not in s)
