"""Attempts at the steps of a run, in the ledger: each has a start, and an end that tells what became of its time.

start   who begins, and what the step depends on
stage   the step ended: its result stands
end     the attempt failed, was stopped or was killed; a killed one's is written when the next one starts, from its
        last heartbeats (train/heart.py)
event   what happened meanwhile: a spike, a slow rank, a torn checkpoint
"""

import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from herd.base.goodput import KINDS
from herd.base.ledger import Record
from herd.base.progress import Progress
from herd.base.run import RunFolder
from herd.runtime.signals import Hung, StopSignals
from herd.stages.ranks import Ranks
from herd.train.attempt import Attempt
from herd.train.clock import Clock
from herd.train.heart import Beat, Heart, last_beat, read_beats


class Attempts:
    """Begins and ends attempts; `current` is the one that runs."""

    def __init__(self, run: RunFolder, progress: Progress, *, grace: float, ranks: Ranks) -> None:
        self._run, self._progress, self._ranks, self._here = run, progress, ranks, Ranks()
        self.stop = StopSignals(grace=grace)
        self.current: Attempt | None = None

    @contextmanager
    def one(
        self, key: str, *, fingerprint: str, depends: Mapping[str, Any], together: bool = False
    ) -> Generator[Attempt]:
        """Run a block as an attempt at step `key`: started and, where it raises, ended in the ledger.

        together: of several processes all come here; the first one writes.
        """
        ledger, folder = self._run.ledger, self._run / f"attempts/{key.replace('/', '-')}"
        self._here = ranks = self._ranks if together else Ranks()
        leads = ranks.leads
        begun = asdict(self._begin(key, folder, fingerprint, depends)) if leads else None
        start = Record(**ranks.told(begun))

        def tell(event: str, facts: Mapping[str, Any]) -> None:
            if not leads:
                return
            ledger.append("event", key, facts={"event": event, **facts})
            self._progress.note(f"{key}: {event}: {'; '.join(str(value) for value in facts.values())}")

        try:
            with Heart(folder, start.id, Clock(), rank=ranks.world.rank) as heart:
                self.current = Attempt(start, heart, self.stop, tell, ranks.world.size)
                yield self.current
            ranks.meet()  # no heart beats any more
        except BaseException as error:
            heart.wait_for_the_end()
            beats = read_beats(folder, start.id)
            hung = next((beat.why for beat in beats if beat.why), "")
            if leads:
                ended(self._run, start, beats, why=hung or _line(error))
            if hung and isinstance(error, Exception):
                raise Hung from None  # because another rank's watchdog ended it
            raise
        finally:
            self.current = None
            if leads:
                _remove(folder)
        self.stop.obey()

    def _begin(self, key: str, folder: Path, fingerprint: str, depends: Mapping[str, Any]) -> Record:
        self._settle(key, folder)
        cost = {"devices": self._ranks.world.size}
        return self._run.ledger.append("start", key, facts=depends, cost=cost, fingerprint=fingerprint)

    def cost(self, attempt: Attempt) -> dict[str, Any]:
        """Return what the attempt took up to now, over all ranks."""
        attempt.heart.beat()
        self._here.meet()
        return cost_of(read_beats(attempt.heart.folder, attempt.start.id), devices=attempt.start.cost["devices"])

    def _settle(self, key: str, folder: Path) -> None:
        """Write the end of an attempt that was killed before it could."""
        kinds = ("start", "stage", "end")
        last = next((r for r in reversed(self._run.ledger.records) if r.step == key and r.kind in kinds), None)
        if last is not None and last.kind == "start":
            beats = read_beats(folder, last.id)
            why = next((beat.why for beat in beats if beat.why), "killed")
            # a launcher that starts its processes again held the devices meanwhile
            idle = time.time() - last_beat(folder, last.id) if beats and self._ranks.world.attempt else 0.0
            ended(self._run, last, beats, why=why, idle=max(0.0, idle))
        _remove(folder)


def ended(run: RunFolder, start: Record, beats: Sequence[Beat], *, why: str, idle: float = 0.0) -> Record:
    """Write that an attempt ended without its result; all its devices were idle for so many seconds after."""
    reached = {"reached": beats[0].step} if beats and beats[0].step else {}
    facts = {"start": start.id, "why": why.replace(f"{run.path}/", "")} | reached
    cost = cost_of(beats, devices=int(start.cost.get("devices") or 1), idle=idle)
    return run.ledger.append("end", start.step, facts=facts, cost=cost)


def cost_of(beats: Sequence[Beat], *, devices: int = 1, idle: float = 0.0) -> dict[str, Any]:
    """Return what an attempt took, from the newest beat of each of its ranks: devices times the mean of their time.

    The other devices of a step that one process runs alone are idle meanwhile, and all are for `idle` seconds after.
    """
    if not beats:
        return {}
    devices = max(devices, len(beats))
    spent = {kind: sum(b.attempt["spent"].get(kind, 0.0) for b in beats) / devices for kind in KINDS}
    alone = sum(beats[0].attempt["spent"].values()) * (1 - len(beats) / devices)
    spent["idle"] += idle + alone
    seconds = sum(spent.values())
    joules = [beat.joules for beat in beats]
    known = [value for value in joules if value is not None]
    return {
        "seconds": round(seconds, 3),
        "device_hours": round(seconds * devices / 3600, 7),
        "devices": devices,
        "joules_measured": round(sum(known), 1) if len(known) == len(joules) else None,
        "attempt": beats[0].attempt | {"spent": {kind: round(value, 4) for kind, value in spent.items() if value}},
    }


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()  # the last one


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    if "by peer" in text:  # of a connection, in the words of gloo and NCCL
        return "another rank ended without a word"
    return text or type(error).__name__
