"""Training state on disk through torch.distributed.checkpoint: whole or absent, never overwritten.

    checkpoints/STEP_KEY/step-00000120/   weights, moments and a plain-data `progress` entry
A checkpoint is written under a temporary name and renamed; a folder without the final name is never read.
"""

import json
import re
import shutil
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from herd.base.errors import RunError
from herd.base.files import write_atomic
from herd.train.loop import State
from herd.train.optim import Optimizer

_NAME = re.compile(r"step-(\d{8})$")


class Checkpoints:
    """The checkpoints of one training step of a run; `owner` (its fingerprint) guards against another recipe's."""

    def __init__(self, folder: Path, *, owner: str) -> None:
        self.folder, self.owner = folder, owner

    def save(self, state: State, optimizer: Optimizer, feed_state: dict[str, Any]) -> None:
        """Write one checkpoint, then remove the older ones."""
        final = self.folder / f"step-{state.step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with _quiet():
            dcp.save(dict(optimizer.state(state.step)), checkpoint_id=temporary, no_dist=True)
        progress = {
            "owner": self.owner,
            "feed": feed_state,
            "step": state.step,
            "tokens": state.tokens,
            "seconds": state.seconds,
            "figures": state.figures,
            "rng": torch.get_rng_state().numpy().tobytes().hex(),
        }
        write_atomic(temporary / "progress.json", json.dumps(progress))
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        for step, path in self._found():
            if step < state.step:
                shutil.rmtree(path)

    def latest(self) -> Path | None:
        """Return the newest whole checkpoint. Raises RunError when another recipe wrote it."""
        found = self._found()
        if not found:
            return None
        path = found[-1][1]
        owner = json.loads((path / "progress.json").read_text())["owner"]
        if owner != self.owner:
            raise RunError(
                f"{path}: written by another recipe or from other inputs; remove {self.folder} to start anew"
            )
        return path

    def restore(self, path: Path, optimizer: Optimizer) -> tuple[State, dict[str, Any]]:
        """Fill the optimizer (and through it the model) from a checkpoint; return the state and the feed's place."""
        progress = json.loads((path / "progress.json").read_text())
        tensors = dict(optimizer.state(progress["step"]))
        with _quiet():
            dcp.load(tensors, checkpoint_id=path, no_dist=True)
        optimizer.restore(tensors)
        torch.set_rng_state(torch.frombuffer(bytearray.fromhex(progress["rng"]), dtype=torch.uint8))
        state = State(progress["step"], progress["tokens"], progress["seconds"], progress["figures"])
        return state, progress["feed"]

    def clear(self) -> None:
        """Remove everything: the step has ended and its model folder is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        # without progress.json a folder is the remains of a removal or of a crash
        whole = [path for path in self.folder.iterdir() if (path / "progress.json").is_file()]
        return sorted((int(match[1]), path) for path in whole if (match := _NAME.match(path.name)))


@contextmanager
def _quiet() -> Generator[None]:
    # DCP warns that no process group is there, which is what no_dist says
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
