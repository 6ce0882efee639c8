"""`herd raise`: the main job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from herd.runtime.world import world

if TYPE_CHECKING:
    from herd.stages.recipe import Recipe


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
RunOption = Annotated[Path | None, typer.Option("--run", "--into", help="The run folder; runs/NAME unless given.")]


NprocOption = Annotated[
    int, typer.Option("--nproc", min=1, help="Processes of this machine that train together, one a device.")
]
RestartsOption = Annotated[
    int, typer.Option("--restarts", min=0, help="With --nproc: how often all start again when one has died.")
]
SlurmOption = Annotated[
    str | None,
    typer.Option(
        "--slurm",
        metavar="KEY=VALUE,...",
        help="Submit as a Slurm job, queued again until it is done: nodes=2,tasks=8,minutes=1440,partition=NAME.",
    ),
]


def raise_command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    run: RunOption = None,
    nproc: NprocOption = 1,
    restarts: RestartsOption = 0,
    slurm: SlurmOption = None,
) -> None:
    """Raise a herd: every stage of a recipe, from text to model card. Stopped, it goes on where it was.

    Stages: curate, tokenizer, pretrain (with long context and annealing), distil, sft, dpo, guard, eval, card.
    Several processes train together as the recipe says (`parallel`), also under `torchrun ... -m herd raise ...`.
    """
    from herd.base.progress import Silent
    from herd.cli.display import display
    from herd.cli.report import print_report
    from herd.stages.raising import disk_need, raise_herd, steps
    from herd.stages.recipe import load_recipe

    chosen = load_recipe(recipe, overrides or [])
    folder = run or Path("runs") / chosen.name
    if slurm is not None:
        return submitted(chosen, ["raise", recipe, *(overrides or []), "--run", str(folder)], folder, slurm)
    if nproc > 1:
        launched(chosen, ["raise", recipe, *(overrides or []), "--run", str(folder)], nproc, restarts)
    if not world().leads:
        raise_herd(chosen, folder, Silent())
        finish()
    with display([step.key for step in steps(chosen)]) as progress:
        progress.note(f"raising {chosen.name} in {folder}; up to {disk_need(chosen) / 1e6:.0f} MB of disk")
        context = raise_herd(chosen, folder, progress)
    print_report(context)
    finish()


def launched(recipe: "Recipe", arguments: list[str], nproc: int, restarts: int) -> NoReturn:
    """Run this command in several processes, when every training step has a mesh of so many."""
    from herd.runtime.launch import launch
    from herd.stages.meshes import check_meshes

    check_meshes(recipe, ranks=nproc)
    raise typer.Exit(launch(arguments, processes=nproc, restarts=restarts, grace=recipe.faults.grace_seconds))


def submitted(recipe: "Recipe", arguments: list[str], folder: Path, slurm: str) -> None:
    """Submit this command as a Slurm job, when every training step has a mesh of so many processes."""
    from herd.runtime.slurm import Job, submit
    from herd.stages.meshes import check_meshes

    job = Job.parse(slurm)
    check_meshes(recipe, ranks=job.processes)
    logs = folder.with_name(f"{folder.name}.slurm")  # beside the run: a new run folder has to be empty
    gpus = recipe.runtime.device in ("auto", "cuda") and job.cluster == "slurm"
    made = submit(arguments, job, logs=logs, gpus=gpus, grace_seconds=recipe.faults.grace_seconds)
    print(f"job {made.job_id} of {job.processes} processes; its words: {made.paths.stdout}, {made.paths.stderr}")


def finish() -> None:
    """End a process that is one of several."""
    if world().size > 1:
        from herd.runtime.process import end

        end()
