"""One verb for each stage: the same code as `herd raise`, stopping after that stage."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from herd.base.errors import RunError
from herd.cli.draft import DraftOption
from herd.cli.quant import QuantOption, chosen
from herd.cli.raising import OverridesArgument, RunOption

VERBS = {
    "curate": "Sources to a curated corpus: language, quality, duplicates, personal data, cut-off date.",
    "tokenizer": "Learn the byte-level BPE (or take one) and encode the corpus.",
    "pretrain": "Train the flagship: pretraining, long context, annealing.",
    "distil": "Distil each sibling from the flagship, and train it alone as a control.",
    "sft": "Supervised fine-tuning on dialogs.",
    "dpo": "Preference optimisation.",
    "guard": "Fine-tune the guard model.",
    "eval": "Score every model, with standard errors.",
    "card": "Render MODEL_CARD.md and card.html from the ledger.",
}

Target = Annotated[
    str,
    typer.Argument(metavar="RUN|RECIPE", help="A run folder, or a recipe (then with --run and key=value)."),
]


def command(verb: str) -> Callable[..., None]:
    """Return the command of one stage."""

    def run_stage(target: Target, overrides: OverridesArgument = None, run: RunOption = None) -> None:
        from rich.console import Console

        from herd.cli.display import display
        from herd.cli.report import print_table
        from herd.stages.raising import raise_herd, steps

        recipe, folder = resolve(target, overrides or [], run)
        with display([step.key for step in steps(recipe) if step.verb == verb]) as progress:
            context = raise_herd(recipe, folder, progress, only=verb)
        if verb == "eval":
            print_table(context, Console())
        if verb == "card":
            Console().print(f"{folder / 'MODEL_CARD.md'}\n{folder / 'card.html'}", highlight=False, soft_wrap=True)

    return run_stage


def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="RUN|RECIPE|MODEL", help="A run folder, a recipe, or any model folder.")
    ],
    overrides: OverridesArgument = None,
    run: RunOption = None,
    items: Annotated[
        Path | None, typer.Option("--items", help="For a model folder: the run on whose items to score it.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="For a model folder: continue text, ask no dialogs.")] = False,
    to: Annotated[Path | None, typer.Option("--to", help="For a model folder: where the scores go.")] = None,
    quant: QuantOption = None,
    draft: DraftOption = None,
    backend: Annotated[
        Literal["herd", "vllm"], typer.Option("--backend", help="For a model folder: what runs it.")
    ] = "herd",
) -> None:
    """Score every model of a run, or any model folder (with --items RUN), with standard errors."""
    folder = Path(target)
    if not folder.is_dir() or (folder / "recipe.yaml").is_file():
        if items or base or to or quant or draft or backend != "herd":
            options = "--items, --base, --to, --quant, --draft and --backend"
            raise RunError(f"{options} are for a model folder, which {target} is not")
        command("eval")(target, overrides, run)
        return
    if items is None:
        raise RunError(f"{target}: a model folder has no items of its own; name a run that has: --items runs/meadow")
    if (quant or draft) and backend != "herd":
        raise RunError("--quant and --draft are for herd's own engine; vLLM takes weights as they are stored")
    from herd.cli.display import display
    from herd.cli.report import print_scores
    from herd.stages.evaluate import score_elsewhere

    out = to or Path(f"scores-{folder.resolve().name}{f'-{quant or backend}' if quant or backend != 'herd' else ''}")
    with display(["eval"]) as progress:
        ledger = score_elsewhere(
            folder, items, out, progress, chat=not base, quant=chosen(quant), draft=draft, backend=backend
        )
    print_scores(ledger)
    print(f"written      {out}")


def resolve(target: str, overrides: list[str], run: Path | None):
    """Return the recipe and the run folder that a target names. Raises HerdError."""
    from herd.base.config import validate
    from herd.base.run import RunFolder
    from herd.stages.recipe import Recipe, load_recipe

    folder = Path(target)
    if folder.is_dir():
        if overrides or run:
            raise RunError(f"{target} is a run folder and keeps its own recipe; leave out {overrides or '--run'}")
        return validate(Recipe, RunFolder(folder).read_recipe(), where=str(folder / "recipe.yaml")), folder
    recipe = load_recipe(target, overrides)
    return recipe, run or Path("runs") / recipe.name
