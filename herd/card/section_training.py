"""Training on the card: the stages with their losses, the curves, the energy and emissions table."""

from collections.abc import Sequence

from herd.base.emissions import EnergyConfig, energy_kwh, location_based_g, market_based_g, measured_kwh
from herd.base.goodput import attempts
from herd.base.ledger import Record
from herd.card.book import BASE, RECIPE, Book, look_up, model_label
from herd.card.document import Block, Cell, Chart, Prose, Section, Table, escape
from herd.card.figures import Figure
from herd.card.plots import line_chart
from herd.card.section_models import total
from herd.card.section_watch import watched

_STAGES = (
    "Step", "Model", "Optimizer steps", "Tokens", "Tokens a batch", "Peak learning rate",
    "First loss", "Last loss", "Tokens/s", "Time",
)  # fmt: skip
_ENERGY = (
    "Models", "Device-hours", "Power per device", "Energy, estimated", "Energy, measured",
    "Measured / estimated", "Location-based emissions", "Market-based emissions", "Basis",
)  # fmt: skip
_TEACHER = "the teacher's log-probabilities, for all siblings"
_REST = "curation, tokenizer, evaluation"
_OLD = "earlier versions of steps, since replaced"


def training(book: Book) -> Section:
    """Return the stages in the order they ran, and their loss curves."""
    rows = [_stage_row(book, record) for record in book.training()]
    blocks: list[Block] = [
        Prose(
            "Base models: pretraining, then longer rows (long context), then annealing on a better mixture "
            "with the learning rate falling to zero. Siblings: distilled from the flagship's top-k "
            "log-probabilities together with next-token loss; 'alone' is the same sibling on the same "
            "tokens without a teacher. "
            + _cut(book)
            + "Alignment: supervised fine-tuning (sft) on assistant tokens, then "
            "direct preference optimisation (dpo). Losses of different objectives are not comparable with "
            "each other."
        ),
        Table("Stages", _STAGES, tuple(rows)),
        *watched(book),
        *(_curves(book)),
    ]
    return Section("training", "Training", tuple(blocks))


def _cut(book: Book) -> str:
    """Say which siblings don't start from random weights."""
    names = [
        escape(record.step.split("/")[1])
        for record in book.training()
        if record.step.startswith("distil/") and record.facts.get("init") == "pruned"
    ]
    if not names:
        return ""
    return (
        f"Cut from the flagship (width and depth pruned) before they are distilled: {', '.join(names)}; their controls "
        "start from random weights, so the difference between the two is that of both together. "
    )


def _stage_row(book: Book, record: Record) -> tuple[Cell, ...]:
    model = record.facts.get("model")
    return (
        record.step,
        model_label(str(model)) if model else "",
        book.figure(record, "facts", "steps", unit="count"),
        book.figure(record, "facts", "tokens", unit="amount"),
        book.figure(record, "facts", "batch_tokens", unit="count"),
        book.figure(record, "facts", "learning_rate"),
        book.figure(record, "facts", "loss_first", unit="loss"),
        book.figure(record, "facts", "loss_last", unit="loss"),
        book.figure(record, "cost", "tokens_per_s", unit="count"),
        total([*book.ends_before(record), record], "cost", "seconds", unit="seconds"),
    )


def _curves(book: Book) -> list[Chart]:
    groups: dict[str, dict[str, str]] = {}
    for step in book.curves:
        head, _, name = step.partition("/")
        if head in ("pretrain", "long-context", "anneal"):
            groups.setdefault("Loss of the flagship's base stages", {})[step] = step
        elif head in ("distil", "alone"):
            label = "distilled" if head == "distil" else "alone"
            groups.setdefault(f"Loss of the sibling {name}", {})[step] = label
        else:
            groups.setdefault("Loss of alignment and guard", {})[step] = step
    charts = []
    for name, steps in groups.items():
        sources = tuple(book.stages[step].id for step in steps if step in book.stages)
        chart = line_chart(name, {label: book.curves[step] for step, label in steps.items()}, sources=sources)
        charts += [chart] if chart else []
    return charts


def energy(book: Book) -> Section:
    """Return device-hours, energy and emissions for each model, everything else, and the whole."""
    config = energy_config(book)
    found = groups(book)
    rows = [_energy_row(label, records, config) for label, records in found.items() if records]
    rows.append(_energy_row("Total", [r for records in found.values() for r in records], config))
    return Section(
        "energy",
        "Training energy use and greenhouse-gas emissions",
        (_method(book, config), Table("Energy and emissions", _ENERGY, tuple(rows))),
    )


def energy_config(book: Book) -> EnergyConfig:
    """Return the recipe's `energy` section; nothing stated when it has none."""
    return EnergyConfig.model_validate(book.recipe.get("energy") or {})


