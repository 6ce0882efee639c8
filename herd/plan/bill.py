"""What a whole run takes by a plan: days, device-hours, energy, emissions and money. No torch."""

from dataclasses import dataclass

from herd.base.emissions import EnergyConfig, energy_kwh, location_based_g, market_based_g
from herd.plan.estimate import Plan


@dataclass(frozen=True)
class Bill:
    """The sum of a run. Emissions in tonnes of CO2 equivalent; None: no intensity or price was stated."""

    tokens: float
    steps: float
    days: float
    device_hours: float
    energy_kwh: float
    location_t: float | None
    market_t: float | None
    cost: float | None


def bill(plan: Plan, tokens: float, *, energy: EnergyConfig, price: float | None = None, useful: float = 1.0) -> Bill:
    """Add a run of `tokens` up: every card at its full power (or limit) all the time, by the method of card.

    price: of a device-hour. useful: share of the time in which steps are made that count; the rest goes to restarts,
    checkpoints and evaluation (section 3.3.4 reports more than 0.9).
    """
    seconds = tokens / plan.tokens_per_second / useful
    hours = seconds / 3600 * plan.run.parallel.ranks
    kwh = energy_kwh(hours, watts=energy.watts_per_device or plan.card.drawn, pue=energy.pue)
    location = market = None
    if energy.location_g_per_kwh is not None:
        location = location_based_g(kwh, intensity=energy.location_g_per_kwh) / 1e6
    if energy.market_g_per_kwh is not None:
        grams = market_based_g(kwh, intensity=energy.market_g_per_kwh, certificates=energy.certificates)
        market = grams / 1e6
    cost = None if price is None else hours * price
    steps = tokens / (plan.run.rows * plan.run.row_length)
    return Bill(tokens, steps, seconds / 86400, hours, kwh, location, market, cost)
