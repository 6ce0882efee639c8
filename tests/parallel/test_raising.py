"""A whole herd raised by two processes on several meshes is the herd of one; a process that fails is told once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from herd.base.ledger import Ledger, Record
from tests.conftest import ROOT, TOY, herd

MESHES = ["parallel.dp_shard=2", "meshes.pretrain.tp=2", "meshes.long-context.cp=2", "meshes.sft.cp=2"]
MESHES += ["meshes.sft/flagship.tp=2", "meshes.dpo/flagship.tp=2"]
CLOSE = 5e-5  # of a loss in nats: hundreds of updates amplify the order of sums


def stages(run: Path) -> dict[str, Record]:
    return {r.step: r for r in Ledger(run / "ledger.jsonl").records if r.kind == "stage"}


def trained(run: Path) -> dict[str, Record]:
    return {step: record for step, record in stages(run).items() if "loss_last" in record.facts}


@pytest.mark.slow
def test_two_processes_raise_the_herd_of_one(toy_run: Path, tmp_path: Path) -> None:
    done = herd("raise", str(TOY), *MESHES, "--nproc", "2", "--run", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    alone, together = trained(toy_run), trained(tmp_path / "run")
    assert together.keys() == alone.keys()
    for step, record in together.items():
        assert record.cost["devices"] == 2
        for name in ("steps", "tokens", "parameters"):
            assert record.facts[name] == alone[step].facts[name], step
        for name in ("loss_first", "loss_last"):
            assert record.facts[name] == pytest.approx(alone[step].facts[name], abs=CLOSE), step
    meshes = {step: record.cost["mesh"] for step, record in together.items()}
    assert (meshes["pretrain"], meshes["anneal"], meshes["sft/small"]) == ("tp 2", "dp_shard 2", "cp 2")
    lines = [(run / "metrics/pretrain.jsonl").read_text().count("\n") for run in (toy_run, tmp_path / "run")]
    assert lines[0] == lines[1]
    # another mesh is not another recipe: everything is kept
    again = herd("raise", str(TOY), "parallel.dp_replicate=2", "--nproc", "2", "--run", str(tmp_path / "run"))
    assert again.returncode == 0, again.stderr
    assert "pretrain: kept" in again.stdout
    assert "running" not in again.stdout


def test_meshes_that_do_not_fit_are_refused_before_a_process_starts(tmp_path: Path) -> None:
    done = herd("raise", str(TOY), "parallel.tp=2", "--nproc", "2", "--run", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr.strip() == "herd: parallel (distil/small): tp 2 doesn't divide n_kv_heads 1; 1 does"
    assert not (tmp_path / "run").exists()
    alone = herd("raise", str(TOY), "parallel.dp_shard=2", "--run", str(tmp_path / "run"))
    assert alone.returncode == 2
    assert "= 2 ranks, but 1 processes run" in alone.stderr


def test_an_error_is_told_once_with_its_rank(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text('{"id": 1, "text": \n' * 4)
    more = ["parallel.dp_shard=2", "--nproc", "2", "--run", str(tmp_path / "run")]
    done = herd("raise", str(TOY), f"corpus={corpus}", *more)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("rank 0 of 2: herd: ")


@pytest.mark.slow
def test_torchrun_does_the_same(toy_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "herd"]
    # torchrun takes --run for an option of its own
    command += ["pretrain", str(TOY), "parallel.dp_shard=2", "--into", str(tmp_path / "run")]
    for verb in ("curate", "tokenizer"):
        alone = herd(verb, str(TOY), "parallel.dp_shard=2", "--run", str(tmp_path / "run"))
        assert alone.returncode == 0, alone.stderr
    env = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    loss = trained(tmp_path / "run")["anneal"].facts["loss_last"]
    assert loss == pytest.approx(trained(toy_run)["anneal"].facts["loss_last"], abs=CLOSE)
