"""`herd serve`: an OpenAI-compatible server over a run's models, with the run's guard on."""

from pathlib import Path
from typing import Annotated

import typer

from herd.base.errors import HerdError
from herd.cli.draft import DraftOption
from herd.cli.quant import QuantOption, chosen


def serve(
    path: Annotated[Path, typer.Argument(metavar="RUN[/MODEL]", help="A run folder, one of its models, or any model.")],
    guard: Annotated[
        Path | None, typer.Option(help="A guard model's folder, such as Llama Guard 3; the run's own unless given.")
    ] = None,
    no_guard: Annotated[bool, typer.Option("--no-guard", help="Without the guard model.")] = False,
    quant: QuantOption = None,
    draft: DraftOption = None,
    host: Annotated[str, typer.Option(help="The address to listen on; this machine only by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="A file of keys, one a line; others are refused.")] = None,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait for a model before others get 429.")] = 64,
    max_tokens: Annotated[int | None, typer.Option(help="The longest answer, in tokens; else the context.")] = None,
    metrics_open: Annotated[bool, typer.Option("--metrics-open", help="Let /metrics be read without a key.")] = False,
    cors: Annotated[list[str] | None, typer.Option(help="An origin whose pages may ask; may be repeated.")] = None,
) -> None:
    """Serve models over HTTP, in the OpenAI API's shapes, with a chat page at /. Ctrl-C drains, twice stops."""
    from herd.serve.config import ServeConfig, read_keys

    config = ServeConfig(
        host=host,
        port=port,
        max_waiting=max_waiting,
        max_tokens=max_tokens,
        cors=tuple(cors or ()),
        keys=read_keys(api_key_file) if api_key_file else frozenset(),
        metrics_open=metrics_open,
    )
    try:
        from herd.serve.app import build_app
        from herd.serve.server import Server
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "prometheus_client"):
            raise
        raise HerdError("serving needs the `serve` extra: pip install 'herd[serve]'") from None
    from herd.serve.logs import log_start
    from herd.stages.serving import open_service

    service = open_service(path, config, guard=guard, guarded=not no_guard, quant=chosen(quant), draft=draft)
    log_start(service)
    Server(build_app(service), service).run()
