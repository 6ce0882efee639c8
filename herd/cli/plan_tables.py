"""How `herd plan` shows a plan: tables that fit 80 columns, and the same as plain data."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from herd.plan.cards import GIB
from herd.plan.communication import Traffic
from herd.plan.estimate import Plan
from herd.plan.memory import memory
from herd.plan.published import CALIBRATED, Row, hours, rows
from herd.plan.roofline import product_flops
from herd.plan.search import Question, Refused

if TYPE_CHECKING:
    from herd.plan.bill import Bill

_SHOWN = 15  # meshes of a search
_AXES = {"tp": "tensor", "cp": "context", "dp_shard": "shards", "dp_replicate": "replicas", "pp": "pipeline"}


def print_plan(model: str, plan: Plan, why: str, bill: "Bill | None") -> None:
    """Print a plan, section by section."""
    console = Console(highlight=False, markup=False)
    run, config = plan.run, plan.run.config
    console.print(Text(f"{model} on {run.parallel.ranks:,} x {plan.card.name}", "bold"))
    length = run.row_length
    facts = [
        ("parameters", f"{config.parameters():,}"),
        (
            "FLOPs a token",
            " · ".join(
                (
                    f"{_digits(config.flops_per_token(length) / 1e9)} G causal",
                    f"{_digits(config.flops_per_token(length, causal=False) / 1e9)} G with all of attention (12·L·d·s)",
                )
            ),
        ),
        ("step", f"{run.rows:,} rows of {length:,} = {run.rows * length:,} tokens"),
        ("mesh", f"{run.parallel.describe()}: {why}"),
        ("each rank", _does(plan)),
    ]
    _facts(console, facts)
    of_rank = f", pipeline rank {plan.memory.rank}" if run.parallel.pp > 1 else ""
    _section(console, f"Memory of the fullest rank{of_rank}", _memory(plan))
    if plan.traffic:
        _section(console, "Communication of the slowest rank, a step", _traffic(plan))
    _section(console, "A step on the slowest rank", _seconds(plan))
    _facts(console, _speed(plan))
    if bill is not None:
        console.print(Text("\nThe whole run", "bold"))
        _facts(console, _billed(plan, bill))


def _does(plan: Plan) -> str:
    run, parallel = plan.run, plan.run.parallel
    rows = f"{run.micro_rows} row{'s' if run.micro_rows > 1 else ''}"
    parts = [f"{run.micro_batches:,} micro-batches of {rows}", f"recompute {parallel.recompute}"]
    if parallel.pp > 1:
        parts.insert(0, parallel.schedule)
    return ", ".join([*parts, *(name for name in ("compile", "float8", "offload") if getattr(parallel, name))])


def _memory(plan: Plan) -> Table:
    memory, room = plan.memory, plan.card.memory
    table = _table()
    table.add_column("part")
    table.add_column("GiB", justify="right")
    table.add_column("share", justify="right")
    for name, value in memory.parts.items():
        if value:
            table.add_row(name, f"{value / GIB:,.2f}", f"{100 * value / memory.total:.0f} %")
    style = "bold" if plan.fits else "bold red"
    table.add_section()
    table.add_row("all", f"{memory.total / GIB:,.2f}", f"of {room / GIB:.1f} GiB", style=style)
    return table


def _traffic(plan: Plan) -> Table:
    table = _table()
    for name in ("axis", "what", "link"):
        table.add_column(name)
    for name in ("GB sent", "seconds", "exposed"):
        table.add_column(name, justify="right")
    shown: set[str] = set()
    for each in plan.traffic:
        seen = "" if each.axis in shown else f"{plan.exposed.get(each.axis, 0.0):.3f}"
        shown.add(each.axis)
        table.add_row(each.axis, each.what, each.link, f"{each.total / 1e9:,.1f}", f"{each.seconds:.3f}", seen)
    return table


def _seconds(plan: Plan) -> Table:
    table = _table()
    table.add_column("part")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, value in plan.seconds.items():
        table.add_row(name, f"{value:.3f}", f"{100 * value / plan.step_seconds:.1f} %")
    table.add_section()
    table.add_row("all", f"{plan.step_seconds:.3f}", "", style="bold")
    return table


def _speed(plan: Plan) -> list[tuple[str, str]]:
    rates = [f"{plan.flops_per_card(causal=causal) / 1e12:.0f}" for causal in (True, False)]
    shares = [f"{100 * plan.mfu(causal=causal):.1f} %" for causal in (True, False)]
    facts = [
        ("tokens/s", f"{plan.tokens_per_second:,.0f}, {_digits(plan.tokens_per_card)} a card"),
        ("model FLOP/s", f"{rates[0]} T a card causal · {rates[1]} T with all of attention"),
        (
            "MFU",
            f"{shares[0]} causal · {shares[1]} with all of attention (of {plan.card.bf16 / 1e12:,.1f} TFLOP/s)",
        ),
    ]
    if plan.run.parallel.pp > 1:
        facts.append(("bubble", f"{100 * plan.bubble:.1f} % of the time in which the pipeline works"))
    return facts


def _billed(plan: Plan, bill: "Bill") -> list[tuple[str, str]]:
    def stated(value: float | None, unit: str) -> str:
        return "not stated" if value is None else f"{_digits(value)} {unit}"

    return [
        ("tokens", f"{_digits(bill.tokens / 1e12)} T in {bill.steps:,.0f} steps"),
        ("time", f"{bill.days:,.1f} days, {_digits(bill.device_hours / 1e6)} M device-hours"),
        ("energy", f"{_digits(bill.energy_kwh / 1e3)} MWh at {plan.card.drawn:g} W a card"),
        (
            "emissions",
            f"location-based {stated(bill.location_t, 'tCO2e')} · market-based {stated(bill.market_t, 'tCO2e')}",
        ),
        ("cost", "no price stated" if bill.cost is None else f"{bill.cost:,.0f}"),
    ]


def print_simulation(plan: Plan) -> None:
    """Trace the fullest rank and print what it held and did, beside the closed form of the same: nothing compiled."""
    from herd.plan.simulate import simulate

    console, rank = Console(highlight=False, markup=False), plan.memory.rank
    parallel = plan.run.parallel.model_copy(update={"compile": False, "float8": False})
    run = replace(plan.run, parallel=parallel)
    console.print(Text(f"\nTraced without memory: pipeline rank {rank}, nothing compiled", "bold"))
    with console.status("a minute or so"):
        traced = simulate(run, rank)
    closed = memory(run, rank)
    pairs = {name: (closed.parts[name], traced.parts[name]) for name in ("masters", "moments", "gathered weights")}
    # a gradient on its way from one format to another is nobody's by name
    mine, found = (sum(side) for side in zip(*pairs.values(), strict=True))
    pairs["gradients, activations, work"] = closed.allocated - mine, traced.peak - found
    table = _table()
    table.add_column("GiB")
    for name in ("closed form", "traced", "difference"):
        table.add_column(name, justify="right")
    for name, (mine, found) in (pairs | {"all tensors": (closed.allocated, traced.peak)}).items():
        difference = _error(mine, found) if found > GIB / 100 else ""
        table.add_row(name, f"{mine / GIB:,.2f}", f"{found / GIB:,.2f}", difference)
    console.print(table)
    once = product_flops(run, rank)
    found = traced.product_flops / traced.micro_batches
    _facts(
        console,
        [
            ("products", f"{once / 1e12:,.2f} TFLOP a micro-batch, traced {found / 1e12:,.2f}"),
            (
                "sent",
                " · ".join(f"{name} {size / 1e9:,.2f} GB" for name, (_, size) in traced.sent.items() if size > 1e6),
            ),
            ("", f"of {traced.micro_batches} micro-batches, whole buffers; a ring sends (n - 1) / n of them"),
        ],
    )


def as_dict(model: str, plan: Plan, bill: "Bill | None") -> dict[str, Any]:
    """Return a plan as plain data: bytes, seconds, tokens/s, shares."""
    run = plan.run
    return {
        "model": model,
        "parameters": run.config.parameters(),
        "flops_per_token": {
            "causal": run.config.flops_per_token(run.row_length),
            "whole": run.config.flops_per_token(run.row_length, causal=False),
        },
        "card": plan.card.name,
        "parallel": run.parallel.model_dump(),
        "row_length": run.row_length,
        "batch_tokens": run.batch_tokens,
        "micro_rows": run.micro_rows,
        "micro_batches": run.micro_batches,
        "fits": plan.fits,
        "memory": {"rank": plan.memory.rank, "bytes": dict(plan.memory.parts), "card": plan.card.memory},
        "traffic": [_traffic_dict(each) for each in plan.traffic],
        "seconds": dict(plan.seconds),
        "step_seconds": plan.step_seconds,
        "tokens_per_second": plan.tokens_per_second,
        "bubble": plan.bubble,
        "mfu": {"causal": plan.mfu(causal=True), "whole": plan.mfu(causal=False)},
        "bill": None if bill is None else vars(bill),
    }


def _traffic_dict(each: Traffic) -> dict[str, Any]:
    return {"axis": each.axis, "what": each.what, "link": each.link, "bytes": each.total, "seconds": each.seconds}


def print_search(model: str, question: Question, plans: list[Plan], refused: list[Refused]) -> None:
    """Print the meshes that fit, fastest first, and what is amiss with the others."""
    console = Console(highlight=False, markup=False)
    card = question.card
    console.print(Text(f"{model} on {question.ranks:,} x {card.name}, {card.memory / GIB:.1f} GiB each", "bold"))
    table = _table()
    for name in ("pp", "repl.", "shard", "cp", "tp"):
        table.add_column(name, justify="right")
    for name in ("schedule", "recompute"):
        table.add_column(name)
    for name in ("micro", "GiB", "step s", "MFU"):
        table.add_column(name, justify="right")
    for plan in plans[:_SHOWN]:
        run, parallel = plan.run, plan.run.parallel
        sizes = (str(size) for size in parallel.sizes)
        schedule = parallel.schedule.removesuffix("ZeroBubble").removesuffix("1F1B") or "1F1B"
        micro = f"{run.micro_batches}x{run.micro_rows}"
        figures = (f"{plan.memory.total / GIB:.1f}", f"{plan.step_seconds:.2f}", f"{100 * plan.mfu(causal=True):.1f}")
        table.add_row(*sizes, schedule if parallel.pp > 1 else "", parallel.recompute, micro, *figures)
    if plans:
        title = f"{len(plans)} meshes fit" + (f"; the fastest {_SHOWN}" if len(plans) > _SHOWN else "")
        _section(console, title, table)
    console.print("MFU in %, attention counted causal. micro: micro-batches x rows.", style="dim")
    if refused:
        title = f"{len(refused)} meshes don't" + (f"; the nearest {_SHOWN}" if len(refused) > _SHOWN else "")
        _section(console, title, _refused(refused))


def _refused(refused: list[Refused]) -> Table:
    table = _table()
    table.add_column("mesh", no_wrap=True)
    table.add_column("recompute")
    table.add_column("why")
    for each in refused[:_SHOWN]:
        table.add_row(each.run.parallel.describe(), each.run.parallel.recompute, each.why)
    return table


def print_check() -> None:
    """Print published runs beside their plans: tables on a terminal, Markdown when piped."""
    console = Console(highlight=False, markup=False)
    for title, header, body in check_tables():
        if not console.is_terminal:
            print("\n".join([f"\n**{title}**\n", *markdown(header, body)]))
            continue
        table = _table()
        for number, name in enumerate(header):
            table.add_column(name, justify="right" if number else "left")
        for row in body:
            table.add_row(*row)
        _section(console, title, table)


def markdown(header: tuple[str, ...], body: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (header, ("--",) * len(header), *body)]


_Cells = tuple[str, ...]


def check_tables() -> list[tuple[str, _Cells, list[_Cells]]]:
    """Return (title, header, rows) of each comparison."""
    speed: list[_Cells] = []
    paper: list[_Cells] = []
    memory: list[_Cells] = []
    for row in rows():
        if row.tflops:
            paper.append(_paper_row(row))
        if row.tokens:
            mark = " (calibrated on)" if row.name == CALIBRATED else ""
            predicted = row.plan.tokens_per_card
            cells = (_digits(row.tokens), _digits(predicted), _error(predicted, row.tokens))
            speed.append((f"{row.name}{mark}", *cells, row.source.removeprefix("torchtitan").strip(" ,")))
        if row.memory:
            predicted = row.plan.memory.reserved / GIB
            memory.append((row.name, f"{row.memory:.1f}", f"{predicted:.1f}", _error(predicted, row.memory)))
    spent: list[_Cells] = []
    for each in hours():
        figures = f"{each.reported / 1e6:.2f}", f"{each.predicted / 1e6:.2f}", _error(each.predicted, each.reported)
        spent.append((f"{each.name}, {each.tokens / 1e12:g} T tokens", *figures))
    ours = ("run", "published", "plan", "error")
    both = ("run", "published", "plan, causal", "error", "plan, whole", "error")
    return [
        ("TFLOP/s a card: Llama 3 paper, table 4, H100", both, paper),
        ("tokens/s a card: torchtitan, H100 96 GB at 500 W, and A100", (*ours, "when"), speed),
        ("GiB reserved: torchtitan", ours, memory),
        ("M GPU-hours: model card, H100; every step of the plan counts", ("model", *ours[1:]), spent),
    ]


def _paper_row(row: Row) -> tuple[str, ...]:
    assert row.tflops is not None
    cells = [row.name, f"{row.tflops:.0f}"]
    for causal in (True, False):
        value = row.plan.flops_per_card(causal=causal) / 1e12
        cells += [f"{value:.0f}", _error(value, row.tflops)]
    return tuple(cells)


def _error(predicted: float, published: float) -> str:
    return f"{100 * (predicted / published - 1):+.1f} %".replace("-", "−")


def _digits(value: float) -> str:
    """Write with three significant digits or all of the integer part."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style="dim")


def _section(console: Console, title: str, table: Table) -> None:
    console.print(Text(f"\n{title}", "bold"))
    console.print(table)


def _facts(console: Console, facts: list[tuple[str, str]]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in facts:
        table.add_row(name, text)
    console.print(table)
