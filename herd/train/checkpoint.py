"""Training state on disk through torch.distributed.checkpoint (DCP): whole or absent, never overwritten.

    checkpoints/STEP/step-00000120/   weights, moments and averages in shards, by the parameters' full names
                     progress.json    the step, the feed's place, who wrote it, and every file with its size
                     rank-00003.json  the state of that rank's random generators
Written under a temporary name by a thread; the loop waits only for the copy to host memory. When all ranks' files are
on disk the folder gets its name. What lacks the name, or a file, or a byte, is never read. Any mesh can read it.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from herd.base.errors import RunError
from herd.base.files import write_atomic
from herd.base.run import difference
from herd.base.seeds import named_seed
from herd.runtime.process import grouped
from herd.train.config import CheckpointConfig
from herd.train.loop import State
from herd.train.optim import Optimizer

_NAME = re.compile(r"step-(\d{8})$")
_PROGRESS = "progress.json"


class Checkpoints:
    """The checkpoints of one training step of a run.

    owner: what the step depends on (its recipe, the hashes of its inputs); a checkpoint that depends on anything else
    is refused. made: called when one is whole, with its step, before it gets its name (from the writing thread).
    """

    def __init__(
        self,
        folder: Path,
        *,
        owner: Mapping[str, Any],
        config: CheckpointConfig,
        made: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.folder, self.config, self._made = folder, config, made
        self.owner = json.loads(json.dumps(owner))
        self._rank, self._ranks = (dist.get_rank(), dist.get_world_size()) if grouped() else (0, 1)
        # DCP in a thread needs a group of its own: collectives of the loop go on meanwhile
        self._group = dist.new_group(backend="gloo") if grouped() else None
        self._writing: Future[None] | None = None
        self._number = 0
        # DCP warns that no process group is there, which is what no_dist says; not to be set from a thread
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")

    def save(self, state: State, optimizer: Optimizer, places: Mapping[str, Any]) -> None:
        """Copy the state to host memory and begin to write it, when the former checkpoint is written.

        places: plain data of the feed and whatever else goes on from where it was. Raises what the former one raised.
        """
        self.wait()
        self._number += 1
        progress = {
            "number": self._number,
            "ranks": self._ranks,
            "places": places,
            "state": asdict(state),
            "owner": self.owner,
        }
        copied = BlockingAsyncStager().stage(dict(optimizer.state(state.step)))
        random = _random_state()
        self._writing = writing = Future()

        def write() -> None:
            try:
                writing.set_result(self._write(state.step, copied, json.dumps(progress), random))
            except BaseException as error:
                writing.set_exception(error)

        # not one that the interpreter waits for at its end: its ranks may be gone
        Thread(target=write, name="checkpoint", daemon=True).start()

    def wait(self, *, seconds: float | None = None) -> None:
        """Wait until nothing is being written, or so long. Raises RunError where a checkpoint could not be."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result(seconds)
        except (OSError, CheckpointException) as error:
            what = " ".join(str(error).split())[:300]
            raise RunError(
                f"{self.folder}: a checkpoint could not be written ({what}); make room there, and run again"
            ) from error

    def close(self) -> None:
        """Wait for what is being written, and let go of the group. Raises as `wait` does."""
        self.wait()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _write(self, step: int, tensors: dict[str, Any], progress: str, random: dict[str, str]) -> None:
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        if self._rank == 0:
            for left in self.folder.glob(".step-*"):
                shutil.rmtree(left)
            temporary.mkdir(parents=True)
        self._meet()
        write_atomic(temporary / f"rank-{self._rank:05d}.json", json.dumps(random))
        # ends on no rank before all ranks' files are flushed to disk
        dcp.save(tensors, checkpoint_id=temporary, process_group=self._group, no_dist=self._group is None)
        self._made(step)
        self._meet()
        if self._rank == 0:
            self._name(temporary, final, progress)
        self._meet()  # no rank looks for it before it has its name
        if self._rank == 0:
            self._prune()

    def _name(self, temporary: Path, final: Path, progress: str) -> None:
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        write_atomic(temporary / _PROGRESS, json.dumps({**json.loads(progress), "files": files}))
        _sync(temporary)
        if final.exists():  # torn, or from before the run went back
            final.rename(self.folder / f".{final.name}.old")
        temporary.rename(final)
        _sync(self.folder)

    def _meet(self) -> None:
        if self._group is not None:
            dist.barrier(self._group)

    def _prune(self) -> None:
        """Remove what isn't to be kept; renamed first, so that half of one is never taken for one."""
        found = self.found()
        for path, progress in found[: -self.config.keep]:
            if not self._for_good(progress):
                path.rename(path.with_name(f".{path.name}.old"))
        for left in self.folder.glob(".step-*.old"):
            shutil.rmtree(left)

    def _for_good(self, progress: Mapping[str, Any]) -> bool:
        every = self.config.keep_every
        return every is not None and progress["number"] % every == 0

    def torn(self) -> list[Path]:
        """Return what has a checkpoint's name and isn't whole."""
        whole = {path for path, _ in self.found()}
        return [path for path in self._named() if path not in whole]

    def _named(self) -> list[Path]:
        names = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in names if _NAME.match(path.name))

    def latest(self) -> Path | None:
        """Return the newest whole checkpoint, the same on all ranks.

        Raises RunError, with what differs, when another recipe wrote it.
        """
        path, wrong = self._first_says(self._latest)
        if wrong:
            raise RunError(wrong)
        return self.folder / path if path else None

    def _latest(self) -> tuple[str, str]:
        """Return its name, and what is wrong with it."""
        found = self.found()
        if not found:
            return "", ""
        path, progress = found[-1]
        if differs := difference(progress["owner"], self.owner):
            return path.name, (
                f"{path}: written by another recipe or from other inputs ({differs}); go back to those, or remove "
                f"{self.folder} to start anew"
            )
        return path.name, ""

    def _first_says(self, ask: Callable[[], tuple[str, str]]) -> tuple[str, str]:
        answer = [ask() if self._rank == 0 else None]
        if self._group is not None:
            dist.broadcast_object_list(answer, src=0, group=self._group)
        return answer[0] or ("", "")

    def restore(self, path: Path, optimizer: Optimizer) -> tuple[State, dict[str, Any]]:
        """Fill the optimizer (and through it the model) from a checkpoint of any mesh; return the state and places.

        Random generators go on where they were when as many ranks run as wrote it, and begin anew from (owner, step,
        rank) otherwise.
        """
        progress = json.loads((path / _PROGRESS).read_text(encoding="utf-8"))
        state = State(**progress["state"])
        tensors = dict(optimizer.state(state.step))
        dcp.load(tensors, checkpoint_id=path, process_group=self._group, no_dist=self._group is None)
        optimizer.restore(tensors)
        if progress["ranks"] == self._ranks:
            _set_random_state(json.loads((path / f"rank-{self._rank:05d}.json").read_text(encoding="utf-8")))
        else:
            torch.manual_seed(named_seed(state.step, f"{self.folder.name}/{self._rank} of {self._ranks}"))
        self._number = progress["number"]
        return state, progress["places"]

    def clear(self) -> None:
        """Remove all but what is kept for good: the step has ended and its model folder is written."""
        for path, progress in self.found():
            if not self._for_good(progress):
                path.rename(path.with_name(f".{path.name}.old"))
        for left in [*self.folder.glob(".step-*"), *self.folder.glob("skips.json")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def found(self) -> list[tuple[Path, dict[str, Any]]]:
        """Return every whole checkpoint and its progress, oldest first."""
        return [(path, progress) for path in self._named() if (progress := _whole(path)) is not None]


def _whole(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint's progress, or None unless every file that it lists is there to the last byte."""
    try:
        progress = json.loads((path / _PROGRESS).read_text(encoding="utf-8"))
        whole = all((path / name).stat().st_size == size for name, size in progress["files"].items())
    except (OSError, json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        return None
    return progress if whole else None


def _random_state() -> dict[str, str]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {device: state.numpy().tobytes().hex() for device, state in states.items()}


def _set_random_state(states: Mapping[str, str]) -> None:
    for device, state in states.items():
        values = torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8)
        if device == "cpu":
            torch.set_rng_state(values)
        elif torch.cuda.is_available():
            torch.cuda.set_rng_state(values)


def _sync(folder: Path) -> None:
    """Flush a folder's list of names to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
