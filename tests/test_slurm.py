"""Slurm jobs, tried on submitit's local executor: each task gets its place, and what isn't Slurm's is refused."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from herd.base.errors import ConfigError
from herd.base.ledger import Ledger
from herd.runtime.slurm import Job, submit
from tests.conftest import TOY, herd

pytest.importorskip("submitit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes", "'nodes' is not KEY=VALUE with one of nodes, tasks, minutes"),
        ("node=2", "'node=2' is not KEY=VALUE"),
        ("nodes=two", "nodes is a whole number, not 'two'"),
        ("nodes=0", "are at least 1"),
        ("cluster=aws", "cluster is 'slurm' or 'local', not 'aws'"),
    ],
)
def test_what_is_no_job_is_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="--slurm") as caught:
        Job.parse(text)
    assert message in str(caught.value)


def test_a_job_is_read() -> None:
    assert Job.parse("nodes=2,tasks=8,minutes=90,partition=h100").processes == 16


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="cluster=local"):
        submit(["raise"], Job(), logs=tmp_path, gpus=False, grace_seconds=1)


@pytest.mark.slow
def test_tasks_train_together_and_failures_are_failures(tmp_path: Path) -> None:
    for verb in ("curate", "tokenizer"):
        assert herd(verb, str(TOY), "--run", str(tmp_path / "run")).returncode == 0
    command = ["pretrain", str(TOY), "parallel.dp_shard=2", "--run", str(tmp_path / "run")]
    job = Job.parse("tasks=2,cluster=local,minutes=5")
    submit(command, job, logs=tmp_path / "logs", gpus=False, grace_seconds=5).results()
    assert (tmp_path / "run/flagship/base/config.json").is_file()
    failing = submit([*command, "pretrain.tokens=1"], job, logs=tmp_path / "logs", gpus=False, grace_seconds=5)
    with pytest.raises(Exception, match="exit status 2"):
        failing.results()
    assert "made by another recipe" in (failing.stderr() or "")


@pytest.mark.slow
def test_warned_it_saves_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    for verb in ("curate", "tokenizer"):
        assert herd(verb, str(TOY), "--run", str(tmp_path / "run")).returncode == 0
    command = ["pretrain", str(TOY), "parallel.dp_shard=2", "checkpoints.steps=2", "--run", str(tmp_path / "run")]
    job = submit(
        command, Job.parse("tasks=2,cluster=local,minutes=5"), logs=tmp_path / "logs", gpus=False, grace_seconds=5
    )
    checkpoints = tmp_path / "run/checkpoints/pretrain"
    while not list(checkpoints.glob("step-????????")):
        with suppress(subprocess.TimeoutExpired):
            job._process.wait(0.02)
            pytest.fail(f"it ended before it had saved anything: {job.stderr()}")
    children = Path(f"/proc/{job._process.pid}/task/{job._process.pid}/children").read_text().split()
    for task in children:  # as Slurm does
        os.kill(int(task), signal.SIGUSR2)
    job.results()
    ends = [r.facts["why"] for r in Ledger(tmp_path / "run/ledger.jsonl").records if r.kind == "end"]
    assert len(ends) == 1
    assert ends[0].startswith("SIGTERM: saved at step ")
    assert (tmp_path / "run/flagship/base/config.json").is_file()
