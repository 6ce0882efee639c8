"""Token shards on disk: all documents of a corpus as one array of ids, memory-mapped for training.

tokens.bin       ids of all documents end to end; uint16 below 65,536 ids, else uint32
documents.npy    int64 offsets, n_documents + 1 of them
keys.npy         uint16 per document: which of the index's keys (such as language and kind) it has
index.json       dtype, counts, keys, tokenizer fingerprint; written last, so a folder without it is not whole
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from herd.base.errors import DataError
from herd.base.files import write_atomic
from herd.tokenizer.bpe import Tokenizer

Key = tuple[str, ...]

INDEX, TOKENS, DOCUMENTS, KEYS = "index.json", "tokens.bin", "documents.npy", "keys.npy"
FORMAT = 1


def encode_documents(
    tokenizer: Tokenizer, documents: Iterable[tuple[str, Key]], *, threads: int = 2, batch: int = 512
) -> Iterator[tuple[list[int], Key]]:
    """Encode (text, key) documents in order: begin_of_text, the text, end_of_text."""
    rows = iter(documents)
    while group := list(islice(rows, batch)):
        encoded = tokenizer.encode_batch([text for text, _ in group], threads, bos=True, eos=True)
        yield from zip(encoded, (key for _, key in group), strict=True)


def write_shards(
    folder: Path,
    documents: Iterable[tuple[Sequence[int], Key]],
    *,
    vocab_size: int,
    key_names: Key = ("lang", "kind"),
    fingerprint: str = "",
) -> "TokenShards":
    """Write (ids, key) documents as token shards; `fingerprint` is the tokenizer's.

    Raises DataError on ids outside the vocabulary. A folder that held shards before is replaced; killed
    half-way, it holds none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    dtype = np.dtype(np.uint16 if vocab_size < 65_536 else np.uint32).newbyteorder("<")
    offsets, key_of, keys = [0], [], {}
    digest = hashlib.sha256()
    temporary = folder / f".{TOKENS}.tmp"  # one name, so that a killed attempt is overwritten by the next
    with temporary.open("wb") as file:
        for ids, key in documents:
            if len(key) != len(key_names):
                raise DataError(f"document {len(key_of)} has key {key!r}, but the key names are {key_names!r}")
            array = np.asarray(ids, dtype=np.int64)
            if array.size and (array.min() < 0 or array.max() >= vocab_size):
                raise DataError(f"document {len(key_of)} has ids outside 0..{vocab_size - 1}: wrong tokenizer?")
            data = array.astype(dtype).tobytes()
            file.write(data)
            digest.update(data)
            offsets.append(offsets[-1] + array.size)
            key_of.append(keys.setdefault(tuple(key), len(keys)))
        file.flush()
        os.fsync(file.fileno())
    if len(keys) > 65_535:
        raise DataError(f"{len(keys)} different keys {key_names!r}: at most 65,535 can be told apart")
    temporary.replace(folder / TOKENS)
    _write_npy(folder / DOCUMENTS, np.array(offsets, dtype=np.int64))
    _write_npy(folder / KEYS, np.array(key_of, dtype=np.uint16))
    index = {
        "format": FORMAT,
        "dtype": dtype.name,
        "vocab_size": vocab_size,
        "n_tokens": offsets[-1],
        "n_documents": len(key_of),
        "key_names": list(key_names),
        "keys": [list(key) for key in keys],
        "tokenizer": fingerprint,
        "sha256": digest.hexdigest(),
    }
    write_atomic(folder / INDEX, json.dumps(index, ensure_ascii=False, indent=1) + "\n")
    return TokenShards(folder)


class TokenShards:
    """Memory-mapped token shards.

    `tokens` is the whole array, `offsets` int64 (n_documents + 1), `key_of` uint16 per document,
    `keys` the key values those numbers stand for.
    """

    def __init__(self, folder: Path, *, fingerprint: str | None = None) -> None:
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
        self.n_tokens: int = index["n_tokens"]
        self.n_documents: int = index["n_documents"]
        dtype = np.dtype(index["dtype"]).newbyteorder("<")
        self._check_size(dtype.itemsize)
        self.tokens: np.ndarray = (
            np.memmap(self.folder / TOKENS, dtype=dtype, mode="r") if self.n_tokens else np.empty(0, dtype)
        )
        self.offsets: np.ndarray = self._load_npy(DOCUMENTS, self.n_documents + 1)
        self.key_of: np.ndarray = self._load_npy(KEYS, self.n_documents)
        if self.offsets[0] != 0 or self.offsets[-1] != self.n_tokens or (np.diff(self.offsets) < 0).any():
            raise DataError(f"{self.folder / DOCUMENTS}: offsets don't cover the tokens; write the shards again")

    def __len__(self) -> int:
        return self.n_documents

    def document(self, i: int) -> np.ndarray:
        """Return the ids of document i, a read-only view."""
        if not 0 <= i < self.n_documents:
            raise IndexError(f"document {i} of {self.n_documents}")
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def key(self, i: int) -> dict[str, str]:
        """Return the key of document i, such as {"lang": "de", "kind": "story"}."""
        return dict(zip(self.key_names, self.keys[self.key_of[i]], strict=True))

    def tokens_per_key(self) -> dict[Key, int]:
        """Return how many tokens each key has."""
        counts = np.bincount(self.key_of, weights=np.diff(self.offsets), minlength=len(self.keys))
        return {key: int(count) for key, count in zip(self.keys, counts, strict=True)}

    def _check_size(self, itemsize: int) -> None:
        path = self.folder / TOKENS
        found = path.stat().st_size if path.is_file() else 0
        wanted = self.n_tokens * itemsize
        if found != wanted:
            raise DataError(f"{path} holds {found} bytes, the index says {wanted}: write the shards again")

    def _load_npy(self, name: str, length: int) -> np.ndarray:
        path = self.folder / name
        try:
            array = np.load(path, mmap_mode="r" if length else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} can't be read ({error}): write the shards again") from error
        if array.shape != (length,):
            raise DataError(f"{path} has shape {array.shape}, the index says ({length},): write the shards again")
        return array


def _read_index(folder: Path) -> dict:
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"no token shards in {folder}: {INDEX} is missing (writing may have been cut short)")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: write the shards again") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{path} is not format {FORMAT} of herd's token shards: write the shards again")
    return index


def _write_npy(path: Path, array: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
