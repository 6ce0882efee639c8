"""Tensors in files, one at a time: where each lies, read by offset, written in a stream. Nothing is ever executed.

    .safetensors   8-byte length | JSON header {name: dtype, shape, offsets} | bytes
    .pth           zip of a pickle (read with `weights_only`) and one uncompressed record a storage

Memory never holds more than the tensor asked for: no mapping of whole files, whose pages would count as ours.
"""

import json
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from herd.base.errors import DataError

Shape = tuple[int, ...]

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES = _FLOATS | {"I32": torch.int32, "I64": torch.int64}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_ALIGNMENT = 8
_CHUNK = 1 << 20  # at once: for 8 MiB Linux seeks larger blocks of free memory, and took up to four times as long
# what the pickle of a dictionary of tensors names; PyTorch's own list would also let a few bytes ask for any memory
_TENSOR = re.compile(
    r"torch(\.storage)? \w+Storage|torch\._utils _rebuild_(tensor(_v2)?|parameter)|collections OrderedDict"
)


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: contiguous, `offset` bytes into `file`."""

    file: Path
    dtype: torch.dtype
    shape: Shape
    offset: int

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


def read(entry: Entry, out: Tensor | None = None) -> Tensor:
    """Return the tensor, read into `out` (contiguous, same dtype and shape) when given. Raises DataError."""
    if out is None:
        out = torch.empty(entry.shape, dtype=entry.dtype)
    assert out.is_contiguous()
    assert out.dtype == entry.dtype
    assert tuple(out.shape) == entry.shape
    buffer = memoryview(bytes_of(out))
    descriptor = os.open(entry.file, os.O_RDONLY)
    try:
        at = 0
        while at < len(buffer):
            count = os.preadv(descriptor, [buffer[at:]], entry.offset + at)
            if count == 0:
                raise DataError(f"{entry.file}: cut short, {len(buffer) - at} bytes are missing; copy it again")
            at += count
    finally:
        os.close(descriptor)
    return out


def bytes_of(tensor: Tensor) -> Any:
    """Return the bytes of a contiguous CPU tensor as a numpy array over the same memory."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def safetensors_entries(file: Path) -> dict[str, Entry]:
    """Return the tensors of a .safetensors file by name. Raises DataError on any other or damaged file."""
    try:
        with safe_open(file, framework="pt"):
            pass  # the library checks lengths, offsets and overlaps; then the header can be trusted
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: not a whole safetensors file ({error})") from None
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    entries = {}
    for name, row in header.items():
        if row["dtype"] not in _DTYPES:
            raise DataError(
                f"{file}: tensor {name!r:.80} is {row['dtype']}, a format herd doesn't read; "
                f"it reads {', '.join(_DTYPES)}"
            )
        entries[name] = Entry(file, _DTYPES[row["dtype"]], tuple(row["shape"]), 8 + length + row["data_offsets"][0])
    return entries


def pth_entries(file: Path) -> dict[str, Entry]:
    """Return the tensors of a .pth file by name: only tensors are ever unpickled. Raises DataError."""
    try:
        sizes = _records(file)
        loaded = torch.load(file, weights_only=True, map_location="meta")  # no byte of a tensor is read
    except DataError:
        raise
    except Exception as error:  # a damaged zip or pickle can raise anything
        reason = (str(error).partition("Unpickler error: ")[2] or str(error)).strip().partition("\n")[0]
        raise DataError(
            f"{file}: not a whole checkpoint ({type(error).__name__}: {reason:.160}); copy it again"
        ) from None
    if not isinstance(loaded, dict):
        raise DataError(f"{file}: not a dictionary of tensors by name")
    return {name: _pth_entry(file, name, value, sizes) for name, value in loaded.items()}


def _records(file: Path) -> dict[int, int]:
    """Return the sizes of a zip's records by the offset of their bytes, after a look at what the pickle asks for."""
    sizes, end = {}, file.stat().st_size
    with zipfile.ZipFile(file) as archive, file.open("rb") as handle:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise DataError(f"{file}: record {info.filename!r} is compressed, which PyTorch never writes")
            if info.filename.endswith("/byteorder") and archive.read(info) == b"big":
                raise DataError(f"{file}: written on a machine of the other byte order, which herd doesn't read")
            if info.filename.lower().endswith(".pkl"):
                asked = (
                    argument for code, argument, _ in pickletools.genops(archive.read(info)) if code.name == "GLOBAL"
                )
                if odd := [name for name in asked if not _TENSOR.fullmatch(str(name))]:
                    raise DataError(
                        f"{file}: holds more than tensors, so it is not loaded "
                        f"(it asks for {str(odd[0]).replace(' ', '.')!r:.80})"
                    )
            handle.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", handle.read(4))
            start = info.header_offset + 30 + name + extra
            sizes[start] = min(info.file_size, end - start)  # whatever the directory claims
    return sizes


def _pth_entry(file: Path, name: object, value: object, sizes: Mapping[int, int]) -> Entry:
    if not isinstance(name, str) or not name.isprintable() or not isinstance(value, Tensor):
        raise DataError(f"{file}: entry {name!r:.80} is not a tensor with a name")
    if value.dtype not in _FLOATS.values():
        raise DataError(f"{file}: tensor {name} is {value.dtype}, a format herd doesn't read")
    if not value.is_contiguous():
        raise DataError(f"{file}: tensor {name} is stored with strides {tuple(value.stride())}, not row by row")
    record = int(getattr(value.untyped_storage(), "_checkpoint_offset", -1))
    start, n_bytes = int(value.storage_offset()) * value.dtype.itemsize, value.numel() * value.dtype.itemsize
    if start + n_bytes > sizes.get(record, -1):
        raise DataError(f"{file}: tensor {name} reaches beyond its record; the file is damaged")
    return Entry(file, value.dtype, tuple(value.shape), record + start)


def write_safetensors(
    file: Path, kinds: Mapping[str, tuple[Shape, torch.dtype]], produce: Callable[[str], Tensor]
) -> None:
    """Write a .safetensors file, asking `produce` for one tensor after another, in the order of `kinds`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in kinds.items():
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    start = 8 + len(text)
    with file.open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        handle.flush()
        for name, (shape, dtype) in kinds.items():
            _put(handle.fileno(), produce(name), Entry(file, dtype, shape, start))
            start += prod(shape) * dtype.itemsize
        os.fsync(handle.fileno())


def blank_pth(file: Path, shapes: Mapping[str, Shape], dtype: torch.dtype) -> dict[str, Entry]:
    """Write a .pth file with room for these tensors but nothing in it yet; return where each goes."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # seconds to import; only this needs it

    with FakeTensorMode():
        blank = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(blank, file)
    return pth_entries(file)


def write_entry(entry: Entry, tensor: Tensor) -> None:
    """Write a tensor where `entry` says."""
    descriptor = os.open(entry.file, os.O_WRONLY)
    try:
        _put(descriptor, tensor, entry)
    finally:
        os.close(descriptor)


def _put(descriptor: int, tensor: Tensor, entry: Entry) -> None:
    assert tuple(tensor.shape) == entry.shape, f"{tuple(tensor.shape)} instead of {entry.shape}"
    buffer = memoryview(bytes_of(tensor.to("cpu", entry.dtype).contiguous()))
    at = 0
    while at < len(buffer):
        at += os.pwrite(descriptor, buffer[at : at + _CHUNK], entry.offset + at)


def sync(file: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
