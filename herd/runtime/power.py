"""Energy that the machine itself reports: NVML for NVIDIA cards, RAPL for processors; None where neither is there."""

from collections.abc import Callable
from pathlib import Path

import torch

_RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules used since construction, and by what they were measured."""

    def __init__(self, device: torch.device) -> None:
        self.source, self._read = _reader(device)
        self._last = self._read() if self._read else None
        self._total = 0.0

    def joules(self) -> float | None:
        """Return joules since the start, or None where nothing measures them."""
        if self._read is None or self._last is None:
            return None
        now = self._read()
        if now is None:
            return None
        # a counter that wrapped gives a negative difference: that interval is lost, not invented
        self._total += max(0.0, now - self._last)
        self._last = now
        return self._total


def _reader(device: torch.device) -> tuple[str | None, Callable[[], float] | None]:
    if device.type == "cuda":
        try:
            import pynvml  # ty: ignore[import-not-found]

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except Exception:  # no driver, no library, or a card that doesn't report: then it is not measured
            return None, None
        return "NVML", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    zones = [zone for zone in _RAPL.glob("intel-rapl:?") if _joules(zone) is not None]
    if not zones:
        return None, None
    return "RAPL", lambda: sum(_joules(zone) or 0.0 for zone in zones)


def _joules(zone: Path) -> float | None:
    try:
        return int((zone / "energy_uj").read_text()) / 1e6
    except (OSError, ValueError):
        return None
