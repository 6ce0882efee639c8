"""The kernels as a library: compiled on first use by the machine's own compiler for its own processor, and kept.

    src/*.h, herd.cpp --(c++ -O3, instruction set of this processor)--> cache folder/herd-<digest>.so -> ctypes

Without a compiler, or where it fails, `load` returns None and says why once; the engine then runs PyTorch's operators.
HERD_KERNELS=off does without them, HERD_KERNELS=avx512, avx2 or portable chooses the instruction set.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from herd.base.errors import ConfigError

SOURCE = Path(__file__).parent / "src"
# no -ffast-math: sums keep their order, and the same request gives the same bits in any batch
_COMMON = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-Wno-psabi")
_SETS: Mapping[str, tuple[str, ...]] = {
    "avx512": ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"),
    "avx2": ("-march=x86-64-v3",),
    "portable": (),
}
_NEEDS = {
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"},
    "avx2": {"avx2", "fma", "f16c", "bmi2"},
    "portable": set(),
}


class Linear(ctypes.Structure):
    """A packed weight (linear.h)."""

    _fields_ = (
        ("bits", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("data", ctypes.c_void_p),
    )


class Cache(ctypes.Structure):
    """Keys and values (attention.h)."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("half", "blocks", "block_size", "heads", "head_size", "padded")),
    )


class Shape(ctypes.Structure):
    """The model's proportions (pass.h)."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dim", "layers", "heads", "kv_heads", "head_size", "hidden", "vocab")),
        ("eps", ctypes.c_float),
        ("threads", ctypes.c_int32),
    )


class Layer(ctypes.Structure):
    """The weights of one layer (pass.h)."""

    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("ffn_norm", ctypes.c_void_p),
        ("qkv", Linear),
        ("out", Linear),
        ("gate_up", Linear),
        ("down", Linear),
    )


class Model(ctypes.Structure):
    """All weights (pass.h)."""

    _fields_ = (
        ("shape", Shape),
        ("layers", ctypes.POINTER(Layer)),
        ("norm", ctypes.c_void_p),
        ("head", Linear),
        ("embedding", ctypes.c_void_p),
        ("embedding_half", ctypes.c_int32),
    )


class Pass(ctypes.Structure):
    """One pass over new tokens (pass.h)."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "rows", "wanted")),
        *((name, ctypes.c_void_p) for name in ("ids", "starts", "counts", "scored", "tables", "table_at")),
        ("cache", Cache),
        *((name, ctypes.c_void_p) for name in ("cos", "sin", "states", "logits")),
    )


def instruction_set() -> str | None:
    """Return the best one of this processor, or what HERD_KERNELS asks for; None: no kernels.

    Raises ConfigError on another value, or one that this processor lacks.
    """
    asked, has = os.environ.get("HERD_KERNELS", ""), _processor_flags()
    if asked == "off":
        return None
    if asked and asked not in _SETS:
        raise ConfigError(f"HERD_KERNELS={asked}: not one of off, {', '.join(_SETS)}")
    if asked and not _NEEDS[asked] <= has:
        raise ConfigError(f"HERD_KERNELS={asked}: this processor lacks {', '.join(sorted(_NEEDS[asked] - has))}")
    return asked or next(name for name, needs in _NEEDS.items() if needs <= has)


def load() -> ctypes.CDLL | None:
    """Return the library for this processor, compiled if it isn't yet; None without kernels."""
    chosen = instruction_set()
    return None if chosen is None else _load(chosen)


@cache
def _load(chosen: str) -> ctypes.CDLL | None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return _without("there is no C++ compiler; install g++ or clang++ for several times the speed")
    try:
        library = ctypes.CDLL(str(_compiled(compiler, chosen)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return _without(f"{compiler} failed: {said.strip().splitlines()[-1] if said.strip() else error}")
    library.herd_open.argtypes, library.herd_open.restype = [ctypes.POINTER(Model)], ctypes.c_void_p
    library.herd_close.argtypes, library.herd_close.restype = [ctypes.c_void_p], None
    library.herd_run.argtypes, library.herd_run.restype = [ctypes.c_void_p, ctypes.POINTER(Pass)], None
    library.herd_head.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    library.herd_head.restype = None
    return library


def _without(reason: str) -> None:
    sys.stderr.write(f"herd: without its own kernels, on PyTorch's: {reason}\n")


def _compiled(compiler: str, chosen: str) -> Path:
    """Return the library's file. Raises OSError or SubprocessError."""
    flags = [*_COMMON, *_SETS[chosen]]
    if chosen == "portable" and platform.machine() in ("aarch64", "arm64"):
        flags.append("-mcpu=native")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    threads = _thread_library()
    digest = hashlib.sha256("\0".join([version, *flags, str(threads)]).encode())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    target = _folder() / f"herd-{digest.hexdigest()[:20]}.so"
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made, whole = Path(scratch) / "herd.o", Path(scratch) / "herd.so"
        # compiled and linked apart, as -fopenmp while linking would bring a second library of threads beside PyTorch's,
        # whose idle threads would keep ours from the processor
        steps = [
            [compiler, *flags, "-fopenmp", "-c", str(SOURCE / "herd.cpp"), "-o", str(made)],
            [compiler, "-shared", str(made), *([str(threads)] if threads else ["-fopenmp"]), "-o", str(whole)],
        ]
        for step in steps:
            subprocess.run(step, capture_output=True, text=True, check=True, timeout=600)
        os.replace(whole, target)
    return target


def _folder() -> Path:
    """Return the folder of compiled libraries: this user's own, as whoever writes there can run code."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "herd" / "kernels"
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = base.stat()
        if found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(base, os.W_OK):
            return base
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="herd-kernels-"))


def _thread_library() -> Path | None:
    """Return the OpenMP library that PyTorch brought and uses."""
    return next(iter(sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))), None)


def _processor_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in text.splitlines() if line.startswith("flags")), set())
