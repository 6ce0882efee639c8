"""Where tensors live and in which number format they are computed."""

import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from herd.base.errors import ConfigError
from herd.runtime.config import RuntimeConfig
from herd.runtime.world import world

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Machine:
    """The device in use and how it is named on a card."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    name: str


def set_up(config: RuntimeConfig) -> Machine:
    """Choose device, dtype and thread count. Raises ConfigError for a device that isn't there."""
    if config.threads:
        torch.set_num_threads(config.threads)
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (found := world()).size > 1:
        name = f"cuda:{found.local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"runtime.device: {name!r} is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device: this PyTorch sees no CUDA device; use device=cpu or install a CUDA build")
    dtype = DTYPES.get(config.dtype) or (torch.bfloat16 if fast_bfloat16(device) else torch.float32)
    return Machine(device, dtype, torch.get_num_threads(), device_name(device))


def fast_bfloat16(device: torch.device) -> bool:
    """Say whether bfloat16 matrix products have instructions of their own on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    flags = _cpu_lines("flags") or _cpu_lines("Features")
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def device_name(device: torch.device) -> str:
    """Return the device's own name, such as a GPU's or a processor's model, with its core count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_lines('model name') or platform.machine()} ({os.cpu_count()} cores)"


def _cpu_lines(key: str) -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return ""
    for line in info.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def peak_memory_bytes() -> int:
    """Return the most resident memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory_bytes(device: torch.device) -> int:
    """Return how much memory could still be taken on this device, by this process's control group where it has one."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if meminfo.exists():
        rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(rows["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, taken = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else max(0, min(free, int(limit) - int(taken)))
    except OSError:
        return free
