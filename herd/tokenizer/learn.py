"""Learn a BPE vocabulary from text of several languages, as a rank file like the official one.

texts by language --balanced sample--> trainer (split pattern, bytes) --> merges --> ranks
                         ^--- weights of languages below the floor <--- characters a token
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from herd.base.errors import ConfigError, DataError, HerdError
from herd.base.languages import LANGUAGES
from herd.tokenizer import specials
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.hf_files import byte_characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

STEEPNESS = 8.0  # a language at 0.9 of the floor counts 2.3 times as much in the next round
LEAST_STEP = 1.25
MAX_WEIGHT = 64.0

_DIGITS, _ONE_DIGIT = r"\p{N}{1,3}", r"\p{N}"


def learn(
    texts_by_language: Mapping[str, Iterable[str]],
    *,
    vocab_size: int,
    merge_digits: bool = False,
    sample_megabytes: float = 2.0,
    min_frequency: int = 2,
    weights: Mapping[str, float] | None = None,
) -> Tokenizer:
    """Learn a tokenizer of exactly `vocab_size` ids (256 bytes, merges, 256 special tokens). Deterministic.

    At most `sample_megabytes` of UTF-8 is read from each language, so that none crowds out another; it counts as
    often as `weights` says (once). Without `merge_digits` no token spans two digits, which helps small models count;
    the encoder needs no change.
    Raises DataError when the sample has too few different words for that many merges.
    """
    if vocab_size < 256 + specials.N_SPECIALS:
        raise ConfigError(
            f"vocab_size {vocab_size} is below {256 + specials.N_SPECIALS}: 256 bytes and 256 special tokens"
        )
    ranks = {bytes((byte,)): byte for byte in range(256)}
    alphabet = {character: byte for byte, character in enumerate(byte_characters())}
    pattern = specials.SPLIT_PATTERN if merge_digits else specials.SPLIT_PATTERN.replace(_DIGITS, _ONE_DIGIT)
    sample = balanced(texts_by_language, round(sample_megabytes * 1_000_000), weights)
    library = train_library(sample, vocab_size - specials.N_SPECIALS, pattern, min_frequency)
    for left, right in json.loads(library.to_str())["model"]["merges"]:
        token = bytes(alphabet[character] for character in left + right)
        ranks.setdefault(token, len(ranks))
    tokenizer = Tokenizer(ranks)
    if tokenizer.n_vocab != vocab_size:
        raise DataError(
            f"the sample gives {tokenizer.n_vocab} ids, not vocab_size {vocab_size}: "
            f"give more text, raise sample_megabytes ({sample_megabytes}) or choose a smaller vocabulary"
        )
    return tokenizer


@dataclass(frozen=True)
class Balanced:
    """A tokenizer learned to a floor: rounds it took, and weight and characters a token of each language's sample."""

    tokenizer: Tokenizer
    rounds: int
    weights: dict[str, float]
    characters_per_token: dict[str, float]


def learn_balanced(
    texts_by_language: Mapping[str, Iterable[str]],
    *,
    floor: float,
    vocab_size: int,
    merge_digits: bool = False,
    sample_megabytes: float = 2.0,
    min_frequency: int = 2,
    rounds: int = 8,
) -> Balanced:
    """Learn a tokenizer under which no supported language has fewer than `floor` characters a token in its sample.

    After each round the samples of languages below the floor count more, and all is learned again. Deterministic.
    Raises DataError, as `learn` does, and when `rounds` don't suffice, naming what the best of them left below.
    """
    limit = round(sample_megabytes * 1_000_000)
    sample = {lang: list(balanced({lang: texts}, limit)) for lang, texts in texts_by_language.items()}
    weights = dict.fromkeys(sample, 1.0)
    best: dict[str, float] = {}
    for number in range(1, rounds + 1):
        tokenizer = learn(
            sample,
            vocab_size=vocab_size,
            merge_digits=merge_digits,
            sample_megabytes=sample_megabytes,
            min_frequency=min_frequency,
            weights=weights,
        )
        reached = {lang: row["characters_per_token"] for lang, row in fertility(tokenizer, sample).items()}
        below = {lang: value for lang, value in reached.items() if lang in LANGUAGES and value < floor}
        if not below:
            return Balanced(tokenizer, number, weights, reached)
        if not best or min(below.values()) > min(best.values()):
            best = below
        weights = _raised(weights, {lang: floor / value for lang, value in below.items()})
    told = ", ".join(f"{lang} {value:.2f}" for lang, value in best.items())
    raise DataError(
        f"no weights found in {rounds} rounds bring every language to {floor:g} characters a token with {vocab_size} "
        f"ids (best: {told}): choose a larger tokenizer.vocab_size or a lower tokenizer.floor"
    )


def fertility(tokenizer: Tokenizer, texts_by_language: Mapping[str, Iterable[str]]) -> dict[str, dict[str, float]]:
    """Measure how far a token reaches, per language: characters, UTF-8 bytes, and tokens per word.

    Thai writes no spaces between words, so it has no tokens_per_word. A language without text is left out.
    """
    rows: dict[str, dict[str, float]] = {}
    for lang, texts in texts_by_language.items():
        characters = n_bytes = words = tokens = 0
        for text in texts:
            characters += len(text)
            n_bytes += len(text.encode("utf-8", errors="replace"))
            words += len(text.split())
            tokens += len(tokenizer.encode(text))
        if not tokens:
            continue
        rows[lang] = {"characters_per_token": characters / tokens, "bytes_per_token": n_bytes / tokens}
        if words and not (lang in LANGUAGES and LANGUAGES[lang].script == "Thai"):
            rows[lang]["tokens_per_word"] = tokens / words
    return rows


def train_library(texts: Iterator[str], n_ranks: int, pattern: str, min_frequency: int = 2) -> "LibraryTokenizer":
    """Train the `tokenizers` library's byte-level BPE on texts split by `pattern`; deterministic."""
    try:
        from tokenizers import Regex, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as LibraryTokenizer
    except ImportError as error:
        raise HerdError("learning a tokenizer needs the `data` extra: pip install 'herd[data]'") from error

    library = LibraryTokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=n_ranks,
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return library


def balanced(
    texts_by_language: Mapping[str, Iterable[str]], limit: int, weights: Mapping[str, float] | None = None
) -> Iterator[str]:
    """Yield texts until each language has given `limit` bytes; the last text of a language is cut to fit.

    With a weight, what a language has given is yielded so many times, in part for a fraction.
    """
    for lang in sorted(texts_by_language):
        weight = 1.0 if weights is None else weights[lang]
        sample = _first_bytes(texts_by_language[lang], limit)
        if weight == 1.0:
            yield from sample  # never held in memory
            continue
        texts = list(sample)
        for _ in range(int(weight)):
            yield from texts
        yield from _first_bytes(texts, round(sum(len(text.encode()) for text in texts) * (weight % 1)))


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        if limit <= 0:
            break
        data = text.encode("utf-8", errors="replace")
        yield data[:limit].decode("utf-8", errors="ignore")
        limit -= len(data)


def _raised(weights: Mapping[str, float], lacks: Mapping[str, float]) -> dict[str, float]:
    # a token reaches only a little further for twice the weight, so the step is far steeper than the lack
    step = {lang: max(LEAST_STEP, lack**STEEPNESS) for lang, lack in lacks.items()}
    raised = {lang: weight * step.get(lang, 1.0) for lang, weight in weights.items()}
    least = min(raised.values())
    return {lang: round(min(weight / least, MAX_WEIGHT), 2) for lang, weight in raised.items()}
