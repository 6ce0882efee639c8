"""What annealing gives: `python benchmarks/anneal.py runs/meadow --seeds 2`.

Takes a run that has its long-context stages and trains its `anneal` section anew from each seed (order of the data),
with the recipe's upsampled mix and with the plain one. Of each training both ends are scored: the last weights, and the
average of checkpoints (section 3.4.3). A third training holds the learning rate where annealing begins. Prints bits per
byte and tasks, the mean over the seeds with its range.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from herd.base.config import validate
from herd.base.run import RunFolder
from herd.cli.display import Plain
from herd.model.transformer import Transformer
from herd.parallel.config import ParallelConfig
from herd.parallel.worker import Alone
from herd.stages.pretrain import shard_feed
from herd.stages.recipe import Recipe
from herd.stages.step import Context
from herd.stages.training import laid_out, trained_weights
from herd.stages.watch import Examiner
from herd.train.config import TrainConfig
from herd.train.loop import fit
from herd.train.objective import NextToken
from herd.train.optim import Optimizer

TASKS = ("knowledge", "knowledge_crosslingual", "reasoning", "arithmetic", "code")
EVERYTHING = 1 << 30

Scores = Mapping[str, float]


def ways(section: TrainConfig) -> dict[str, TrainConfig]:
    """Return the recipe's section and what it is compared with."""
    held = section.optim.model_copy(update={"schedule": "constant"})
    return {
        "rate to 0, upsampled": section,
        "rate to 0, plain mix": section.model_copy(update={"repeats": {}}),
        "rate held, upsampled": section.model_copy(update={"optim": held}),
    }


def start(context: Context) -> Transformer:
    """Load the model that annealing begins with, in its final shape."""
    stages = context.recipe.long_context.stages
    config = context.recipe.model_config_of("flagship", vocab_size=context.tokenizer.n_vocab)
    weights = trained_weights(context, stages[-1].folder if stages else "flagship/pretrain", config=config)
    worker = laid_out(context, weights, ParallelConfig())
    assert isinstance(worker, Alone), "this runs in one process"
    return worker.model


def score(context: Context, weights: Mapping[str, Tensor] | None) -> Scores:
    """Score weights (None: those before annealing) on all held-out text and all items of the tasks."""
    model = start(context)
    if weights is not None:
        model.load_state_dict(weights)
    model.to(context.machine.dtype)
    found = Examiner(context, model, "anneal", documents=EVERYTHING, tasks=TASKS, items=EVERYTHING)()
    tasks = {task: row["value"] for task, row in found["tasks"].items()}
    return {"bits per byte": found["bits_per_byte"]["all"]} | tasks


def anneal(context: Context, section: TrainConfig) -> dict[str, Scores]:
    """Train one section; return the scores of its last weights and of their average."""
    model = start(context)
    optimizer = Optimizer(model.named_parameters(), section.optim, steps=section.steps, dtype=context.machine.dtype)

    def report(state: object) -> None:
        context.progress.advance(state.step, section.steps, loss=state.figures["loss"])  # ty: ignore

    feed = shard_feed(context, section, "anneal")
    fit(model, NextToken(), feed, optimizer, steps=section.steps, hooks=(report,), accumulate=section.accumulate)
    last = {name: master.detach() for name, master in optimizer.masters.items()}
    return {"last": score(context, last), "averaged": score(context, optimizer.weights())}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder with its long-context stages done")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tokens", type=int, help="of each training, where the recipe's are too many")
    options = parser.parse_args()
    run = RunFolder(options.run)
    recipe = validate(Recipe, run.read_recipe(), where=str(options.run))
    section = recipe.anneal if options.tokens is None else recipe.anneal.model_copy(update={"tokens": options.tokens})
    before = score(Context(recipe, run, Plain(Console())), None)
    found: dict[str, list[Scores]] = {"before": [before]}
    for seed in range(1, options.seeds + 1):
        context = Context(recipe.model_copy(update={"seed": seed}), run, Plain(Console()))
        for way, changed in ways(section).items():
            torch.manual_seed(seed)
            context.progress.stage(f"{way}, seed {seed}", "running")
            for end, scores in anneal(context, changed).items():
                found.setdefault(f"{way}, {end}", []).append(scores)
    print(f"\n{section.steps} steps, {section.tokens:,} tokens, {options.seeds} seeds\n")
    print(f"| | {' | '.join(before)} |\n| --- |{' ---: |' * len(before)}")
    for way, rows in found.items():
        cells = []
        for name in before:
            values = [row[name] for row in rows]
            spread = f" ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}")
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
