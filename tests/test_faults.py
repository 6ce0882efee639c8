"""kill -9 at random moments, then the same command: the facts end up as if nothing had happened."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from herd.base.goodput import account, attempt_of
from herd.base.ledger import Ledger
from herd.runtime.signals import EXIT_STOPPED
from tests.conftest import ROOT, TOY, herd

# (step, how many of its progress reports): 0 is its very beginning
MOMENTS = [("curate", 1), ("pretrain", 0), ("pretrain", 7), ("long-context/512", 1), ("long-context/1024", 4)]
MOMENTS += [("anneal", 4), ("teacher", 3)]
MOMENTS += [("distil/small", 5), ("alone/tiny", 2), ("sft/flagship", 3), ("dpo/flagship", 2), ("guard", 1)]
MOMENTS += [("eval/flagship/instruct", 5), ("card", 0)]


def facts_of(run: Path) -> dict[str, object]:
    """Return the newest facts and written hashes of every step and score; cards carry times, so not theirs."""
    records = Ledger(run / "ledger.jsonl").records
    return {
        f"{r.kind} {r.step}": {"facts": r.facts, "writes": r.writes, "fingerprint": r.fingerprint}
        for r in records
        if r.kind in ("stage", "score") and r.step != "card"
    }


def die(run: Path, step: str, moment: float, by: str = "SIGKILL") -> int:
    """Raise the toy herd until that moment; return the exit status of the process."""
    command = [sys.executable, "-m", "tests.dying", str(TOY), str(run), step, str(moment), by]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=280).returncode


def test_killed_at_random_moments_and_run_again(toy_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    rng = random.Random(20260630)
    chosen = sorted(rng.sample(MOMENTS, 4), key=MOMENTS.index)
    for step, count in chosen:
        assert die(run, step, count) == -signal.SIGKILL, f"{step} never came to report {count}"
    finish(toy_run, run)
    records = Ledger(run / "ledger.jsonl").records
    starts = [r.step for r in records if r.kind == "start"]
    assert len(starts) - len(set(starts)) == len(chosen)
    ends = [r for r in records if r.kind == "end"]
    assert [(r.step, r.facts["why"]) for r in ends] == [(step, "killed") for step, _ in chosen]
    # up to its last heartbeat, which is its first where it lived for less than a second
    assert all("device_hours" in r.cost for r in ends), "what a killed attempt took is in the account"


@pytest.mark.parametrize(("step", "count", "by"), [("pretrain", 7, "SIGTERM"), ("curate", 1, "SIGUSR1")])
def test_told_to_stop_it_saves_and_says_so_and_the_same_command_goes_on(
    tmp_path: Path, step: str, count: int, by: str
) -> None:
    run = tmp_path / "stopped"
    assert die(run, step, count, by) == EXIT_STOPPED
    end = Ledger(run / "ledger.jsonl").records[-1]
    assert (end.kind, end.step) == ("end", step)
    if step == "pretrain":
        assert end.facts["why"] == "SIGTERM: saved at step 8 of 20 and stopped; the same command goes on from there"
        assert max(p.name for p in (run / "checkpoints/pretrain").iterdir()) == "step-00000008"
        assert account([attempt_of(end)])["lost"] == pytest.approx(0, abs=1.0)
        assert len((run / "metrics/pretrain.jsonl").read_text().splitlines()) == 8
    else:
        assert end.facts["why"] == "stopped by SIGUSR1"
        assert account([attempt_of(end)])["lost"] == pytest.approx(end.cost["seconds"], abs=1e-3)


@pytest.mark.slow
def test_killed_by_the_clock_wherever_that_is(toy_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    rng = random.Random(7)
    deaths = [die(run, "random", rng.uniform(3, 12)) for _ in range(4)]
    assert -signal.SIGALRM in deaths
    finish(toy_run, run)


def finish(toy_run: Path, run: Path) -> None:
    """Run to the end, and hold the facts against those of the run that was never killed."""
    done = herd("raise", str(TOY), "checkpoints.seconds=0.1", "--run", str(run))
    assert done.returncode == 0, done.stderr
    assert facts_of(run) == facts_of(toy_run)


def test_a_second_raise_on_one_folder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    from herd.base.run import RunFolder

    with RunFolder(tmp_path / "run").locked():
        done = herd("raise", str(TOY), "--run", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "in use by process" in done.stderr


def test_a_torn_ledger_line_is_cut_and_written_again(toy_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    whole = (toy_run / "ledger.jsonl").read_bytes()
    path.write_bytes(whole[:-40])
    ledger = Ledger(path)
    assert len(ledger.records) == whole.count(b"\n") - 1
    ledger.append("start", "card")
    lines = path.read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"r{n:04d}" for n in range(1, len(lines) + 1)]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (["pretrain.tokenz=5"], "unknown key 'tokenz' at pretrain; did you mean 'tokens'?"),
        (["flagship.dims=64"], "unknown key 'dims' at flagship; did you mean 'dim'?"),
        (["pretrian.tokens=5"], "unknown key 'pretrian' at the top level; did you mean 'pretrain'?"),
        (["pretrain.tokens=many"], "pretrain.tokens"),
        (["flagship.n_kv_heads=3"], "n_heads 4 must be a multiple of n_kv_heads 3"),
        (["corpus=/nowhere/at/all"], "/nowhere/at/all"),
        (["runtime.device=tpu9"], "runtime.device"),
        (["nonsense"], "key=value"),
    ],
)
def test_bad_recipes_get_one_line_and_exit_2(tmp_path: Path, change: list[str], complaint: str) -> None:
    done = herd("raise", str(TOY), *change, "--run", str(tmp_path / "run"))
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_another_recipe_on_the_same_folder_is_refused_with_the_difference(toy_run: Path) -> None:
    done = herd("raise", str(TOY), "pretrain.tokens=50000", "--run", str(toy_run))
    assert done.returncode == 2
    assert "pretrain.tokens was 40000, now 50000" in done.stderr


def test_a_corpus_of_broken_lines_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text('{"id": 1, "text": \n' * 4)
    done = herd("raise", str(TOY), f"corpus={corpus}", "--run", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "a.jsonl:1" in done.stderr or "no document" in done.stderr


def test_a_corpus_smaller_than_one_batch_says_so(tmp_path: Path) -> None:
    text = "The shepherd counted the sheep on the hill and wrote the number down in a small book by the window. "
    (tmp_path / "one.txt").write_text(text + "Later in the evening everyone sat down to eat bread, cheese and soup.")
    done = herd(
        "raise", str(TOY), f"corpus={tmp_path / 'one.txt'}", "tokenizer.vocab_size=520", "--run", str(tmp_path / "run")
    )
    assert done.returncode == 2
    assert "less than one batch" in done.stderr or "sample gives" in done.stderr


def test_a_full_disk_is_noticed_before_starting(tmp_path: Path) -> None:
    done = herd("raise", str(TOY), "meadow.megabytes=100000000", "--run", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "GB free" in done.stderr
