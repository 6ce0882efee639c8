"""Distilled against alone, over several seeds: `python benchmarks/distil.py runs/meadow --seeds 3`.

Takes a finished run's corpus, tokenizer, flagship and teacher cache, and trains every sibling both ways anew from
each seed (other weights, other order of the data; the same for both ways). Prints, for each sibling and task, the mean
difference over the seeds and its 95 % confidence interval (Student's t over seeds).
"""

import argparse
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from herd.base.config import validate
from herd.base.run import RunFolder
from herd.cli.display import Plain
from herd.stages.raising import steps
from herd.stages.recipe import Recipe
from herd.stages.step import Context, execute

SHARED = ("corpus", "tokenizer", "shards", "teacher", "flagship")
# Student's t, 97.5 %, for 1, 2, ... degrees of freedom
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

Scores = Mapping[tuple[str, str], float]  # (model folder, task) -> value


def train_and_score(run: Path, folder: Path, seed: int) -> Scores:
    """Train and score all siblings of `run` from one seed in a folder of their own; finished steps are kept."""
    values = RunFolder(run).read_recipe() | {"seed": seed}
    recipe = validate(Recipe, values, where=str(run))
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        if not (folder / name).exists():
            os.symlink((run / name).resolve(), folder / name)
    target = RunFolder(folder)
    if not target.ledger.records:
        lines = (run / "ledger.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        end = next(i for i, line in enumerate(lines) if '"step": "distil/' in line)
        (folder / "ledger.jsonl").write_text("".join(lines[:end]), encoding="utf-8")
        target = RunFolder(folder)
    context = Context(recipe, target, Plain(Console()))
    for step in steps(recipe):
        wanted = step.key.startswith(("distil/", "alone/")) or step.key.endswith(("/base", "/alone"))
        if wanted and not step.key.startswith("eval/flagship"):
            execute(step, context)
    return {
        (str(r.facts["model"]), str(r.facts["task"])): float(r.facts["value"])
        for r in target.ledger.scores()
        if "value" in r.facts and str(r.facts["model"]).startswith("siblings/")
    }


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % confidence interval."""
    n = len(differences)
    return statistics.fmean(differences), T_975[n - 2] * statistics.stdev(differences) / math.sqrt(n)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 11))
    options = parser.parse_args()
    runs = [train_and_score(options.run, Path(f"{options.run}-seeds/{s}"), s) for s in range(1, options.seeds + 1)]
    print(f"\n| sibling | task | alone | distilled | difference ({options.seeds} seeds, 95 % CI) |")
    print("| --- | --- | ---: | ---: | ---: |")
    for model, task in sorted(runs[0]):
        if not model.endswith("/base"):
            continue
        alone = [scores[model.removesuffix("base") + "alone", task] for scores in runs]
        distilled = [scores[model, task] for scores in runs]
        middle, half = interval([d - a for d, a in zip(distilled, alone, strict=True)])
        row = f"{statistics.fmean(alone):.3f} | {statistics.fmean(distilled):.3f} | {middle:+.3f} ± {half:.3f}"
        print(f"| {model.split('/')[1]} | {task} | {row} |")


if __name__ == "__main__":
    main()
