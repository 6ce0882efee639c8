"""What every training stage shares: one call of the loop with its checkpoints, metrics, account and model folder."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.base.errors import ConfigError
from herd.base.files import hash_tree, read_jsonl
from herd.base.seeds import named_seed
from herd.model.config import ModelConfig
from herd.model.fresh import FreshWeights
from herd.model.hf import write_hf
from herd.model.source import Source, WeightsSource
from herd.model.transformer import Transformer
from herd.model.weights import load_model, open_source
from herd.parallel.config import ParallelConfig
from herd.parallel.weights import Gathered
from herd.parallel.worker import Worker, hold, spread
from herd.runtime.allocator import keep_freed_memory
from herd.runtime.device import peak_memory_bytes
from herd.runtime.power import EnergyMeter
from herd.runtime.process import grouped, leads
from herd.runtime.world import world
from herd.stages.export import write_hf_files
from herd.stages.gate import Gate
from herd.stages.look import Look
from herd.stages.models import find_model, refuse_quantised
from herd.stages.recipe import Recipe
from herd.stages.step import Context, Outcome
from herd.stages.watch import watch_of
from herd.train.batch import Part
from herd.train.checkpoint import Checkpoints
from herd.train.config import OptimConfig, WatchConfig
from herd.train.durable import Durable
from herd.train.feed import Feed
from herd.train.hooks import Metrics, reporter
from herd.train.loop import Accumulate, State, micro_batches
from herd.train.objective import Objective
from herd.train.optim import Optimizer, own_norm
from herd.train.prefetch import Prefetched


@dataclass(frozen=True)
class Plan:
    """How long and how: `steps` updates of `accumulate` micro-batches; `about` goes into the ledger's facts.

    mesh: what the model lies on; `part` and `one_shape` follow from it, for the feed. watch: what is measured now and
    then; `chat`: whether its tasks are asked as dialogs. gate: builds, given a whole model, what measures when `steps`
    are made and may ask for more.
    """

    objective: Objective
    feed: Feed
    optim: OptimConfig
    steps: int
    mesh: ParallelConfig
    accumulate: Accumulate = 1
    about: Mapping[str, Any] | None = None
    watch: WatchConfig | None = None
    chat: bool = False
    gate: Callable[[Transformer], Gate] | None = None


def part_of(mesh: ParallelConfig) -> Part:
    """Return which rows of every batch are this process's."""
    place = mesh.place(world().rank)
    return Part(place["dp_replicate"] * mesh.dp_shard + place["dp_shard"], mesh.data)


def fresh_weights(context: Context, config: ModelConfig, name: str) -> Source:
    """Return weights drawn from the recipe's seed and the model's name."""
    return FreshWeights(config, named_seed(context.recipe.seed, f"weights/{name}"))


def trained_weights(context: Context, name: str, *, config: ModelConfig | None = None) -> Source:
    """Open a model folder of the run; `config` replaces its shape where only positions differ."""
    refuse_quantised(context.run / name)
    source = open_source(context.run / name)
    if config is not None:
        source.config = config
    return source


def trained_model(context: Context, name: str) -> Transformer:
    """Load a model folder of the run in float32, whole."""
    refuse_quantised(context.run / name)
    return load_model(context.run / name, device=context.machine.device)


def imported_weights(context: Context, config: ModelConfig) -> Source:
    """Open the model that the recipe's flagship starts from. Raises ConfigError when ids don't fit it."""
    assert context.recipe.flagship_path is not None
    source = open_source(find_model(Path(context.recipe.flagship_path)))
    if context.tokenizer.n_vocab != config.vocab_size:
        raise ConfigError(
            f"flagship {context.recipe.flagship_path}: its embedding has {config.vocab_size} rows and the tokenizer "
            f"{context.tokenizer.n_vocab} ids; leave out tokenizer.path to take the model's own"
        )
    return source


def started_from(recipe: Recipe) -> str:
    """Return what the flagship's first weights were: a path and the hash of what lies there."""
    folder = find_model(Path(str(recipe.flagship_path)))
    return f"{folder.name} (SHA-256 {hash_tree(folder)})"


def passed_on(context: Context, start: Source, *, output: str, about: Mapping[str, Any]) -> Outcome:
    """Write a model folder without training: the stage's recipe has 0 tokens."""
    if leads():
        save(context, start, output)
    return Outcome(model_facts(start.config, output) | {"steps": 0, "tokens": 0} | dict(about), (output,))


def laid_out(context: Context, start: Source, mesh: ParallelConfig) -> Worker:
    """Return this process's part of a model with a source's weights, in float32."""
    machine = context.machine
    if grouped():
        return spread(start, mesh, device=machine.device, dtype=machine.dtype)
    return hold(start, mesh, device=machine.device)


