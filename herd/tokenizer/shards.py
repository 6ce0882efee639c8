"""Token shards on disk: a corpus as files of ids, each with a table of its documents, memory-mapped for training.

index.json           dtype, counts, keys, tokenizer fingerprint, a line a file; written last: without it none is whole
tokens-00000.bin     ids of the file's documents end to end; uint16 below 65,536 ids, else uint32
documents-00000.bin  uint32: n + 1 offsets into the file's ids; then, if it holds several keys, its n documents by key

A key is a document's language and kind. Opening reads the index and the names of the files; a file is mapped and
checked when it is first asked for, and few are held at a time.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, islice
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np

from herd.base.errors import DataError
from herd.tokenizer.bpe import Tokenizer

Key = tuple[str, ...]

INDEX = "index.json"
FORMAT = 2
OFFSET = np.dtype("<u4")
AGAIN = "write the shards again"


def encode_documents(
    tokenizer: Tokenizer, documents: Iterable[tuple[str, Key]], *, threads: int = 2, batch: int = 512
) -> Iterator[tuple[list[int], Key]]:
    """Encode (text, key) documents in order: begin_of_text, the text, end_of_text."""
    rows = iter(documents)
    while group := list(islice(rows, batch)):
        encoded = tokenizer.encode_batch([text for text, _ in group], threads, bos=True, eos=True)
        yield from zip(encoded, (key for _, key in group), strict=True)


def tokens_name(number: int) -> str:
    """Return the name of a file of ids."""
    return f"tokens-{number:05d}.bin"


def documents_name(number: int) -> str:
    """Return the name of a file's table of documents."""
    return f"documents-{number:05d}.bin"


@dataclass(frozen=True)
class Count:
    """What a file holds of one key: documents, their ids, and the ids that are predicted (all but the first)."""

    key: int
    documents: int
    tokens: int
    targets: int


@dataclass(frozen=True)
class ShardFile:
    """A line of the index: the counts by key, in the order of the table, and the hash of both files."""

    counts: tuple[Count, ...]
    sha256: str

    @cached_property
    def n_tokens(self) -> int:
        """Ids of the file."""
        return sum(count.tokens for count in self.counts)

    @cached_property
    def n_documents(self) -> int:
        """Documents of the file."""
        return sum(count.documents for count in self.counts)


