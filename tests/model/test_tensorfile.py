"""Tensors in files: read where they lie, never run, and every damaged or hostile file told apart in one line."""

import collections
import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from herd.base.errors import DataError, HerdError
from herd.model.tensorfile import (
    blank_pth,
    pth_entries,
    read,
    safetensors_entries,
    write_entry,
    write_safetensors,
)

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
READERS = {".pth": pth_entries, ".safetensors": safetensors_entries}


def drawn() -> dict[str, Tensor]:
    """Return tensors of every format and odd shape, two of them parts of one storage."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{dtype}": torch.randn(3, 5, generator=generator).to(dtype) for dtype in DTYPES}
    pool = torch.randn(40, generator=generator)
    tensors |= {"first": pool[:12].view(3, 4), "then": pool[12:36].view(2, 3, 4)}
    return tensors | {"one": torch.tensor(1.5), "none": torch.empty(0, 4), "shared": tensors["torch.float32"]}


def write(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors with the libraries themselves."""
    if file.suffix == ".pth":
        torch.save(tensors, file)
    else:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)


@pytest.mark.parametrize("suffix", READERS)
def test_files_of_the_libraries_are_read_bit_equal(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    write(file, drawn())
    entries = READERS[suffix](file)
    assert entries.keys() == drawn().keys()
    for name, tensor in drawn().items():
        loaded = read(entries[name])
        assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(loaded, tensor)
        assert entries[name].n_bytes == tensor.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_files_of_ours_are_read_by_the_libraries(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in drawn().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(
        tmp_path / "x.safetensors", {name: (shape, dtype) for name, shape in shapes.items()}, drawn().__getitem__
    )
    places = blank_pth(tmp_path / "x.pth", shapes, dtype)
    for name, tensor in drawn().items():
        write_entry(places[name], tensor)
    for loaded in (load_file(tmp_path / "x.safetensors"), torch.load(tmp_path / "x.pth", weights_only=True)):
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
        assert all(tensor.dtype == dtype for tensor in loaded.values())


def test_modules_and_parameters_are_dictionaries_of_tensors_too(tmp_path: Path) -> None:
    file, layer = tmp_path / "x.pth", nn.Linear(3, 2)
    for value in (layer.state_dict(), dict(layer.named_parameters()), collections.OrderedDict(weight=layer.weight)):
        torch.save(value, file)
        assert torch.equal(read(pth_entries(file)["weight"]), layer.weight)


class Hostile:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], argument: object) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object]]:
        return self.call


def sparse() -> Tensor:
    return torch.eye(3).to_sparse()


@pytest.mark.parametrize(
    ("make", "asked"),
    [
        (lambda mark: Hostile(os.system, f"touch {mark}"), r"posix\.system"),
        (lambda mark: Hostile(eval, f"open({str(mark)!r}, 'w')"), r"__builtin__\.eval"),
        (lambda mark: Hostile(io.FileIO, f"{mark}"), r"_io\.FileIO"),
        (lambda mark: Hostile(bytearray, 1 << 36), r"__builtin__\.bytearray"),  # 64 GiB from a few bytes
        (lambda mark: sparse(), r"torch\._utils\._rebuild_sparse_tensor"),
        (lambda mark: torch.ones(2, device="meta"), r"torch\._utils\._rebuild_meta_tensor_no_storage"),
        (lambda mark: torch.ones(2).to(torch.float8_e4m3fn), r"torch\._utils\._rebuild_tensor_v3"),
        (lambda mark: torch.float32, r"torch\.float32"),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_nothing_but_tensors_is_unpickled(
    tmp_path: Path, make: Callable[[Path], object], asked: str, deep: bool
) -> None:
    mark, file = tmp_path / "ran", tmp_path / "x.pth"
    value = make(mark)
    torch.save({"a.weight": torch.ones(3), "b": [{"c": value}] if deep else value}, file)
    with pytest.raises(DataError, match=rf"x\.pth: holds more than tensors.*it asks for '{asked}'"):
        pth_entries(file)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.ones(2)], "not a dictionary of tensors by name"),
        (torch.ones(2), "not a dictionary of tensors by name"),
        ({"a": 3}, "entry 'a' is not a tensor with a name"),
        ({"a": None}, "entry 'a' is not a tensor with a name"),
        ({"model": {"a": torch.ones(2)}}, "entry 'model' is not a tensor with a name"),
        ({7: torch.ones(2)}, "entry 7 is not a tensor with a name"),
        ({"a\nb": torch.ones(2, dtype=torch.int8)}, r"entry 'a\\nb' is not a tensor with a name"),
        ({"a": torch.ones(2, 3).t()}, r"tensor a is stored with strides \(1, 3\), not row by row"),
        ({"a": torch.ones(1).expand(9)}, r"tensor a is stored with strides \(0,\), not row by row"),
        ({"a": torch.ones(2, dtype=torch.int8)}, "tensor a is torch.int8, a format herd doesn't read"),
    ],
)
def test_other_contents_are_named(tmp_path: Path, value: object, message: str) -> None:
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(DataError, match=rf"x\.pth: {message}"):
        pth_entries(tmp_path / "x.pth")


