"""`herd serve` as a process: a run's models, its guard's self-test, signals, and what the log says."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import openai
import pytest
from conftest import ROOT, herd
from standins import WordGuard

from herd.base.errors import RunError
from herd.base.messages import Message
from herd.guard.classifier import Verdict
from herd.serve.selftest import PLAIN, Known, check_guard

KNOWN = [Known("How to kill?", False), Known("How to bake?", True)] * 4


class Constant:
    """A guard that always says the same."""

    def __init__(self, safe: bool) -> None:
        self.safe = safe

    def classify(self, conversations: Sequence[Sequence[Message]]) -> list[Verdict]:
        return [Verdict(self.safe)] * len(conversations)


def test_a_guard_must_know_the_known_answers() -> None:
    assert check_guard(WordGuard(), KNOWN, name="guard") == 8
    assert check_guard(WordGuard(), PLAIN, name="guard") == 2
    for safe, kind in ((True, "harmful"), (False, "harmless")):
        with pytest.raises(RunError, match=f"it judged 0 of 4 {kind} messages"):
            check_guard(Constant(safe), KNOWN, name="guard")


def test_a_guard_that_fails_its_self_test_serves_nobody(toy_run: Path) -> None:
    done = herd("serve", str(toy_run), "--port", "0")
    assert done.returncode == 2
    assert "failed its self-test" in done.stderr
    assert "--no-guard" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_is_served_until_a_signal(toy_run: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "herd", "serve", str(toy_run), "--no-guard", "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0) as client:
            until = time.monotonic() + 60
            while time.monotonic() < until and process.poll() is None:
                try:
                    listed = {model.id: model.model_dump()["herd"] for model in client.models.list().data}
                    break
                except openai.APIConnectionError:
                    time.sleep(0.2)
            assert next(iter(listed)) == "flagship"
            assert listed["flagship"]["guard"] is None
            assert listed["flagship/base"]["base"]
            sibling = next(name for name in listed if not name.startswith("flagship"))
            secret = "Of this the log says nothing"
            for model in ("flagship", sibling):
                answer = client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": secret}], max_tokens=4
                )
                assert answer.usage is not None
                assert 0 < answer.usage.completion_tokens <= 4
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    rows = [json.loads(line) for line in log.splitlines()]
    assert [row["guard"] for row in rows if row["event"] == "serving"] == [None]
    assert any(row["event"].startswith("no guard") for row in rows)
    requests = [row for row in rows if row["event"] == "request" and row["path"].endswith("chat/completions")]
    assert [row["status"] for row in requests] == [200, 200]
    assert all(row["prompt_tokens"] > 0 and row["finish"] for row in requests)
    assert secret not in log
