"""Raise a herd and send the process a signal at a given moment: `python tests/dying.py RECIPE RUN STEP COUNT SIGNAL`,
or after `python tests/dying.py RECIPE RUN random SECONDS SIGKILL` wherever that is."""

import os
import signal
import sys
from pathlib import Path

from herd.base.progress import Silent
from herd.stages.raising import raise_herd
from herd.stages.recipe import load_recipe


class Reaper(Silent):
    """Counts what the running step reports and strikes at the wanted count (0: as the step begins)."""

    def __init__(self, step: str, count: int, number: int) -> None:
        self.step, self.left, self.number, self.key = step, count, number, ""

    def stage(self, key: str, state: str, detail: str = "") -> None:
        self.key = key
        if state == "running" and self.left == 0:
            self.strike()

    def advance(self, done: int, total: int, **figures: float) -> None:
        if self.key == self.step:
            self.left -= 1
            if self.left == 0:
                self.strike()

    def strike(self) -> None:
        if self.key == self.step:
            os.kill(os.getpid(), self.number)


if __name__ == "__main__":
    recipe, run, step, moment, number = sys.argv[1:]
    if step == "random":
        signal.setitimer(signal.ITIMER_REAL, float(moment))  # SIGALRM, unhandled, ends a process as SIGKILL does
    reaper = Reaper(step, -1 if step == "random" else int(moment), signal.Signals[number])
    raise_herd(load_recipe(recipe, ["checkpoints.seconds=0.1"]), Path(run), reaper)