def _method(book: Book, config: EnergyConfig) -> Prose:
    source = escape(config.source) or "the recipe names no source"
    text = (
        "Device-hours × power per device × PUE gives energy; energy × grid intensity gives emissions "
        "(method: arXiv:2204.05149). PUE {pue}; grid intensity, location-based {location} gCO2e/kWh, "
        "market-based {market} gCO2e/kWh"
        + (", {certificates} of the energy matched by renewable certificates" if config.certificates else "")
        + f". Source of these: {source.rstrip('.')}.\n\n"
        "'Estimated' takes the power stated for the device, as if it drew that all the time; 'measured' "
        "takes joules read from the machine and is used for the emissions wherever all steps of a row have "
        "it. Attempts that failed or were killed are included (see [Goodput](#goodput)). Making the machine is not, "
        "nor is writing this card."
    )
    figures = {
        "pue": Figure(config.pue, sources=(RECIPE,), path=("energy", "pue")),
        "location": Figure(config.location_g_per_kwh, sources=(RECIPE,), path=("energy", "location_g_per_kwh")),
        "market": Figure(config.market_g_per_kwh, sources=(RECIPE,), path=("energy", "market_g_per_kwh")),
    }
    if config.certificates:
        figures["certificates"] = Figure(
            config.certificates, "share", sources=(RECIPE,), path=("energy", "certificates")
        )
    return Prose(text, figures)


def groups(book: Book) -> dict[str, list[Record]]:
    """Return row label -> records of attempts, so that each stands in exactly one row."""
    groups: dict[str, list[Record]] = {"flagship": []}
    for name in book.siblings():
        groups[f"{name} (distilled, aligned)"] = []
        groups[f"{name}, alone (the control)"] = []
    groups |= {_TEACHER: [], "guard": [], _REST: [], _OLD: []}
    old = {r.id for r in book.replaced}
    for records, _ in attempts(book.records):
        record = records[-1]
        head, _, name = record.step.partition("/")
        label = f"{name} (distilled, aligned)" if head in ("distil", "sft", "dpo") else _REST
        if head in BASE or (head in ("sft", "dpo") and name == "flagship"):
            label = "flagship"
        elif head == "alone":
            label = f"{name}, alone (the control)"
        elif record.step in ("teacher", "guard"):
            label = _TEACHER if head == "teacher" else head
        groups.setdefault(_OLD if record.id in old else label, []).extend(records)
    return groups


def _energy_row(label: str, records: Sequence[Record], config: EnergyConfig) -> tuple[Cell, ...]:
    """Sum a row. Energy is 'not measured' as soon as one record with device-hours lacks a stated power."""
    costed = [r for r in records if _number(r, "device_hours")]
    sources = tuple(r.id for r in costed)
    hours = total(costed, "cost", "device_hours", unit="hours")
    watts = [_number(r, "watts_per_device") or config.watts_per_device for r in costed]
    joules = [_number(r, "joules_measured") for r in costed]
    estimate = Figure(None, "kWh", note="no power per device is stated")
    power = Figure(None, "W", note="no power per device is stated")
    if costed and all(watts):
        drawn = [
            energy_kwh(_number(r, "device_hours") or 0.0, watts=w or 0.0, pue=1.0)
            for r, w in zip(costed, watts, strict=True)
        ]
        estimate = Figure(sum(drawn) * config.pue, "kWh", sources=sources, how="device-hours × power per device × PUE")
        power = Figure(
            1000 * sum(drawn) / float(hours.value or 1),
            "W",
            sources=_power_sources(costed),
            how="mean over device-hours",
        )
    measured = Figure(None, "kWh", note="not every step of the row has an energy reading")
    if costed and all(j is not None for j in joules):
        value = measured_kwh(sum(j or 0.0 for j in joules), pue=config.pue)
        measured = Figure(value, "kWh", sources=sources, how="joules measured × PUE")
    ratio = Figure(None, "ratio")
    if isinstance(measured.value, float) and isinstance(estimate.value, float) and estimate.value:
        ratio = Figure(measured.value / estimate.value, "ratio", sources=sources, how="measured / estimated energy")
    basis = measured if measured.value is not None else estimate
    return (
        label,
        hours,
        power,
        estimate,
        measured,
        ratio,
        *_emissions(basis, config),
        _basis(measured, estimate),
    )


def _emissions(energy_used: Figure, config: EnergyConfig) -> tuple[Figure, Figure]:
    kwh, sources = energy_used.value, (*energy_used.sources, RECIPE)
    location = Figure(None, "gCO2e", note=energy_used.note or "the recipe states no location-based grid intensity")
    market = Figure(None, "gCO2e", note=energy_used.note or "the recipe states no market-based grid intensity")
    if isinstance(kwh, float) and config.location_g_per_kwh is not None:
        grams = location_based_g(kwh, intensity=config.location_g_per_kwh)
        location = Figure(grams, "gCO2e", sources=sources, how="energy × location-based intensity")
    if isinstance(kwh, float) and config.market_g_per_kwh is not None:
        grams = market_based_g(kwh, intensity=config.market_g_per_kwh, certificates=config.certificates)
        market = Figure(grams, "gCO2e", sources=sources, how="energy without certificates × market-based intensity")
    return location, market


def _basis(measured: Figure, estimate: Figure) -> str:
    if measured.value is not None:
        return "measured"
    return "estimated" if estimate.value is not None else "not measured"


def _power_sources(records: Sequence[Record]) -> tuple[str, ...]:
    own = tuple(r.id for r in records if _number(r, "watts_per_device"))
    return own if len(own) == len(records) else (*own, RECIPE)


def _number(record: Record, key: str) -> float | None:
    value = look_up(record, ("cost", key))
    return float(value) if isinstance(value, (int, float)) else None
