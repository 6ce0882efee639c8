"""Drawings as Vega-Lite specifications: plain data here, rendered to SVG by the HTML writer.

Most colours are stand-ins that the HTML writer turns into variables of the page's style sheet, so that one
drawing serves light, dark and paper.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from herd.card.document import Chart, escape
from herd.card.figures import Figure, write

POINTS = 240
WIDTH = 400  # a phone shows this without shrinking the letters much
SPARKS = "▁▂▃▄▅▆▇█"
# Stand-ins: real colours that nothing else in a drawing uses, so that they can be found again in the SVG.
INK, FAINT, CHANCE = "#010203", "#040506", "#070809"
SERIES = tuple(f"#a0b0{i:02d}" for i in range(10, 18))
COLD, HOT = (226, 232, 240), (22, 78, 140)


def line_chart(
    title: str,
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    sources: tuple[str, ...] = (),
    axes: tuple[str, str] = ("tokens in this stage", "loss"),
    caption: str = "Loss against tokens seen in the stage; each point is the mean over its stretch of steps.",
) -> Chart | None:
    """Draw what rows hold as "loss" against their tokens, one line a curve. None when no curve has two points."""
    points, plain = [], []
    for name, rows in curves.items():
        line = _line(rows)
        if len(line) < 2:
            continue
        points += [{"curve": name, "tokens": x, "loss": y} for x, y in line]
        plain.append(f"`{_sparkline([y for _, y in line])}` {escape(name)}")
    if not points:
        return None
    names = list(dict.fromkeys(p["curve"] for p in points))
    spec = _spec(
        points,
        mark={"type": "line", "strokeWidth": 1.75, "interpolate": "linear"},
        encoding={
            "x": {
                "field": "tokens",
                "type": "quantitative",
                "title": axes[0],
                "axis": {"format": "~s", "tickCount": 6},
            },
            "y": {"field": "loss", "type": "quantitative", "scale": {"zero": False}, "title": axes[1]},
            "color": _colour("curve", names),
        },
    )
    return Chart(title, spec, caption, sources, "; ".join(plain), tuple(names))


def score_chart(
    title: str,
    scores: Mapping[tuple[str, str], Figure],
    *,
    chance: Mapping[str, Any] | None = None,
    axis: str = "score (%)",
    percent: bool = True,
) -> Chart | None:
    """Draw a dot with its standard error for each (row, model); a tick marks chance. None without values."""
    rows = _score_rows(scores, percent=percent)
    if not rows:
        return None
    names = list(dict.fromkeys(row["model"] for row in rows))
    order = list(dict.fromkeys(row["row"] for row in rows))
    # Letters are wider in some readers' fonts than in the renderer's: leave room for the widest names.
    room = 6 * max(len(name) for name in order) + 8
    y: dict[str, Any] = {"field": "row", "type": "nominal", "sort": order, "title": None}
    y |= {"axis": {"labelLimit": 240, "tickBand": "extent", "minExtent": room}}
    position = {"y": y, "yOffset": {"field": "model", "sort": names}, "color": _colour("model", names)}
    low: dict[str, Any] = {"field": "low", "type": "quantitative", "title": axis}
    low |= {"scale": {"domain": [0, 100]} if percent else {"zero": False}}
    value = {"field": "value", "type": "quantitative"}
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {**position, "x": low, "x2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 42, "opacity": 1},
            "encoding": {**position, "x": value},
        },
    ]
    known = {row: c for row, c in (chance or {}).items() if isinstance(c, (int, float)) and row in order}
    if known:
        mark = {"type": "tick", "color": CHANCE, "thickness": 2, "height": {"band": 0.9}}
        ticks = [{"row": row, "chance": 100 * c} for row, c in known.items()]
        x = {"field": "chance", "type": "quantitative"}
        layers.append({"data": {"values": ticks}, "mark": mark, "encoding": {"y": y, "x": x}})
    step = {"step": max(9, 6 + 20 // len(names)), "for": "offset"}
    spec = _spec(rows, layer=layers) | {"height": step, "width": WIDTH - room // 2}
    caption = "Dots are scores, bars one standard error each way" + (", grey ticks chance." if known else ".")
    sources = tuple(dict.fromkeys(s for f in scores.values() if f.value is not None for s in f.sources))
    return Chart(title, spec, caption, sources, legend=tuple(names))


def _score_rows(scores: Mapping[tuple[str, str], Figure], *, percent: bool) -> list[dict[str, Any]]:
    factor, rows = (100 if percent else 1), []
    for (row, model), figure in scores.items():
        if isinstance(figure.value, (int, float)):
            error = figure.stderr or 0.0
            low, high = factor * (figure.value - error), factor * (figure.value + error)
            if percent:
                low, high = max(low, 0), min(high, 100)
            value = factor * figure.value
            rows.append({"row": row, "model": model, "value": value, "low": low, "high": high})
    return rows


def heat_chart(
    title: str,
    cells: Mapping[tuple[str, str], Figure],
    *,
    lengths: Sequence[str],
    depths: Sequence[str],
    unit: str = "characters",
) -> Chart | None:
    """Draw shares in 0..1 as a grid of length by depth, each cell with its figure. None without values."""
    rows = [
        {
            "length": a, "depth": b, "text": write(Figure(f.value, "share")), "fill": _shade(f.value),
            "ink": "#ffffff" if f.value > 0.65 else "#17202a",
        }
        for (a, b), f in cells.items()
        if isinstance(f.value, (int, float))
    ]  # fmt: skip
    if not rows:
        return None
    encoding = {
        "x": {
            "field": "length",
            "type": "ordinal",
            "sort": list(lengths),
            "title": f"length in {unit}",
            "axis": {"labelAngle": 0},
        },
        "y": {"field": "depth", "type": "ordinal", "sort": list(depths), "title": "depth of the needle"}
        | {"axis": {"minExtent": 34}},
    }
    fill = {"field": "fill", "type": "nominal", "scale": None}
    ink = {"field": "ink", "type": "nominal", "scale": None}
    layers = [
        {"mark": {"type": "rect"}, "encoding": {**encoding, "color": fill}},
        {
            "mark": {"type": "text", "fontSize": 11},
            "encoding": {**encoding, "text": {"field": "text", "type": "nominal"}, "color": ink},
        },
    ]
    spec = _spec(rows, layer=layers) | {"height": {"step": 34}}
    sources = tuple(dict.fromkeys(s for f in cells.values() for s in f.sources))
    return Chart(title, spec, "Share of needles found, by length of the text and depth in it.", sources)


def tradeoff_chart(title: str, points: Mapping[str, tuple[Figure, Figure]]) -> Chart | None:
    """Draw violation rate against false-refusal rate, one dot a model. None with fewer than two dots."""
    rows, sources = [], []
    for model, (violation, refusal) in points.items():
        if isinstance(violation.value, (int, float)) and isinstance(refusal.value, (int, float)):
            rows.append({"model": model, "x": 100 * refusal.value, "y": 100 * violation.value})
            sources += [*violation.sources, *refusal.sources]
    if len(rows) < 2:
        return None
    top = {axis: max(10.0, 1.15 * max(r[axis] for r in rows)) for axis in "xy"}
    encoding = {
        "x": {
            "field": "x",
            "type": "quantitative",
            "title": "false-refusal rate (%)",
            "scale": {"domain": [0, top["x"]]},
        },
        "y": {
            "field": "y",
            "type": "quantitative",
            "title": "violation rate (%)",
            "scale": {"domain": [0, top["y"]]},
        },
        "color": _colour("model", [r["model"] for r in rows]),
    }
    mark = {"type": "point", "filled": True, "size": 90, "opacity": 1}
    spec = _spec(rows, mark=mark, encoding=encoding)
    caption = "Lower left is better on both counts."
    names = tuple(str(r["model"]) for r in rows)
    return Chart(title, spec, caption, tuple(dict.fromkeys(sources)), legend=names)


def _spec(values: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    axis = {
        "labelColor": INK, "titleColor": INK, "domainColor": FAINT, "tickColor": FAINT, "gridColor": FAINT,
        "gridOpacity": 0.5, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal",
    }  # fmt: skip
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": WIDTH,
        "height": 220,
        "background": None,
        "data": {"values": values},
        "config": {
            "font": "sans-serif", "view": {"stroke": None}, "axis": axis,
            "legend": {"disable": True},
        },
        **parts,
    }  # fmt: skip


def _colour(field: str, names: list[str]) -> dict[str, Any]:
    colours = [SERIES[i % len(SERIES)] for i in range(len(names))]
    return {"field": field, "type": "nominal", "scale": {"domain": names, "range": colours}}


def _shade(value: float) -> str:
    share = min(max(value, 0.0), 1.0)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(COLD, HOT, strict=True))


def _line(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return (tokens, loss) pairs, thinned to at most POINTS by averaging equal stretches."""
    key = "tokens" if rows and "tokens" in rows[0] else "step"
    pairs = [(float(r[key]), float(r["loss"])) for r in rows if _finite(r.get(key)) and _finite(r.get("loss"))]
    stretch = max(1, math.ceil(len(pairs) / POINTS))
    groups = [pairs[i : i + stretch] for i in range(0, len(pairs), stretch)]
    return [(g[-1][0], round(sum(y for _, y in g) / len(g), 5)) for g in groups]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _sparkline(values: Sequence[float], width: int = 24) -> str:
    stretch = max(1, math.ceil(len(values) / width))
    means = [sum(values[i : i + stretch]) / len(values[i : i + stretch]) for i in range(0, len(values), stretch)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(SPARKS[round((v - low) / span * (len(SPARKS) - 1))] for v in means)
