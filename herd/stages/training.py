"""What every training stage shares: one call of the loop with its checkpoints, metrics, account and model folder."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.base.errors import ConfigError
from herd.base.files import hash_tree, read_jsonl
from herd.base.seeds import named_seed
from herd.model.config import ModelConfig
from herd.model.hf import write_hf
from herd.model.source import WeightsSource
from herd.model.transformer import Transformer
from herd.model.weights import load_model
from herd.runtime.device import peak_memory_bytes
from herd.runtime.power import EnergyMeter
from herd.stages.export import write_hf_files
from herd.stages.gate import Gate
from herd.stages.models import find_model, refuse_quantised
from herd.stages.recipe import Recipe
from herd.stages.step import Context, Outcome
from herd.stages.watch import watch_of
from herd.train.checkpoint import Checkpoints
from herd.train.config import OptimConfig, WatchConfig
from herd.train.feed import Feed
from herd.train.hooks import Metrics, Saver, reporter
from herd.train.loop import State, fit
from herd.train.objective import Objective
from herd.train.optim import Optimizer


@dataclass(frozen=True)
class Plan:
    """How long and how: `steps` updates of `accumulate` micro-batches; `about` goes into the ledger's facts."""

    objective: Objective
    feed: Feed
    optim: OptimConfig
    steps: int
    accumulate: int = 1
    about: Mapping[str, Any] | None = None
    watch: WatchConfig | None = None
    chat: bool = False  # whether tasks that are watched are asked as dialogs
    gate: Gate | None = None  # measures when `steps` are made, and may ask for as many again


def fresh_model(context: Context, config: ModelConfig, name: str) -> Transformer:
    """Build a model with weights drawn from the recipe's seed and the model's name."""
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(named_seed(context.recipe.seed, f"weights/{name}")))
    return model.to(context.machine.device)


def trained_model(context: Context, name: str, *, config: ModelConfig | None = None) -> Transformer:
    """Load a model folder of the run in float32; `config` replaces its shape where only positions differ."""
    refuse_quantised(context.run / name)
    model = load_model(context.run / name, device=context.machine.device)
    if config is None or config == model.config:
        return model
    longer = Transformer(config).to(context.machine.device)
    longer.load_state_dict(model.state_dict())
    return longer


def imported_model(context: Context, config: ModelConfig) -> Transformer:
    """Load the model that the recipe's flagship starts from, in float32. Raises ConfigError when ids don't fit it."""
    assert context.recipe.flagship_path is not None
    model = load_model(find_model(Path(context.recipe.flagship_path)), device=context.machine.device)
    if context.tokenizer.n_vocab != config.vocab_size:
        raise ConfigError(
            f"flagship {context.recipe.flagship_path}: its embedding has {config.vocab_size} rows and the tokenizer "
            f"{context.tokenizer.n_vocab} ids; leave out tokenizer.path to take the model's own"
        )
    return model


def started_from(recipe: Recipe) -> str:
    """Return what the flagship's first weights were: a path and the hash of what lies there."""
    folder = find_model(Path(str(recipe.flagship_path)))
    return f"{folder.name} (SHA-256 {hash_tree(folder)})"


def passed_on(context: Context, model: Transformer, *, output: str, about: Mapping[str, Any]) -> Outcome:
    """Write a model folder without training: the stage's recipe has 0 tokens."""
    save(context, dict(model.named_parameters()), model.config, output)
    return Outcome(model_facts(model.config, output) | {"steps": 0, "tokens": 0} | dict(about), (output,))


