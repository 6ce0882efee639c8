"""Text to ids and back: byte-level BPE over a tiktoken rank file, with the 256 special tokens after it.

"Hello<|eot_id|>"  --encode-->  [9906, 27, 91, 68, 354, 851, 91, 29]      text never becomes a control token
ids  --decode-->  text          id = rank for text tokens, n_ranks + i for the i-th special token
"""

import base64
import binascii
import codecs
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import tiktoken

from herd.base.errors import DataError
from herd.base.files import write_atomic
from herd.tokenizer import specials

FILE_NAME = "tokenizer.model"
MAX_ENCODE_CHARACTERS = 400_000  # the official wrapper's chunk: the BPE core is never given more at once
MAX_RUN_CHARACTERS = 25_000  # the official limit on one run of spaces or of non-spaces
PARTS_PER_THREAD = 32  # few enough that handing them out costs nothing, enough that all threads end together

_RUN = re.compile(r"\s+|\S+")


class Tokenizer:
    """Byte-level BPE with the official special tokens; one class for official and learned vocabularies."""

    def __init__(self, ranks: Mapping[bytes, int]) -> None:
        """Take a rank table of all single bytes and merged tokens, ranks 0..n-1. Raises DataError."""
        self.ranks: dict[bytes, int] = dict(ranks)
        _check_ranks(self.ranks)
        self.n_ranks = len(self.ranks)
        self.special_ids: dict[str, int] = {name: self.n_ranks + i for i, name in enumerate(specials.SPECIAL_TOKENS)}
        self._encoding = tiktoken.Encoding(
            name="herd",
            pat_str=specials.SPLIT_PATTERN,
            mergeable_ranks=self.ranks,
            special_tokens=self.special_ids,
        )

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a rank file, or the `tokenizer.model` of a folder. Raises DataError."""
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"no tokenizer at {path}: expected a tiktoken rank file, or a folder holding {FILE_NAME}")
        ranks: dict[bytes, int] = {}
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            if not line:
                continue
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error) as error:
                raise DataError(
                    f"{file}, line {number}: not a tiktoken rank line ('BASE64 RANK'): {line[:60]!r}"
                ) from error
        return cls(ranks)

    def save(self, folder: Path) -> Path:
        """Write `tokenizer.model` into the folder, in the official format. Returns the file."""
        file = Path(folder) / FILE_NAME
        write_atomic(file, self._rank_file)
        return file

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.ranks,)

    @property
    def _rank_file(self) -> bytes:
        ordered = sorted(self.ranks.items(), key=lambda item: item[1])
        return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ordered)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the rank file, in hexadecimal."""
        return hashlib.sha256(self._rank_file).hexdigest()

    @property
    def n_vocab(self) -> int:
        return self.n_ranks + specials.N_SPECIALS

    @property
    def bos_id(self) -> int:
        return self.special_ids[specials.BEGIN_OF_TEXT]

    @property
    def eos_id(self) -> int:
        return self.special_ids[specials.END_OF_TEXT]

    @property
    def eot_id(self) -> int:
        return self.special_ids[specials.EOT]

    @property
    def eom_id(self) -> int:
        return self.special_ids[specials.EOM]

    @property
    def pad_id(self) -> int:
        return self.special_ids[specials.PAD]

    @property
    def python_tag_id(self) -> int:
        return self.special_ids[specials.PYTHON_TAG]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return tuple(self.special_ids[name] for name in specials.STOP_TOKENS)

    def encode(
        self,
        text: str,
        *,
        bos: bool = False,
        eos: bool = False,
        allowed_special: frozenset[str] | Literal["all"] = frozenset(),
    ) -> list[int]:
        """Turn text into ids. Text of special tokens stays text unless named in `allowed_special`.

        Lone surrogates become U+FFFD. Long runs are cut as in the official wrapper: time stays linear.
        `bos` adds none where the text itself begins with an allowed one.
        """
        if not allowed_special and len(text) <= MAX_RUN_CHARACTERS:
            ids = self._encoding.encode_ordinary(text)  # nothing to cut: a fast path for the many
        else:
            encode: Callable[[str], list[int]] = self._encoding.encode_ordinary
            if allowed_special:
                encode = partial(self._encoding.encode, allowed_special=allowed_special, disallowed_special=())
            ids = list(chain.from_iterable(map(encode, _chunks(text))))
        if bos and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        if eos:
            ids.append(self.eos_id)
        return ids

    def encode_batch(
        self, texts: Sequence[str], threads: int = 1, *, bos: bool = False, eos: bool = False
    ) -> list[list[int]]:
        """Encode many texts, in order, on several threads (the BPE core releases the interpreter lock)."""

        def encode(part: Sequence[str]) -> list[list[int]]:
            if bos or eos:
                return [self.encode(text, bos=bos, eos=eos) for text in part]
            ordinary = self._encoding.encode_ordinary  # on short texts even our own call would be felt
            return [ordinary(text) if len(text) <= MAX_RUN_CHARACTERS else self.encode(text) for text in part]

        if threads <= 1:
            return encode(texts)
        with ThreadPoolExecutor(threads) as pool:
            return list(chain.from_iterable(pool.map(encode, _parts(texts, threads * PARTS_PER_THREAD))))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the exact bytes of the ids; special tokens give their names. Raises DataError."""
        ids = list(ids)
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError, TypeError) as error:
            bad = next((i for i in ids if not isinstance(i, int) or not 0 <= i < self.n_vocab), error)
            raise DataError(f"token id {bad} is outside this vocabulary of {self.n_vocab}") from error

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


class StreamDecoder:
    """Ids one by one to text, never half a character: the pieces joined equal `Tokenizer.decode`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Take one id and return the text that became certain."""
        return self._utf8.decode(self._tokenizer.decode_bytes((token_id,)))

    def flush(self) -> str:
        """Return what is left (U+FFFD for a character cut short) and start anew."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def _check_ranks(ranks: Mapping[bytes, int]) -> None:
    missing = [byte for byte in range(256) if bytes((byte,)) not in ranks]
    if missing:
        raise DataError(f"the rank table lacks {len(missing)} of the 256 single bytes (first: 0x{missing[0]:02x})")
    if set(ranks.values()) != set(range(len(ranks))):
        raise DataError(f"the {len(ranks)} ranks are not 0..{len(ranks) - 1} without gaps")


