"""A run as a Slurm job, through submitit: one process a task, saved and queued again when its time is up.

submit -> tasks, each `herd raise ...` with the environment that torchrun would give
             | Slurm's warning or preemption -> the first process is told to save (SIGTERM), all stop together
             | the job is queued again with the same command, which goes on from there
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from herd.base.errors import ConfigError
from herd.runtime.signals import EXIT_STOPPED


@dataclass(frozen=True)
class Job:
    """What is asked of Slurm: nodes, tasks (one a GPU) on each, minutes, and the partition and account.

    cluster: 'local' runs the tasks on this machine, as Slurm would, to try a command out.
    """

    nodes: int = 1
    tasks: int = 1
    minutes: int = 60
    cpus: int = 1
    partition: str = ""
    account: str = ""
    cluster: str = "slurm"
    requeues: int = 100

    @classmethod
    def parse(cls, text: str) -> "Job":
        """Read 'nodes=2,tasks=8,minutes=1440,partition=h100'. Raises ConfigError."""
        known = {field.name: field.type for field in fields(cls)}
        values: dict[str, Any] = {}
        for part in filter(None, text.split(",")):
            key, sign, value = part.partition("=")
            if key not in known or not sign:
                raise ConfigError(f"--slurm: {part!r} is not KEY=VALUE with one of {', '.join(known)}")
            whole = known[key] in (int, "int")
            if whole and not value.isdecimal():
                raise ConfigError(f"--slurm: {key} is a whole number, not {value!r}")
            values[key] = int(value) if whole else value
        job = cls(**values)
        if min(job.nodes, job.tasks, job.minutes, job.cpus) < 1:
            raise ConfigError("--slurm: nodes, tasks, minutes and cpus are at least 1")
        if job.cluster not in ("slurm", "local"):
            raise ConfigError(f"--slurm: cluster is 'slurm' or 'local', not {job.cluster!r}")
        return job

    @property
    def processes(self) -> int:
        """Processes in all."""
        return self.nodes * self.tasks


class Process:
    """What one task runs; submitit pickles it, and calls `checkpoint` on the first before a job is queued again."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = tuple(arguments)

    def __call__(self) -> None:
        from submitit.helpers import TorchDistributedEnvironment

        place = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        command = [sys.executable, "-m", "herd", *self.arguments]
        self._child = subprocess.Popen(command, preexec_fn=_deaf)
        code = self._child.wait()
        if code == EXIT_STOPPED and place.rank:
            return  # saved with the others: what becomes of the job is the first task's to say
        if code:
            raise SystemExit(f"herd ended with exit status {code}; its own words stand above")

    def checkpoint(self) -> Any:
        """Let the process save and end, and return what is to be queued."""
        from submitit.helpers import DelayedSubmission

        self._child.terminate()
        # called by a signal's handler, in the midst of the wait above, which holds the lock of another one
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Process(self.arguments))


def _deaf() -> None:
    """Ignore Slurm's warnings, which reach every process of a task: its first one passes them on."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def submit(arguments: Sequence[str], job: Job, *, logs: Path, gpus: bool, grace_seconds: float) -> Any:
    """Submit `herd ARGUMENTS`; return submitit's job. Raises ConfigError where submitit or Slurm is missing.

    gpus: whether each task gets a GPU. grace_seconds: how long before its end a job is warned.
    """
    try:
        import submitit
    except ImportError:
        raise ConfigError("--slurm needs submitit: pip install 'herd[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=job.cluster, slurm_max_num_timeout=job.requeues)
    except RuntimeError as error:
        raise ConfigError(f"--slurm: {error}; run this where `sbatch` is, or try it with cluster=local") from None
    more = {f"slurm_{name}": value for name in ("partition", "account") if (value := getattr(job, name))}
    executor.update_parameters(
        name="herd",
        nodes=job.nodes,
        tasks_per_node=job.tasks,
        gpus_per_node=job.tasks if gpus else 0,
        cpus_per_task=job.cpus,
        timeout_min=job.minutes,
        slurm_signal_delay_s=round(grace_seconds) + 30,
        **more,
    )
    return executor.submit(Process(arguments))
