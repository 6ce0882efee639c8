"""`herd plan`: what a training run would need and take, before it is made."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from herd.model.config import ModelConfig
    from herd.plan.bill import Bill
    from herd.plan.estimate import Plan
    from herd.plan.search import Question, Refused

_MESH, _RUN, _BILL = "The mesh; what isn't given is searched for", "What each card does", "The bill"
_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def _of(panel: str | None, text: str, *names: str, least: float | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, min=least, show_default=False)


def plan(
    model: Annotated[
        str | None,
        typer.Argument(help="A published shape such as llama3.1-405b, a recipe (its flagship), or a model folder."),
    ] = None,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100, b200, mi300x or l40s.")] = "h100",
    gpus: Annotated[int, typer.Option(help="How many of them.", min=1)] = 8,
    seq: Annotated[str | None, _of(None, "Tokens of a row; K is 1,024.")] = None,
    batch: Annotated[str | None, _of(None, "Tokens of a step; M is 1,048,576, as in the paper's 16M.")] = None,
    tp: Annotated[int | None, _of(_MESH, "Tensor parallel ranks.", least=1)] = None,
    pp: Annotated[int | None, _of(_MESH, "Pipeline ranks.", least=1)] = None,
    cp: Annotated[int | None, _of(_MESH, "Context parallel ranks.", least=1)] = None,
    dp_shard: Annotated[int | None, _of(_MESH, "Ranks that share weights out (FSDP).", least=1)] = None,
    dp_replicate: Annotated[int | None, _of(_MESH, "Copies of these.", least=1)] = None,
    schedule: Annotated[str | None, _of(_MESH, "1F1B, Interleaved1F1B or ZBVZeroBubble.")] = None,
    micro_rows: Annotated[int | None, _of(_MESH, "Rows of a micro-batch on a data rank.", least=1)] = None,
    recompute: Annotated[str | None, _of(_MESH, "none, selective or full.")] = None,
    compiled: Annotated[bool, typer.Option("--compile/--eager", help="Compiled?", rich_help_panel=_RUN)] = True,
    float8: Annotated[bool, _of(_RUN, "Matrix products in float8.", "--float8")] = False,
    offload: Annotated[bool, _of(_RUN, "Shards wait in the host's memory.", "--offload")] = False,
    trainer: Annotated[str, typer.Option(help="herd, paper or torchtitan.", rich_help_panel=_RUN)] = "herd",
    watts: Annotated[float | None, _of(_RUN, "A power limit of each card.")] = None,
    network: Annotated[float | None, _of(_RUN, "Gb/s of network for each card.", least=1)] = None,
    tokens: Annotated[str | None, _of(_BILL, "Tokens of the whole run, such as 15.6T.")] = None,
    useful: Annotated[float, typer.Option(help="Share of time that counts.", rich_help_panel=_BILL)] = 1.0,
    price: Annotated[float | None, _of(_BILL, "Price of a device-hour.", least=0)] = None,
    pue: Annotated[float, typer.Option(help="The data centre's overhead.", rich_help_panel=_BILL)] = 1.1,
    location: Annotated[float | None, _of(_BILL, "gCO2e/kWh of the grid there.", least=0)] = None,
    market: Annotated[float | None, _of(_BILL, "gCO2e/kWh of what is bought.", least=0)] = None,
    search: Annotated[bool, typer.Option("--search", help="Rank all meshes, and say why others don't fit.")] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Trace the fullest rank's step without memory beside the closed form.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Published runs beside what plans say of them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan a training run before it is made: memory, communication, step time, days, energy, emissions, cost.

    herd plan llama3.1-405b --gpus 16384 --seq 8192 --batch 16M --tokens 15.6T
    """
    from herd.base.config import validate
    from herd.base.emissions import EnergyConfig
    from herd.base.errors import ConfigError
    from herd.cli import plan_tables
    from herd.plan.search import alternative
    from herd.plan.search import search as find

    if check:
        plan_tables.print_check()
        return
    if model is None:
        raise ConfigError("say which MODEL to plan: a published shape such as llama3.1-405b, a recipe, a model folder")
    axes = {"tp": tp, "pp": pp, "cp": cp, "dp_shard": dp_shard, "dp_replicate": dp_replicate}
    fixed = axes | {"schedule": schedule, "recompute": recompute, "micro_rows": micro_rows}
    each = {"compile": compiled, "float8": float8, "offload": offload}
    config, usual = _resolve(model)
    question = _question(
        config,
        _card(gpu, watts, network),
        gpus,
        (_binary(seq, "--seq") or usual["seq"], _binary(batch, "--batch") or usual["batch"]),
        each=each,
        fixed={name: value for name, value in fixed.items() if value is not None},
        trainer=trainer,
    )
    plans, refused = find(question)
    if search:
        plan_tables.print_search(model, question, plans, refused)
        return
    energy = {"pue": pue, "location_g_per_kwh": location, "market_g_per_kwh": market}
    chosen, why = _chosen(question, plans, refused)
    summed = _bill(chosen, tokens, validate(EnergyConfig, energy, where="plan"), price, useful)
    if as_json:
        print(json.dumps(plan_tables.as_dict(model, chosen, summed), indent=2))
    else:
        plan_tables.print_plan(model, chosen, why, summed)
        if simulate:
            plan_tables.print_simulation(chosen)
    if not chosen.fits:
        missing = chosen.memory.total - chosen.card.memory
        raise ConfigError(
            f"{chosen.run.parallel.describe()}: {missing / (1 << 30):,.1f} GiB too much for a {chosen.card.name}; "
            f"{alternative(question, chosen.run)}"
        )


