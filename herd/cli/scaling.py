"""`herd scaling`: what a compute budget is best spent on, and the score it will buy, from small runs."""

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from herd.plan.scaling import Forecast, Law, Trial


def scaling(
    runs: Annotated[
        Path, typer.Argument(help="CSV or JSONL of runs: parameters, tokens, loss, and compute, nll, score if known.")
    ],
    compute: Annotated[float, typer.Option(help="The budget to forecast, in training FLOPs.")] = 3.8e25,
    chance: Annotated[
        float | None, typer.Option(help="The score of guessing; fitted unless given.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the fits here: .html, .svg or .png.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit scaling laws to small runs: compute to size and tokens, to loss, to score (section 3.2.1 of the paper)."""
    from herd.base.errors import ConfigError
    from herd.plan.scaling import fit, forecast, read_trials

    if not 0 < compute < 1e40:
        raise ConfigError(f"--compute {compute} is no number of FLOPs")
    trials = read_trials(runs)
    law, ahead = fit(trials, chance=chance), forecast(trials, compute, chance=chance)
    if as_json:
        print(json.dumps({"law": asdict(law), "forecast": asdict(ahead)}, indent=2))
    else:
        _print(law, ahead)
    if plot is not None:
        _draw(trials, law, plot)


def _print(law: "Law", ahead: "Forecast") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("compute", "runs", "best tokens", "best size", "loss"):
        table.add_column(name, justify="right")
    for best in law.best:
        cells = (f"{best.compute:.3g}", str(best.trials), _amount(best.tokens), _amount(best.parameters))
        table.add_row(*cells, f"{best.loss:.4f}")
    console.print(table)
    console.print(f"\nbest tokens = {law.power.scale:.4g} x compute^{law.power.exponent:.4f}")
    if law.line:
        console.print(f"nll = {law.line[0]:.4f} {law.line[1]:+.4f} x log10 compute")
    if law.sigmoid:
        low, high, slope, middle = (getattr(law.sigmoid, name) for name in ("low", "high", "slope", "middle"))
        console.print(f"score = {low:.3f} + {high - low:.3f} / (1 + exp({slope:.3f} x (nll - {middle:.4f})))")
    console.print(f"\nat {ahead.compute:.3g} FLOPs (errors: bootstrap)")
    console.print(f"  {_amount(*ahead.parameters)} parameters")
    console.print(f"  {_amount(*ahead.tokens)} tokens")
    for name, pair in (("nll", ahead.nll), ("score", ahead.score)):
        console.print(f"  {name} {pair[0]:.4f} ± {pair[1]:.4f}" if pair else f"  {name} not in the runs")


def _amount(value: float, error: float | None = None) -> str:
    scale, unit = next(((s, u) for s, u in ((1e12, " T"), (1e9, " B"), (1e6, " M")) if value >= s), (1.0, ""))
    return f"{value / scale:.3g}{'' if error is None else f' ± {error / scale:.2g}'}{unit}"


def _draw(trials: "list[Trial]", law: "Law", path: Path) -> None:
    """Draw loss over tokens for each budget with its lowest point, and score over loss where there is one."""
    from herd.base.errors import ConfigError

    try:
        alt: Any = import_module("altair")
    except ModuleNotFoundError:
        raise ConfigError("--plot needs the `report` extra: pip install 'herd[report]'") from None
    if path.suffix not in (".html", ".svg", ".png"):
        raise ConfigError(f"--plot {path}: end it in .html, .svg or .png")
    rows = [{"tokens": t.tokens, "loss": t.loss, "compute": f"{t.compute:.1e}"} for t in trials]
    lows = [{"tokens": b.tokens, "loss": b.loss, "compute": f"{b.compute:.1e}"} for b in law.best]
    order = [row["compute"] for row in sorted(rows, key=lambda row: float(row["compute"]))]
    encoded: dict[str, Any] = {
        "x": alt.X("tokens:Q", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s", tickCount=5), title="tokens"),
        "y": alt.Y("loss:Q", scale=alt.Scale(zero=False), title="loss"),
        "color": alt.Color("compute:N", sort=list(dict.fromkeys(order)), title="FLOPs"),
    }
    chart: Any = alt.layer(
        alt.Chart(alt.Data(values=rows)).mark_line(point=True).encode(**encoded),
        alt.Chart(alt.Data(values=lows))
        .mark_point(shape="diamond", size=120, filled=True, color="black")
        .encode(x=encoded["x"], y=encoded["y"]),
    ).properties(width=360, height=260)
    if law.sigmoid is not None:
        chart = alt.hconcat(chart, _score_chart(alt, trials, law))
    chart.save(str(path))


def _score_chart(alt: Any, trials: "list[Trial]", law: "Law") -> Any:
    import numpy as np

    assert law.sigmoid is not None
    known = [(t.nll, t.score) for t in trials if t.nll is not None and t.score is not None]
    points = [{"nll": nll, "score": score} for nll, score in known]
    xs = np.linspace(min(nll for nll, _ in known) * 0.9, max(nll for nll, _ in known), 100)
    curve = [{"nll": float(x), "score": float(law.sigmoid(x))} for x in xs]
    axes = {
        "x": alt.X("nll:Q", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6), title="nll a character"),
        "y": alt.Y("score:Q", scale=alt.Scale(zero=False), title="score"),
    }
    return alt.layer(
        alt.Chart(alt.Data(values=points)).mark_point().encode(**axes),
        alt.Chart(alt.Data(values=curve)).mark_line().encode(**axes),
    ).properties(width=360, height=260)