def _parts(texts: Sequence[str], count: int) -> list[list[str]]:
    """Cut a batch, in order, into about `count` parts of about as many characters each."""
    size = sum(map(len, texts)) / count
    parts: list[list[str]] = [[]]
    filled = 0
    for text in texts:
        if filled > size:
            parts.append([])
            filled = 0
        parts[-1].append(text)
        filled += len(text)
    return parts


def _chunks(text: str) -> Iterator[str]:
    """Cut text as the official wrapper does: at 400,000 characters, and runs at 25,000."""
    for start in range(0, len(text), MAX_ENCODE_CHARACTERS):
        chunk = text[start : start + MAX_ENCODE_CHARACTERS]
        if not _has_long_run(chunk):
            yield chunk
            continue
        cut = 0
        for run in _RUN.finditer(chunk):
            for end in range(run.start() + MAX_RUN_CHARACTERS, run.end(), MAX_RUN_CHARACTERS):
                yield chunk[cut:end]
                cut = end
        yield chunk[cut:]


def _has_long_run(chunk: str) -> bool:
    # A run longer than the limit covers at least one of these anchors, so only runs at anchors are measured.
    for anchor in range(0, len(chunk), MAX_RUN_CHARACTERS):
        run = _RUN.match(chunk, anchor)
        assert run is not None
        start, space = anchor, chunk[anchor].isspace()
        while start > 0 and chunk[start - 1].isspace() == space and run.end() - start <= MAX_RUN_CHARACTERS:
            start -= 1
        if run.end() - start > MAX_RUN_CHARACTERS:
            return True
    return False
