"""How many needles a run's model finds, by length and by how many other numbers stand beside: `needles.py RUN`.

One person's secret number is told at seven depths of the run's own held-out text, among those of none, one or more
other people, and asked for at the end (herd/eval/needle.py). A model that copies the only number there is finds all
needles that stand alone, and one in so many of the others.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from herd.data.meadow import Meadow
from herd.engine.engine import Engine
from herd.eval.needle import needle_items, read_haystack
from herd.eval.runner import run_task
from herd.eval.subject import Subject
from herd.model.weights import load_model
from herd.stages.recipe import load_recipe
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.codec import DialogCodec

DEPTHS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def main() -> None:
    """Print one row for each count of other numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="flagship/base", help="a base model's folder within the run")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 2048, 3800, 4096], help="tokens")
    parser.add_argument("--others", type=int, nargs="+", default=[0, 1, 3])
    parser.add_argument("--repeats", type=int, default=6, help="needles for each length and depth")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()

    tokenizer = Tokenizer.load(given.run / "tokenizer")
    model = load_model(given.run / given.model).to(torch.bfloat16)
    subject = Subject(given.model, Engine(model), DialogCodec(tokenizer), chat=False)
    haystack = read_haystack(given.run / "corpus")
    choir = Meadow(load_recipe(str(given.run / "recipe.yaml")).meadow).choir

    table = Table("others", *(f"{length:,}" for length in given.lengths), "least language")
    for others in given.others:
        options = {"lengths": given.lengths, "depths": DEPTHS, "repeats": given.repeats, "seed": given.seed}
        score = run_task(subject, "needle", needle_items(tokenizer, haystack, choir, others=others, **options))
        assert score is not None
        by = score.facts["by"]
        lengths = by.get("length", {str(given.lengths[0]): score.facts})
        least = min(by["lang"], key=lambda lang: by["lang"][lang]["value"])
        cells = (f"{100 * lengths[str(n)]['value']:.0f} ± {100 * lengths[str(n)]['stderr']:.0f}" for n in given.lengths)
        table.add_row(str(others), *cells, f"{least} {100 * by['lang'][least]['value']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
