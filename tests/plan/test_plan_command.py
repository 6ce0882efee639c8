"""`herd plan` as it is typed: sections, widths, JSON, and mistakes told in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LARGE = ("llama3.1-405b", "--gpus", "16384", "--seq", "8K", "--batch", "16M")


def plan(*arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "herd", "plan", *arguments]
    env = dict(os.environ) | {"COLUMNS": str(columns), "TERM": "dumb", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120, check=False)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_plan_fits_the_terminal(columns: int) -> None:
    done = plan(*LARGE, "--tokens", "15.6T", "--price", "2.5", "--location", "383", columns=columns)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= columns
    for text in ("405,853,388,800", "2,048 rows of 8,192", "GiB", "exposed", "bubble", "MFU", "tCO2e", "days", "cost"):
        assert text in done.stdout


def test_a_search_lists_what_fits_and_what_does_not() -> None:
    done = plan(*LARGE, "--search")
    assert done.returncode == 0, done.stderr
    assert "meshes fit" in done.stdout
    assert "GiB too much" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_json_is_the_same_in_plain_units() -> None:
    done = plan("meadow", "--gpus", "2", "--json", "--tokens", "1M")
    found = json.loads(done.stdout)
    assert found["fits"]
    assert found["step_seconds"] == pytest.approx(sum(found["seconds"].values()))
    assert found["tokens_per_second"] == pytest.approx(found["batch_tokens"] / found["step_seconds"])
    assert found["bill"]["tokens"] == 1e6
    assert (found["row_length"], found["batch_tokens"]) == (256, 2048)


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "say which MODEL to plan"),
    (("llama9",), "MODEL 'llama9' is no published shape (llama3-8b,"),
    (("llama3.1-8b", "--gpu", "h10"), "no facts about a card 'h10'; there are h100,"),
    (("llama3.1-8b", "--tp", "3"), "tp 3 = 3 ranks don't divide 8 cards"),
    (("llama3.1-8b", "--batch", "100000"), "a step of 100,000 tokens is no whole number of rows of 8,192; 98,304 is"),
    (("llama3.1-8b", "--batch", "4X"), "--batch '4X' is not a number such as 8192 or 16M"),
    (("llama3.1-8b", "--schedule", "GPipe"), "schedule: Input should be '1F1B'"),
    (("llama3.1-8b", "--gpu", "a100", "--float8"), "A100 SXM 80 GB has no float8 products"),
    (("llama3.1-8b", "--trainer", "mine"), "--trainer 'mine' is not one of herd, paper, torchtitan"),
    (("llama3.1-8b", "--tokens", "1T", "--useful", "2"), "--useful 2.0 is a share between 0 and 1"),
    (("llama3.1-8b", "--dp-replicate", "8"), "GiB too much for a H100 SXM; dp_replicate 4 x "),
])  # fmt: skip
def test_mistakes_are_one_line_and_status_2(arguments: tuple[str, ...], message: str) -> None:
    done = plan(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("herd: ")
    assert message in line


def test_the_closed_form_needs_no_torch() -> None:
    names = [f"herd.plan.{file.stem}" for file in (ROOT / "herd/plan").glob("*.py") if file.stem != "simulate"]
    code = f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"
