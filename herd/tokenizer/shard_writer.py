"""Writing token shards: documents in the order given, a new file whenever one is full, the index last."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from herd.base.errors import DataError
from herd.base.files import write_atomic
from herd.tokenizer.shards import (
    INDEX,
    OFFSET,
    Count,
    Key,
    ShardFile,
    TokenShards,
    documents_name,
    dtype_of,
    index_text,
    tokens_name,
)

# 4 GiB of ids in 32 bits
FILE_TOKENS = 1 << 30
_MOST = (1 << 32) - 1  # what an offset of 32 bits reaches


def write_shards(
    folder: Path,
    documents: Iterable[tuple[Sequence[int], Key]],
    *,
    vocab_size: int,
    key_names: Key = ("lang", "kind"),
    fingerprint: str = "",
    file_tokens: int = FILE_TOKENS,
) -> TokenShards:
    """Write (ids, key) documents as token shards; `fingerprint` is the tokenizer's.

    A file holds at most `file_tokens` ids, or one document. Raises DataError on ids outside the vocabulary. A folder
    that held shards before is replaced; killed half-way, it holds none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    for old in [*folder.glob("tokens-*.bin"), *folder.glob("documents-*.bin")]:
        old.unlink()
    writer = _Writer(folder, vocab_size, key_names, file_tokens)
    try:
        for ids, key in documents:
            writer.add(ids, key)
        writer.end_file()
    finally:
        writer.close()
    sha256 = hashlib.sha256("".join(file.sha256 for file in writer.files).encode()).hexdigest()
    text = index_text(
        writer.files,
        list(writer.keys),
        key_names=key_names,
        vocab_size=vocab_size,
        fingerprint=fingerprint,
        sha256=sha256,
    )
    write_atomic(folder / INDEX, text)
    return TokenShards(folder)


class _Writer:
    """The file being written: ids go to disk at once, its table is gathered until it ends."""

    def __init__(self, folder: Path, vocab_size: int, key_names: Key, file_tokens: int) -> None:
        assert 0 < file_tokens <= _MOST
        self.folder, self.vocab_size, self.key_names = folder, vocab_size, key_names
        self.file_tokens, self.dtype = file_tokens, dtype_of(vocab_size)
        self.files: list[ShardFile] = []
        self.keys: dict[Key, int] = {}
        self._written = 0
        self._begin_file()

    def _begin_file(self) -> None:
        self._offsets, self._key_of = [0], []
        self._digest = hashlib.sha256()
        self._file = (self.folder / tokens_name(len(self.files))).open("wb")

    def add(self, ids: Sequence[int], key: Key) -> None:
        """Append one document."""
        if len(key) != len(self.key_names):
            raise DataError(f"document {self._written} has key {key!r}, but the key names are {self.key_names!r}")
        array = np.asarray(ids, dtype=np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            raise DataError(f"document {self._written} has ids outside 0..{self.vocab_size - 1}: wrong tokenizer?")
        if array.size > _MOST:
            raise DataError(f"document {self._written} has {array.size} ids, more than a file holds: split it")
        if self._offsets[-1] and self._offsets[-1] + array.size > self.file_tokens:
            self.end_file()
            self._begin_file()
        data = array.astype(self.dtype).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._offsets.append(self._offsets[-1] + array.size)
        self._key_of.append(self.keys.setdefault(tuple(key), len(self.keys)))
        self._written += 1

    def end_file(self) -> None:
        """Flush the ids to disk and write their table."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        offsets, key_of = np.array(self._offsets, np.int64), np.array(self._key_of, np.int64)
        lengths = np.diff(offsets)
        parts, counts = [offsets.astype(OFFSET)], []
        for key in np.unique(key_of).tolist():
            mine = lengths[key_of == key]
            counts.append(Count(key, len(mine), int(mine.sum()), int((mine - 1).clip(0).sum())))
        if len(counts) > 1:
            parts.append(np.argsort(key_of, kind="stable").astype(OFFSET))
        table = b"".join(part.tobytes() for part in parts)
        write_atomic(self.folder / documents_name(len(self.files)), table)
        self._digest.update(table)
        self.files.append(ShardFile(tuple(counts), self._digest.hexdigest()))

    def close(self) -> None:
        """Let go of the file; nothing is written."""
        self._file.close()
