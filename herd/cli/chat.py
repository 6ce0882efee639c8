"""`herd chat`: talk to a model of a run, streaming, over several turns, with the run's guard on."""

from pathlib import Path
from typing import Annotated

import typer

from herd.cli.draft import DraftOption
from herd.cli.quant import QuantOption, chosen


def chat(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/meadow, or any model folder.")],
    sibling: Annotated[str | None, typer.Option(help="A sibling by name instead of the flagship.")] = None,
    base: Annotated[bool, typer.Option("--base", help="The base model: continue the text as it stands.")] = False,
    guard: Annotated[
        Path | None, typer.Option(help="A guard model's folder, such as Llama Guard 3; the run's own unless given.")
    ] = None,
    no_guard: Annotated[bool, typer.Option("--no-guard", help="Without the guard model.")] = False,
    quant: QuantOption = None,
    draft: DraftOption = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Talk to a model. Empty line or Ctrl-D ends; /reset forgets the conversation."""
    from herd.cli.conversation import Conversation, open_conversation

    conversation: Conversation = open_conversation(
        run, sibling=sibling, base=base, guarded=not no_guard, guard=guard, quant=chosen(quant), draft=draft
    )
    conversation.sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
    print(conversation.greeting())
    while True:
        try:
            text = input("you   ")
        except EOFError:
            print()
            return
        if not text.strip():
            return
        if text.strip() == "/reset":
            conversation.reset()
            continue
        print("herd  ", end="", flush=True)
        for piece in conversation.say(text):
            print(piece, end="", flush=True)
        print()
