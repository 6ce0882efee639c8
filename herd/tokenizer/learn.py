"""Learn a BPE vocabulary from text of several languages, as a rank file like the official one.

texts by language --balanced sample--> trainer (split pattern, bytes) --> merges --> ranks
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from herd.base.errors import ConfigError, DataError, HerdError
from herd.base.languages import LANGUAGES
from herd.tokenizer import specials
from herd.tokenizer.bpe import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

_DIGITS, _ONE_DIGIT = r"\p{N}{1,3}", r"\p{N}"


def learn(
    texts_by_language: Mapping[str, Iterable[str]],
    *,
    vocab_size: int,
    merge_digits: bool = False,
    sample_megabytes: float = 2.0,
    min_frequency: int = 2,
) -> Tokenizer:
    """Learn a tokenizer of exactly `vocab_size` ids (256 bytes, merges, 256 special tokens). Deterministic.

    At most `sample_megabytes` of UTF-8 is read from each language, so that none crowds out another. Without
    `merge_digits` no token spans two digits, which helps small models count; the encoder needs no change.
    Raises DataError when the sample has too few different words for that many merges.
    """
    if vocab_size < 256 + specials.N_SPECIALS:
        raise ConfigError(
            f"vocab_size {vocab_size} is below {256 + specials.N_SPECIALS}: 256 bytes and 256 special tokens"
        )
    ranks = {bytes((byte,)): byte for byte in range(256)}
    alphabet = {character: byte for byte, character in enumerate(byte_characters())}
    pattern = specials.SPLIT_PATTERN if merge_digits else specials.SPLIT_PATTERN.replace(_DIGITS, _ONE_DIGIT)
    sample = balanced(texts_by_language, round(sample_megabytes * 1_000_000))
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


def byte_characters() -> list[str]:
    """Return the printable character for each byte value in byte-level BPE files (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


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


def balanced(texts_by_language: Mapping[str, Iterable[str]], limit: int) -> Iterator[str]:
    """Yield texts until each language has given `limit` bytes; the last text of a language is cut to fit."""
    for lang in sorted(texts_by_language):
        left = limit
        for text in texts_by_language[lang]:
            data = text.encode("utf-8", errors="replace")
            yield data[:left].decode("utf-8", errors="ignore")
            left -= len(data)
            if left <= 0:
                break
