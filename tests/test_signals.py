"""SIGTERM and SIGUSR1: once to save and end, twice to end at once, and never beyond the grace given."""

import signal
import subprocess
import sys

import pytest

from herd.runtime.signals import EXIT_STOPPED
from tests.conftest import ROOT

BEGIN = """
import os, signal, threading
from herd.runtime.signals import Stopped, StopSignals

def send(name):
    os.kill(os.getpid(), getattr(signal, name))

def heard():
    while not stop.asked:  # the listening thread has its turn
        threading.Event().wait(0.01)

never = threading.Event()
with StopSignals(grace={grace}, together={together}) as stop:
"""


def run(body: str, *, grace: float = 60.0, together: float = 3.0) -> tuple[int, str]:
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    code = BEGIN.format(grace=grace, together=together) + lines
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_outside_training_it_ends_at_once(name: str) -> None:
    assert run(f"send('{name}')\nnever.wait()") == (EXIT_STOPPED, "")


def test_in_training_it_is_left_to_the_loop() -> None:
    body = """
stop.defer()
send('SIGUSR1')
heard()
assert stop.asked == 'SIGUSR1'
try:
    stop.obey()
except Stopped as stopped:
    assert str(stopped) == 'stopped by SIGUSR1'
    raise
"""
    assert run(body) == (EXIT_STOPPED, "")


def test_without_a_signal_nothing_is_asked_and_handlers_are_as_before() -> None:
    body = """
stop.defer()
stop.obey()
os._exit(0 if not stop.asked else 1)
"""
    assert run(body)[0] == 0
    # what comes after the block ends the process as it would have before
    after = BEGIN.format(grace=60.0, together=3.0) + "    pass\nsend('SIGTERM')\n"
    assert subprocess.run([sys.executable, "-c", after], cwd=ROOT, check=False).returncode == -signal.SIGTERM


def test_the_second_sigterm_ends_at_once_also_what_is_stuck() -> None:
    code, said = run("stop.defer()\nsend('SIGTERM')\nheard()\nsend('SIGTERM')\nnever.wait()", together=-1.0)
    assert code == 128 + signal.SIGTERM
    assert said == "herd: SIGTERM a second time: ended at once; the last checkpoint stands\n"


def test_the_same_sigterm_passed_on_by_a_launcher_is_no_second_one() -> None:
    body = "stop.defer()\nsend('SIGUSR1')\nheard()\nsend('SIGTERM')\nsend('SIGTERM')\nstop.obey()"
    assert run(body) == (EXIT_STOPPED, "")


def test_grace_is_not_exceeded() -> None:
    code, said = run("stop.defer()\nsend('SIGTERM')\nnever.wait()", grace=0.1)
    assert code == 128 + signal.SIGTERM
    assert said == "herd: SIGTERM: not saved within 0.1 s; the last checkpoint stands\n"
