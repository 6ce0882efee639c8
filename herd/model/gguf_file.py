"""What stands before the numbers of a GGUF file: metadata and where each tensor lies. Plain data, bounds checked.

"GGUF" | version | counts | key, type, value ... | name, dimensions, format, offset ... | aligned bytes
"""

import struct
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from herd.base.errors import DataError
from herd.model.tensorfile import Entry

GGUF_DTYPES = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}

_VERSIONS = (2, 3)
_SCALARS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_MAX_LENGTH = 1 << 24  # of an array or a string: far above any vocabulary, far below what would fill memory
_ALIGNMENT = 32


def read_gguf_header(file: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Return a file's metadata and its tensors by name. Raises DataError on any other, damaged or quantised file.

    A float32 comes back as the shortest decimal that it stands for: 1e-05, not 9.999999747378752e-06.
    """
    try:
        with file.open("rb") as handle:
            return _Header(handle, file).read()
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror})") from None


class _Header:
    def __init__(self, handle: BinaryIO, file: Path) -> None:
        self._handle, self._file = handle, file

    def read(self) -> tuple[dict[str, Any], dict[str, Entry]]:
        if self._handle.read(4) != b"GGUF":
            raise DataError(f"{self._file}: not a GGUF file")
        version = self._number("u4")
        if version not in _VERSIONS:
            raise DataError(f"{self._file}: GGUF version {version}; herd reads {_VERSIONS} (little-endian)")
        n_tensors, n_values = self._number("u8"), self._number("u8")
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self._new(self._text(), metadata)
            metadata[key] = self._value(self._number("u4"))
        entries: dict[str, Entry] = {}
        for _ in range(n_tensors):
            name = self._new(self._text(), entries)
            entries[name] = self._entry(name)
        return metadata, self._placed(entries, metadata.get("general.alignment", _ALIGNMENT))

    def _placed(self, entries: dict[str, Entry], alignment: int) -> dict[str, Entry]:
        """Count offsets from the file's start instead of from that of the numbers, and see that all are there."""
        if type(alignment) is not int or alignment < 1:
            raise DataError(f"{self._file}: alignment {alignment!r} is not a whole number")
        start = -(-self._handle.tell() // alignment) * alignment
        size = self._handle.seek(0, 2)
        placed = {}
        for name, entry in entries.items():
            placed[name] = Entry(entry.file, entry.dtype, entry.shape, start + entry.offset)
            if placed[name].offset + entry.n_bytes > size:
                raise DataError(f"{self._file}: cut short, it ends before tensor {name} does; copy it again")
        return placed

    def _entry(self, name: str) -> Entry:
        n_dimensions = self._number("u4")
        if n_dimensions > _MAX_DIMENSIONS:
            raise DataError(f"{self._file}: tensor {name} has {n_dimensions} dimensions")
        shape = tuple(reversed([self._number("u8") for _ in range(n_dimensions)]))
        kind, offset = self._number("u4"), self._number("u8")
        if kind not in GGUF_DTYPES:
            raise DataError(f"{self._file}: tensor {name} is quantised (format {kind}); herd reads F32, F16 and BF16")
        if prod(shape) == 0:
            raise DataError(f"{self._file}: tensor {name} has no numbers in it")
        return Entry(self._file, GGUF_DTYPES[kind], shape, offset)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._scalars(kind, 1)[0]
        kind, count = self._number("u4"), self._number("u8")
        if count > _MAX_LENGTH:
            raise DataError(f"{self._file}: an array of {count} items in the metadata")
        return [self._text() for _ in range(count)] if kind == _STRING else self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise DataError(f"{self._file}: a value of unknown type {kind} in the metadata")
        dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
        values = np.frombuffer(self._take(count * dtype.itemsize), dtype)
        return [float(str(value)) for value in values] if _SCALARS[kind] == "f4" else values.tolist()

    def _text(self) -> str:
        try:
            return self._take(self._number("u8")).decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{self._file}: text that is not UTF-8 in the metadata") from None

    def _number(self, code: str) -> int:
        return int(struct.unpack({"u4": "<I", "u8": "<Q"}[code], self._take(int(code[1])))[0])

    def _take(self, count: int) -> bytes:
        data = self._handle.read(count) if count <= 8 * _MAX_LENGTH else b""
        if len(data) < count:
            raise DataError(f"{self._file}: cut short or damaged before byte {self._handle.tell()}; copy it again")
        return data

    def _new(self, name: str, seen: dict[str, Any]) -> str:
        if name in seen:
            raise DataError(f"{self._file}: {name!r} stands in it twice")
        return name