@dataclass(frozen=True)
class Table:
    """The documents of a file: `offsets` into its ids (n + 1), and `by_key`, the documents ordered by their keys."""

    offsets: np.ndarray
    by_key: np.ndarray | None

    def documents(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return starts and lengths (int64) of the documents `first` to `last`, counted in the order of keys."""
        if self.by_key is None:
            offsets = self.offsets[first : last + 1].astype(np.int64)
            return offsets[:-1], np.diff(offsets)
        documents = self.by_key[first:last].astype(np.int64)
        starts = self.offsets[documents].astype(np.int64)
        return starts, self.offsets[documents + 1] - starts


class TokenShards:
    """Memory-mapped token shards: ids by their place among all ids, documents by their number among all documents.

    `keys` are the key values that occur. At most `open_files` files of ids are mapped at a time.
    """

    def __init__(self, folder: Path, *, fingerprint: str | None = None, open_files: int = 256) -> None:
        """Open a folder; with `fingerprint`, insist on that tokenizer. Raises DataError when not whole."""
        self.folder = Path(folder)
        index = _read_index(self.folder)
        if fingerprint is not None and index["tokenizer"] != fingerprint:
            raise DataError(
                f"{self.folder} was encoded by tokenizer {index['tokenizer'][:12] or '(unnamed)'}, "
                f"not {fingerprint[:12]}: encode the corpus again with this tokenizer"
            )
        self.vocab_size: int = index["vocab_size"]
        self.fingerprint: str = index["tokenizer"]
        self.sha256: str = index["sha256"]
        self.key_names: Key = tuple(index["key_names"])
        self.keys: list[Key] = [tuple(key) for key in index["keys"]]
        self.dtype: np.dtype = np.dtype(index["dtype"]).newbyteorder("<")
        self.files = [ShardFile(tuple(Count(*c) for c in counts), digest) for counts, digest in index["files"]]
        self.first_tokens = list(accumulate((file.n_tokens for file in self.files), initial=0))
        self.first_documents = list(accumulate((file.n_documents for file in self.files), initial=0))
        self.n_tokens, self.n_documents = self.first_tokens.pop(), self.first_documents.pop()
        self._check_names()
        # the cache belongs to this object; planning a window asks for many tables, each once
        self.tokens_of = lru_cache(open_files)(self._tokens_of)
        self.table_of = lru_cache(max(1, open_files // 16))(self._table_of)

    def __len__(self) -> int:
        return self.n_documents

    def read(self, start: int, length: int) -> np.ndarray:
        """Return `length` ids of one document from place `start` of all ids, a read-only view."""
        number = bisect_right(self.first_tokens, start) - 1
        local = start - self.first_tokens[number]
        assert number >= 0, start
        assert local + length <= self.files[number].n_tokens, (start, length)
        return self.tokens_of(number)[local : local + length]

    def document(self, i: int) -> np.ndarray:
        """Return the ids of document i, a read-only view."""
        if not 0 <= i < self.n_documents:
            raise IndexError(f"document {i} of {self.n_documents}")
        number = bisect_right(self.first_documents, i) - 1
        local = i - self.first_documents[number]
        start, end = self.table_of(number).offsets[local : local + 2].tolist()
        return self.tokens_of(number)[start:end]

    def key(self, i: int) -> dict[str, str]:
        """Return the key of document i, such as {"lang": "de", "kind": "story"}."""
        return dict(zip(self.key_names, self.keys[self.key_of[i]], strict=True))

    def tokens_per_key(self) -> dict[Key, int]:
        """Return how many tokens each key has."""
        sums = dict.fromkeys(range(len(self.keys)), 0)
        for file in self.files:
            for count in file.counts:
                sums[count.key] += count.tokens
        return {self.keys[key]: tokens for key, tokens in sums.items()}

    @cached_property
    def offsets(self) -> np.ndarray:
        """All offsets, int64 (n_documents + 1), read from every file's table: for corpora that fit the memory."""
        parts = [self.table_of(n).offsets[:-1] + np.int64(first) for n, first in enumerate(self.first_tokens)]
        offsets = np.concatenate([*parts, np.array([self.n_tokens], np.int64)])
        if (np.diff(offsets) < 0).any():
            raise DataError(f"{self.folder}: offsets of documents fall; {AGAIN}")
        return offsets

    @cached_property
    def key_of(self) -> np.ndarray:
        """All documents' keys, read from every file's table: for corpora that fit the memory."""
        keys = np.zeros(self.n_documents, np.int64)
        for number, (first, file) in enumerate(zip(self.first_documents, self.files, strict=True)):
            laid = np.repeat([count.key for count in file.counts], [count.documents for count in file.counts])
            by_key = self.table_of(number).by_key
            keys[first + (np.arange(len(laid)) if by_key is None else by_key.astype(np.int64))] = laid
        return keys

    def _check_names(self) -> None:
        # one reading of the folder finds what is missing before a long run begins; sizes are checked on mapping
        there = set(os.listdir(self.folder))
        for number in range(len(self.files)):
            for name in (tokens_name(number), documents_name(number)):
                if name not in there:
                    raise DataError(f"{self.folder / name} is missing: {AGAIN}")

    def _tokens_of(self, number: int) -> np.ndarray:
        return _mapped(self.folder / tokens_name(number), self.dtype, self.files[number].n_tokens)

    def _table_of(self, number: int) -> Table:
        file = self.files[number]
        n, several = file.n_documents, len(file.counts) > 1
        path = self.folder / documents_name(number)
        whole = _mapped(path, OFFSET, n + 1 + n * several)
        offsets, by_key = whole[: n + 1], whole[n + 1 :] if several else None
        if offsets[0] != 0 or offsets[-1] != file.n_tokens:
            raise DataError(f"{path}: offsets don't cover the tokens; {AGAIN}")
        return Table(offsets, by_key)


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """Map a file of `count` numbers. Raises DataError when it has another size."""
    found, wanted = path.stat().st_size if path.is_file() else 0, count * dtype.itemsize
    if found != wanted:
        raise DataError(f"{path} holds {found} bytes, the index says {wanted}: {AGAIN}")
    if not count:
        return np.empty(0, dtype)
    with path.open("rb") as file:
        return np.frombuffer(mmap(file.fileno(), 0, access=ACCESS_READ), dtype)


def _read_index(folder: Path) -> dict:
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"no token shards in {folder}: {INDEX} is missing (writing may have been cut short)")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {AGAIN}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{path} is not format {FORMAT} of herd's token shards: remove {folder} and {AGAIN}")
    return index


def index_text(
    files: Sequence[ShardFile], keys: Sequence[Key], *, key_names: Key, vocab_size: int, fingerprint: str, sha256: str
) -> str:
    """Return what index.json says of files already written, one line a file."""
    head = {
        "format": FORMAT,
        "dtype": dtype_of(vocab_size).name,
        "vocab_size": vocab_size,
        "n_tokens": sum(file.n_tokens for file in files),
        "n_documents": sum(file.n_documents for file in files),
        "key_names": list(key_names),
        "keys": [list(key) for key in keys],
        "tokenizer": fingerprint,
        "sha256": sha256,
    }
    counts = [[[c.key, c.documents, c.tokens, c.targets] for c in file.counts] for file in files]
    lines = [json.dumps([count, file.sha256]) for count, file in zip(counts, files, strict=True)]
    text = json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}")
    return text + ',\n "files": [\n' + ",\n".join(lines) + "\n ]\n}\n"


def dtype_of(vocab_size: int) -> np.dtype:
    """Return the type of ids on disk."""
    return np.dtype(np.uint16 if vocab_size < 65_536 else np.uint32).newbyteorder("<")
