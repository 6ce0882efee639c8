"""The verbs of `herd`, in the order in which a person meets them."""

from typing import Annotated

import typer

from herd import __version__
from herd.cli import chat, exporting, plan, raising, serving, stage, tokens

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Raise a herd: from raw text to a documented, guarded family of Llama 3.1 models.",
    epilog="Start with: [bold]herd raise meadow[/bold], then [bold]herd chat runs/meadow[/bold].",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"herd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Raise a herd: from raw text to a documented, guarded family of Llama 3.1 models."""


app.command("raise", rich_help_panel="The main job")(raising.raise_command)
app.command("chat", rich_help_panel="The main job")(chat.chat)
app.command("serve", rich_help_panel="The main job")(serving.serve)
app.command("import", rich_help_panel="Models from and for elsewhere")(exporting.import_command)
app.command("export", rich_help_panel="Models from and for elsewhere")(exporting.export_command)
app.command("plan", rich_help_panel="Before training")(plan.plan)
app.command("tokens", rich_help_panel="Looking inside")(tokens.tokens)
for verb, text in stage.VERBS.items():
    run = stage.evaluate if verb == "eval" else stage.command(verb)
    app.command(verb, help=text, rich_help_panel="Its stages, one at a time")(run)
