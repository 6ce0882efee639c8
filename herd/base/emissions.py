"""Energy and greenhouse-gas arithmetic of a training run, after the method of arXiv:2204.05149.

device-hours x watts x PUE = energy; energy x grid intensity = emissions. There is no table of grid
intensities here: the recipe states them with their source, and what it doesn't state is not measured.
"""

from pydantic import BaseModel, ConfigDict, Field

JOULES_PER_KWH = 3.6e6


class EnergyConfig(BaseModel):
    """What a recipe states about power and grid; None is 'not stated', and the card says 'not measured'."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    watts_per_device: float | None = Field(default=None, gt=0)
    pue: float = Field(default=1.1, ge=1)
    location_g_per_kwh: float | None = Field(default=None, ge=0)
    market_g_per_kwh: float | None = Field(default=None, ge=0)
    certificates: float = Field(default=0.0, ge=0, le=1)
    source: str = ""


def energy_kwh(device_hours: float, *, watts: float, pue: float) -> float:
    """Return the energy in kWh of devices that draw `watts` each, with the data centre's overhead `pue`."""
    return device_hours * watts / 1000 * pue


def measured_kwh(joules: float, *, pue: float) -> float:
    """Return the energy in kWh of a measured number of joules at the devices, with the overhead `pue`."""
    return joules / JOULES_PER_KWH * pue


def location_based_g(kwh: float, *, intensity: float) -> float:
    """Return grams of CO2 equivalent at the local grid's average intensity (gCO2e/kWh)."""
    return kwh * intensity


def market_based_g(kwh: float, *, intensity: float, certificates: float = 0.0) -> float:
    """Return grams of CO2 equivalent at the market's residual intensity (gCO2e/kWh).

    `certificates` is the share of the energy, 0..1, matched by renewable certificates; it counts as zero.
    """
    return kwh * (1 - certificates) * intensity
