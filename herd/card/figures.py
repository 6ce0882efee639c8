"""A figure with the ledger record it came from, and how figures are written out."""

import math
from dataclasses import dataclass

NOT_MEASURED = "not measured"
_PREFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"))
_SCALED = {
    "kWh": ((1e6, "GWh"), (1e3, "MWh"), (1.0, "kWh"), (1e-3, "Wh")),
    "gCO2e": ((1e6, "t"), (1e3, "kg"), (1.0, "g")),
    "bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "seconds": ((3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")),
}


@dataclass(frozen=True)
class Figure:
    """One figure of a card. `value` None is 'not measured', and `note` says why.

    unit     decides how it is written: 'share' (0..1, as %), 'difference' (of shares, in signed points),
             'count', 'amount' (1.84 M), 'bytes', 'kWh', 'gCO2e', 'hours', 'seconds', 'W', 'ratio', 'bits',
             'loss', 'fertility', 'signed', 'deviations' (signed, one decimal), 'number', 'text'
    sources  ids of the records it came from ('recipe' for the recipe); empty for none
    path     keys from the one record to the value; empty when derived, and then `how` says from what
    """

    value: float | str | None
    unit: str = "number"
    stderr: float | None = None
    sources: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    how: str = ""
    note: str = ""

    def __str__(self) -> str:
        return write(self)


def write(figure: Figure) -> str:
    """Write a figure without its source, such as '81.3 % ± 3.9' or 'not measured'."""
    if figure.value is None or (isinstance(figure.value, float) and not math.isfinite(figure.value)):
        return NOT_MEASURED
    if isinstance(figure.value, bool):
        return "yes" if figure.value else "no"
    if isinstance(figure.value, str) or figure.unit == "text":
        return str(figure.value)
    text = _write_value(float(figure.value), figure.unit)
    if figure.stderr is None:
        return text
    return f"{text} ± {_write_error(figure.stderr, figure.unit)}"


def _write_value(value: float, unit: str) -> str:
    match unit:
        case "share":
            return f"{100 * value:.1f} %"
        case "difference":
            return f"{100 * value:+.1f} points".replace("-", "−")
        case "deviations":
            return f"{value:+.1f}".replace("-", "−")
        case "signed":
            return f"{value:+.3f}".replace("-", "−")
        case "count":
            return f"{value:,.0f}"
        case "amount":
            scale, name = next(((s, n) for s, n in _PREFIXES if abs(value) >= s), (1.0, ""))
            return f"{_digits(value / scale)} {name}" if name else f"{value:,.0f}"
        case "ratio":
            return f"{_digits(value)}×"
        case "W":
            return f"{_digits(value)} W"
        case "bits" | "loss":
            return f"{value:.3f}"
        case "hours" | "fertility":
            return _digits(value)
        case _ if unit in _SCALED:
            return _write_scaled(value, unit)
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _write_scaled(value: float, unit: str) -> str:
    steps = _SCALED[unit]
    scale, name = next(((s, n) for s, n in steps if abs(value) >= s), steps[-1])
    if value == 0:
        scale, name = next((s, n) for s, n in steps if s == 1.0)
    return f"{_digits(value / scale)} {name}"


def _write_error(error: float, unit: str) -> str:
    if unit in ("share", "difference"):
        return f"{100 * error:.1f}"
    return f"{error:.3f}" if unit in ("bits", "loss", "signed") else _digits(error, 2)


def _digits(value: float, digits: int = 3) -> str:
    """Write with so many significant digits, never fewer than the integer part has."""
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    if places <= 0:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if places > 7 else f"{value:,.{places}f}"