def train(context: Context, key: str, model: Transformer, plan: Plan, *, output: str) -> Outcome:
    """Run the loop for ledger step `key`, resuming from its newest checkpoint, and write the folder `output`."""
    machine, recipe = context.machine, context.recipe
    energy = EnergyMeter(machine.device)
    optimizer = Optimizer(model.named_parameters(), plan.optim, steps=plan.steps, dtype=machine.dtype)
    started = next(r for r in reversed(context.run.ledger.records) if r.kind == "start" and r.step == key)
    checkpoints = Checkpoints(context.run / f"checkpoints/{key.replace('/', '-')}", owner=started.fingerprint)
    state = None
    if newest := checkpoints.latest():
        state, place = checkpoints.restore(newest, optimizer)
        plan.feed.restore(place)
        context.progress.note(f"{key}: going on from step {state.step} of {plan.steps}")
    else:
        torch.manual_seed(named_seed(recipe.seed, f"torch/{key}"))
    curve = f"metrics/{key.replace('/', '-')}.jsonl"
    metrics = Metrics(context.run / curve, from_step=state.step if state else 0)
    saver = Saver(checkpoints, optimizer, plan.feed, metrics, seconds=recipe.checkpoint_seconds, steps=plan.steps)
    watch = watch_of(context, key, model, plan.watch, steps=plan.steps, chat=plan.chat)
    measuring = [part for part in (watch, plan.gate) if part is not None]
    began = state.step if state else 0
    for part in measuring:
        part.begin(began)

    def on_to(goal: int, state: State | None) -> State:
        # what is watched is written before a checkpoint says that its step is done
        hooks = (metrics, *((watch,) if watch else ()), saver, reporter(context.progress, goal))
        run = (model, plan.objective, plan.feed, optimizer)
        return fit(*run, steps=goal, hooks=hooks, state=state, accumulate=plan.accumulate)

    final = on_to(plan.gate.goal(began) if plan.gate else plan.steps, state)
    while plan.gate and (more := plan.gate(final)):
        final = on_to(final.step + more, final)
    metrics.flush()
    save(context, optimizer.weights(), model.config, output)
    checkpoints.clear()
    facts = model_facts(model.config, output) | {
        "steps": final.step,
        "tokens": final.tokens,
        "loss_first": first_figure(context.run / curve, "loss"),
        "loss_last": mean_of_last(context.run / curve, "loss", final.step),
        "learning_rate": plan.optim.learning_rate,
        "curve": curve,
        **({"watch": watch.facts()} if watch else {}),
        **({"gate": plan.gate.facts()} if plan.gate else {}),
        **(plan.about or {}),
    }
    joules = energy.joules()
    cost = {
        "seconds": round(final.seconds, 3),
        "device_hours": round(final.seconds / 3600, 7),
        "device": machine.name,
        "dtype": str(machine.dtype).removeprefix("torch."),
        "threads": machine.threads,
        "peak_memory_bytes": peak_memory_bytes(),
        "tokens_per_s": round(final.tokens / final.seconds, 1),
        "eval_seconds": round(sum(part.seconds for part in measuring), 3),
        "joules_measured": None if joules is None else round(joules, 1),
    }
    return Outcome(facts, (output,), cost)


def save(context: Context, weights: Mapping[str, Tensor], config: ModelConfig, output: str) -> None:
    """Write a complete model folder, tokenizer included; models that were taught dialogs get the chat template too."""
    folder = context.run / output
    write_hf(WeightsSource(weights, config), folder, dtype=torch.float32)
    chat = output.endswith(("/sft", "/instruct")) or output == "guard"
    write_hf_files(folder, config, context.codec, dtype=torch.float32, chat=chat)


def model_facts(config: ModelConfig, output: str) -> dict[str, Any]:
    """Return what the card says of a model's shape."""
    return {
        "model": output,
        "parameters": config.parameters(),
        "context_length": config.max_positions,
        "config": config.model_dump(),
    }


def first_figure(path: Path, name: str) -> float:
    """Return a figure of the first line of a metrics file."""
    with path.open(encoding="utf-8") as file:
        return json.loads(file.readline())[name]


def mean_of_last(path: Path, name: str, steps: int, share: float = 0.05) -> float:
    """Return the mean of a figure over the last `share` of a metrics file's steps."""
    values = [row[name] for row in read_jsonl(path)]
    last = values[-max(1, math.ceil(steps * share)) :]
    return round(sum(last) / len(last), 6)