def train(context: Context, key: str, start: Source, plan: Plan, *, output: str) -> Outcome:
    """Run the loop for ledger step `key`, resuming from its newest checkpoint, and write the folder `output`.

    Every process of the run comes here together; the first one writes.
    """
    machine, recipe, config = context.machine, context.recipe, start.config
    if machine.device.type == "cpu":
        keep_freed_memory()
    energy = EnergyMeter(machine.device)
    attempt = context.attempts.current
    assert attempt is not None, "a stage trains within an attempt"
    if world().local_rank == 0 or energy.source == "NVML":  # a processor's counter is that of the machine
        attempt.heart.joules = energy.joules
    else:
        attempt.heart.joules = lambda: 0.0
    worker = laid_out(context, start, plan.mesh)
    optimizer = Optimizer(
        worker.named_parameters(),
        plan.optim,
        steps=plan.steps,
        dtype=machine.dtype,
        norm=worker.mesh.norm if worker.mesh else own_norm,
    )
    checkpoints = Checkpoints(
        context.run / f"checkpoints/{key.replace('/', '-')}",
        owner=attempt.start.facts,
        config=recipe.checkpoints,
        made=attempt.saved,
    )
    curve = f"metrics/{key.replace('/', '-')}.jsonl"
    metrics = Metrics(context.run / curve, write=leads())
    most = max(micro_batches(plan.accumulate, step) for step in (0, plan.steps))
    feed = Prefetched(plan.feed, ahead=2 * most)  # the loop takes an update's micro-batches at once
    run = Durable(checkpoints, optimizer, feed, metrics, faults=recipe.faults, attempt=attempt)
    with feed, run:
        state, measured = _trained(context, key, worker, plan, run, config)
    with attempt.clock.spending("checkpoint"):
        save(context, gathered(worker, optimizer.weights(), config), output)
    if not leads():
        return Outcome({}, (output,))
    checkpoints.clear()
    facts = model_facts(config, output) | {
        **_figures(context.run / curve, state),
        "learning_rate": plan.optim.learning_rate,
        "curve": curve,
        **({"skipped_batches": [asdict(skip) for skip in run.skips]} if run.skips else {}),
        **measured,
        **(plan.about or {}),
        **feed.facts(),
    }
    return Outcome(facts, (output,), _cost(context, state, plan.mesh))


def _trained(
    context: Context, key: str, worker: Worker, plan: Plan, run: Durable, config: ModelConfig
) -> tuple[State, dict[str, Any]]:
    """Train to the end, and on while a gate asks for it; return where that is, and what was measured on the way."""
    look = Look(context, worker, config) if plan.watch or plan.gate else None
    watch = watch_of(context, key, look.model, plan.watch, steps=plan.steps, chat=plan.chat) if look else None
    gate = plan.gate(look.model) if look and plan.gate else None
    state = run.resume(begin=lambda: torch.manual_seed(named_seed(context.recipe.seed, f"torch/{key}")))
    if state.step:
        context.progress.note(f"{key}: going on from step {state.step} of {plan.steps}")
    looks = [look.at(watch, state)] if look and watch else []

    def on_to(goal: int, state: State) -> State:
        told = (reporter(context.progress, goal),)
        amount = {"steps": goal, "accumulate": plan.accumulate}
        return run.fit(worker, plan.objective, state, looks=looks, hooks=told, **amount)

    if look and gate:
        clock = run.clock
        with clock.spending("eval"):
            look.begin(gate, state)
        state = on_to(gate.goal(state.step), state)
        while more := look.through(gate, state, clock):
            state = on_to(state.step + more, state)
    else:
        state = on_to(plan.steps, state)
    measured = {"watch": watch, "gate": gate}
    return state, {name: part.facts() for name, part in measured.items() if part is not None and context.leads}


def _figures(curve: Path, state: State) -> dict[str, Any]:
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "loss_first": first_figure(curve, "loss"),
        "loss_last": mean_of_last(curve, "loss", state.step),
    }


def _cost(context: Context, state: State, mesh: ParallelConfig) -> dict[str, Any]:
    machine = context.machine
    return {
        "train_seconds": round(state.seconds, 3),
        "device": machine.name,
        "dtype": str(machine.dtype).removeprefix("torch."),
        "threads": machine.threads,
        "mesh": mesh.describe(),
        "peak_memory_bytes": peak_memory_bytes(),
        "tokens_per_s": round(state.tokens / state.seconds, 1),
    }


def gathered(worker: Worker, weights: Mapping[str, Tensor], config: ModelConfig) -> Source:
    """Return weights as a source that gives whole tensors, wherever their parts lie."""
    return Gathered(weights, config, worker.mesh) if worker.mesh else WeightsSource(weights, config)


def save(context: Context, source: Source, output: str) -> None:
    """Write a complete model folder, tokenizer included; models that were taught dialogs get the chat template too.

    Every process reads every tensor, since each may hold a part of it; the first one writes.
    """
    if not leads():
        for name in source.names() if isinstance(source, Gathered) else ():
            source.read(name)
        return
    folder = context.run / output
    write_hf(source, folder, dtype=torch.float32)
    chat = output.endswith(("/sft", "/instruct")) or output == "guard"
    write_hf_files(folder, source.config, context.codec, dtype=torch.float32, chat=chat)


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
