"""The option that every verb which runs an engine for others shares: who drafts."""

from typing import Annotated

import typer

DraftOption = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="NAME",
        help="Who drafts tokens ahead: a sibling by name, `ngram`, or a model folder. Answers stay the same.",
    ),
]