def test_a_format_that_safetensors_has_and_herd_does_not_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, dtype=torch.int8)}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match=r"tensor 'a' is I8, a format herd doesn't read"):
        safetensors_entries(tmp_path / "x.safetensors")


def rewritten(file: Path, change: Callable[[str, bytes], bytes], *, compression: int = zipfile.ZIP_STORED) -> None:
    """Write the zip again with other bytes in its records."""
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))


def test_a_compressed_zip_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", {"a": torch.ones(100)})
    rewritten(tmp_path / "x.pth", lambda name, content: content, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"record 'x/data\.pkl' is compressed"):
        pth_entries(tmp_path / "x.pth")


def test_a_tensor_beyond_its_record_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", {"a": torch.ones(4), "b": torch.ones(100)})
    rewritten(tmp_path / "x.pth", lambda name, content: content[:-4] if name.endswith("data/0") else content)
    with pytest.raises(DataError, match="tensor a reaches beyond its record"):
        pth_entries(tmp_path / "x.pth")


def test_a_record_that_starts_beyond_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    write(file, {"a": torch.ones(7)})
    content = bytearray(file.read_bytes())
    header = content.index(b"x/data/0") - 30
    assert content[header : header + 4] == b"PK\x03\x04"
    content[header + 28 : header + 30] = b"\xf0\xff"  # the length of what stands between its name and its bytes
    file.write_bytes(content)
    with pytest.raises(DataError, match="tensor a reaches beyond its record"):
        pth_entries(file)


def test_another_byte_order_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", {"a": torch.ones(4)})
    rewritten(tmp_path / "x.pth", lambda name, content: b"big" if name.endswith("byteorder") else content)
    with pytest.raises(DataError, match="other byte order"):
        pth_entries(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "pickled", [b"", b".", b"\x80\x02K\x01\x85R.", b"\x80\x04\x95\x00", b"(dp0\n", b"\x80\x02}(.", b"\xff"]
)
def test_a_broken_pickle_is_told_in_one_line(tmp_path: Path, pickled: bytes) -> None:
    write(tmp_path / "x.pth", {"a": torch.ones(4)})
    rewritten(tmp_path / "x.pth", lambda name, content: pickled if name.endswith(".pkl") else content)
    with pytest.raises(DataError, match=r"x\.pth: not a") as told:
        pth_entries(tmp_path / "x.pth")
    assert "\n" not in str(told.value)


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    for content in (b"", b"PK", b"GGUF" * 100, b"\x80\x02}."):
        file.write_bytes(content)
        with pytest.raises(DataError, match="not a whole checkpoint"):
            pth_entries(file)
        with pytest.raises(DataError, match="not a whole safetensors file"):
            safetensors_entries(file)
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match="not a whole checkpoint"):
        pth_entries(file)
    for reader in READERS.values():
        with pytest.raises(DataError, match="not a whole"):
            reader(tmp_path)
        with pytest.raises(DataError, match="not a whole"):
            reader(tmp_path / "absent")


@pytest.mark.parametrize("suffix", READERS)
def test_a_file_cut_short_anywhere_is_named(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    write(file, drawn())
    whole = file.read_bytes()
    for length in {*range(0, len(whole), 1 + len(whole) // 150), *range(len(whole) - 30, len(whole))}:
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match="not a whole"):
            READERS[suffix](file)


def test_a_file_cut_short_after_it_was_opened_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    write(file, {"a": torch.ones(1000)})
    entry = pth_entries(file)["a"]
    file.write_bytes(file.read_bytes()[: entry.offset + 1000])
    with pytest.raises(DataError, match="cut short, 3000 bytes are missing"):
        read(entry)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the bytes of a small file of each kind."""
    folder, contents = tmp_path_factory.mktemp("fuzz"), {}
    for suffix in READERS:
        write(folder / f"x{suffix}", {"a": torch.arange(12.0).view(3, 4), "b": torch.arange(5.0).bfloat16()})
        contents[suffix] = (folder / f"x{suffix}").read_bytes()
    return contents


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Return the bytes with up to six of them changed."""
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 7)):
        changed[rng.randrange(len(changed))] = rng.choice((0, 255, rng.randrange(256), rng.choice(content)))
    return bytes(changed)


@pytest.mark.parametrize("place", ["zip", "pickle", "safetensors"])
@settings(max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_flipped_bytes_load_or_are_told_in_one_line(
    tmp_path: Path, originals: dict[str, bytes], place: str, seed: int
) -> None:
    rng, suffix = random.Random(seed), ".safetensors" if place == "safetensors" else ".pth"
    file = tmp_path / f"x{suffix}"
    file.write_bytes(originals[suffix] if place == "pickle" else flipped(originals[suffix], rng))
    if place == "pickle":  # with a checksum that is right
        rewritten(file, lambda name, content: flipped(content, rng) if name.endswith(".pkl") else content)
    entries, told = {}, f"{file}: "
    try:
        entries = READERS[suffix](file)
    except HerdError as error:
        told = str(error)
    assert told.startswith(f"{file}: ")
    assert "\n" not in told
    for entry in entries.values():
        assert entry.n_bytes <= file.stat().st_size  # so nothing asks for more memory than the file has bytes
        assert read(entry).shape == entry.shape
