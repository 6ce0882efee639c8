"""Facts about accelerators, from their makers' data sheets: what a plan divides by.

Rates are without sparsity. Memory is what the driver reports, which is less than the name says. `attention` is the
share of the bf16 peak that PyTorch's fused attention reaches: FlashAttention-2's paper (arXiv:2307.08691) has about
0.55 on A100, FlashAttention-3's (arXiv:2407.08608) 0.35 for the same kernel on H100; others have one of these two.
"""

from dataclasses import dataclass, replace

from herd.base.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True)
class Card:
    """One accelerator: FLOP/s, bytes, bytes/s (links in one direction), watts; `machine`: cards that share a link."""

    name: str
    bf16: float
    float8: float | None
    memory: float
    bandwidth: float
    watts: float
    link: float
    network: float
    attention: float
    machine: int = 8
    limit: float | None = None

    @property
    def clock(self) -> float:
        """Share of the sustained rate that is left under a power limit: its square root.

        Power goes with the cube of the clock while the voltage follows it, and with the clock itself once the voltage
        is at its floor; an exponent of 1/2 lies between 1/3 and 1. An assumption, not a measurement.
        """
        return 1.0 if self.limit is None else min(1.0, self.limit / self.watts) ** 0.5

    @property
    def drawn(self) -> float:
        """Watts that a plan counts: the limit where there is one."""
        return min(self.watts, self.limit or self.watts)


def _gbit(gigabits: float) -> float:
    return gigabits * 1e9 / 8


_HOPPER = Card(
    "H100 SXM",
    bf16=989.4e12,
    float8=1978.9e12,
    memory=79.6 * GIB,
    bandwidth=3.35e12,
    watts=700,
    link=450e9,
    network=_gbit(400),
    attention=0.35,
)
CARDS = {
    "h100": _HOPPER,
    "h200": replace(_HOPPER, name="H200 SXM", memory=140.4 * GIB, bandwidth=4.8e12),
    "a100": Card("A100 SXM 80 GB", 311.8e12, None, 79.2 * GIB, 2.039e12, 400, 300e9, _gbit(200), 0.55),
    "b200": Card("B200 SXM", 2250e12, 4500e12, 179.0 * GIB, 8.0e12, 1000, 900e9, _gbit(400), 0.35),
    "mi300x": Card("MI300X", 1307.4e12, 2614.9e12, 191.9 * GIB, 5.3e12, 750, 448e9, _gbit(400), 0.35),
    "l40s": Card("L40S", 362.05e12, 733e12, 44.9 * GIB, 0.864e12, 350, 31.5e9, _gbit(200), 0.55),
}


def card(name: str, *, watts: float | None = None, gigabits: float | None = None) -> Card:
    """Return a card by name, under a power limit or with another network (Gb/s a card). Raises ConfigError."""
    found = CARDS.get(name.lower())
    if found is None:
        raise ConfigError(f"no facts about a card {name!r}; there are {', '.join(CARDS)}")
    if watts is not None and not 0 < watts <= found.watts:
        raise ConfigError(f"{found.name}: a power limit of {watts:g} W is not within its {found.watts:g} W")
    return replace(found, limit=watts, network=_gbit(gigabits) if gigabits else found.network)


def card_of(device: str) -> Card | None:
    """Return the card that a device's own name means, such as 'NVIDIA H100 80GB HBM3'; None for one without facts."""
    words = set(device.lower().replace("-", " ").split())
    if words & {"pcie", "nvl", "40gb"}:  # other memory, clocks and links under the same name
        return None
    return next((found for name, found in CARDS.items() if name in words), None)
