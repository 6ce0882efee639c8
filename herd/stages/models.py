"""Opening a run's models for use: engines, guards and shields, by the names that a card uses."""

from collections.abc import Sequence
from pathlib import Path

from herd.base.errors import RunError
from herd.base.messages import Dialog, Message
from herd.engine.engine import Engine
from herd.eval.subject import answers
from herd.guard.classifier import Guard
from herd.guard.shield import Shield
from herd.model.weights import load_model
from herd.runtime.device import Machine
from herd.tokenizer.codec import DialogCodec


def open_engine(folder: Path, machine: Machine, *, slots: int) -> Engine:
    """Load a model folder into an engine, in the machine's number format. Raises RunError when it isn't there."""
    if not (folder / "config.json").exists():
        raise RunError(f"{folder}: no model there yet; run `herd raise` on this run folder first")
    return Engine(load_model(folder, dtype=machine.dtype, device=machine.device), slots=slots)


def open_shield(run: Path, engine: Engine, codec: DialogCodec, machine: Machine, *, max_tokens: int = 64) -> Shield:
    """Return the run's guard around an engine."""
    guard = Guard(open_engine(run / "guard", machine, slots=64), codec)

    def generate(dialogs: Sequence[Dialog]) -> list[Message]:
        return answers(engine, codec, dialogs, max_tokens=max_tokens)

    return Shield(guard, generate)
