"""`herd raise`: the main job."""

from pathlib import Path
from typing import Annotated

import typer


def complete_recipe(incomplete: str) -> list[str]:
    """Return the recipes whose names begin so."""
    folder = Path(__file__).parents[1] / "recipes"
    return [file.stem for file in sorted(folder.glob("*.yaml")) if file.stem.startswith(incomplete)]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe by name, or a path to a YAML file.", autocompletion=complete_recipe
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes to the recipe, such as corpus=texts/ or pretrain.tokens=1e6."
    ),
]
RunOption = Annotated[Path | None, typer.Option("--run", help="The run folder; runs/NAME unless given.")]


def raise_command(recipe: RecipeArgument, overrides: OverridesArgument = None, run: RunOption = None) -> None:
    """Raise a herd: every stage of a recipe, from text to model card. Stopped, it goes on where it was.

    Stages: curate, tokenizer, pretrain (with long context and annealing), distil, sft, dpo, guard, eval, card.
    """
    from herd.cli.display import display
    from herd.cli.report import print_report
    from herd.stages.raising import disk_need, raise_herd, steps
    from herd.stages.recipe import load_recipe

    chosen = load_recipe(recipe, overrides or [])
    folder = run or Path("runs") / chosen.name
    with display([step.key for step in steps(chosen)]) as progress:
        progress.note(f"raising {chosen.name} in {folder}; up to {disk_need(chosen) / 1e6:.0f} MB of disk")
        context = raise_herd(chosen, folder, progress)
    print_report(context)