def _question(
    config: "ModelConfig",
    card: Any,
    ranks: int,
    batch: tuple[int, int],
    *,
    each: dict[str, bool],
    fixed: dict[str, Any],
    trainer: str,
) -> "Question":
    from herd.base.config import validate
    from herd.base.errors import ConfigError
    from herd.parallel.config import ParallelConfig
    from herd.plan.run import TRAINERS
    from herd.plan.search import Question

    if trainer not in TRAINERS:
        raise ConfigError(f"--trainer {trainer!r} is not one of {', '.join(TRAINERS)}")
    if each["float8"] and card.float8 is None:
        raise ConfigError(f"{card.name} has no float8 products; leave --float8 out")
    settled = each | {name: value for name, value in fixed.items() if name != "micro_rows"}
    validate(ParallelConfig, settled, where="plan")
    base = validate(ParallelConfig, each, where="plan")
    return Question(config, card, ranks, *batch, base=base, fixed=fixed, trainer=TRAINERS[trainer])


def _chosen(question: "Question", plans: "list[Plan]", refused: "list[Refused]") -> "tuple[Plan, str]":
    """Return the fastest plan, or the nearest to fitting, and why it is that one."""
    from math import isfinite

    from herd.base.errors import ConfigError
    from herd.plan.estimate import Plan
    from herd.plan.search import nearest

    if plans:
        count = f"the fastest of {len(plans)} meshes that fit" if len(plans) > 1 else "the only mesh that fits"
        return plans[0], count
    if not refused or not isfinite(refused[0].missing):
        raise ConfigError(f"{question.ranks:,} x {question.card.name}: {nearest(refused)}")
    return Plan(refused[0].run, question.card), "it doesn't fit"


def _resolve(model: str) -> "tuple[ModelConfig, dict[str, int]]":
    """Return the shape that MODEL means, and the row length and batch that are usual for it. Raises HerdError."""
    from herd.base.errors import ConfigError
    from herd.model.published import PUBLISHED, published
    from herd.stages.recipe import RECIPES, load_recipe

    if Path(model).is_dir():
        from herd.model.weights import load_config
        from herd.stages.models import find_model

        config = load_config(find_model(Path(model)))
        return config, _usual(config)
    if model.endswith((".yaml", ".yml")) or (RECIPES / f"{model}.yaml").is_file():
        recipe = load_recipe(model)
        config = recipe.model_config_of("flagship", vocab_size=recipe.tokenizer.vocab_size, stages=0)
        return config, {"seq": recipe.pretrain.context, "batch": recipe.pretrain.batch_tokens}
    try:
        config = published(model)
    except ConfigError:
        recipes = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        raise ConfigError(
            f"MODEL {model!r} is no published shape ({', '.join(PUBLISHED)}), no recipe ({recipes}) and no folder"
        ) from None
    return config, _usual(config)


def _usual(config: "ModelConfig") -> dict[str, int]:
    seq = min(8192, config.max_positions)
    return {"seq": seq, "batch": seq * ((1 << 22) // seq)}


def _card(name: str, watts: float | None, network: float | None) -> Any:
    from herd.plan.cards import card

    return card(name, watts=watts, gigabits=network)


def _bill(plan: "Plan", tokens: str | None, energy: Any, price: float | None, useful: float) -> "Bill | None":
    from herd.base.errors import ConfigError
    from herd.plan.bill import bill

    if not 0 < useful <= 1:
        raise ConfigError(f"--useful {useful} is a share between 0 and 1")
    if tokens is None:
        return None
    return bill(plan, _amount(tokens, "--tokens", _UNITS), energy=energy, price=price, useful=useful)


def _binary(text: str | None, option: str) -> int | None:
    """Return a number of tokens of a row or step; K and M count in steps of 1,024."""
    from herd.base.errors import ConfigError

    if text is None:
        return None
    value = _amount(text, option, {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30})
    if value != int(value):
        raise ConfigError(f"{option} {text!r} is no whole number of tokens")
    return int(value)


def _amount(text: str, option: str, units: dict[str, Any]) -> float:
    from herd.base.errors import ConfigError

    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        value = float(digits.replace(",", "").replace("_", "")) * (units[unit] if unit else 1)
    except (ValueError, KeyError):
        raise ConfigError(
            f"{option} {text!r} is not a number such as 8192 or 16M (units: {', '.join(units)})"
        ) from None
    if not 1 <= value < 1e18:
        raise ConfigError(f"{option} {text!r} must be at least 1 and below 1e18")
    return value
