"""`herd serve` as a process: a run's models, its guard's self-test, signals, and what the log says."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import ROOT, herd
from standins import WordGuard

from herd.base.errors import RunError
from herd.base.messages import Message
from herd.guard.classifier import Verdict
from herd.serve.selftest import PLAIN, Known, check_guard

NO_END = {str(i): -100 for i in range(512, 768)}  # the toy's control tokens, and some more
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


class Process:
    """`herd serve` on a port of its own, as whoever starts it has it: a process and an address."""

    def __init__(self, run: Path, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.began = time.monotonic()
        command = [sys.executable, "-m", "herd", "serve", str(run), "--no-guard", "--port", str(port)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with log.open("w") as stderr:
            self.own = subprocess.Popen(command, stderr=stderr, text=True, cwd=ROOT, env=environment)
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=30)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self.own.kill()
        self.own.wait()

    def first_answer(self) -> float:
        """Ask until there is an answer; return the seconds from the start of the process to it."""
        until = time.monotonic() + 120
        while time.monotonic() < until and self.own.poll() is None:
            try:
                self.client.completions.create(model="flagship/base", prompt="Once", max_tokens=1)
                return time.monotonic() - self.began
            except openai.APIConnectionError:
                time.sleep(0.05)
        raise AssertionError("no answer")

    def long_stream(self) -> Iterator[Any]:
        """Return a stream that goes on for as long as the context holds, begun."""
        stream = iter(
            self.client.completions.create(
                model="flagship/base", prompt="Once", n=16, max_tokens=900, stream=True, logit_bias=NO_END
            )
        )
        next(stream)
        return stream

    def refuses(self) -> bool:
        """Wait until new requests are refused because the server drains; the signal is seen by then."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                self.client.completions.create(model="flagship/base", prompt="Once", max_tokens=1)
            except openai.InternalServerError as refused:
                return refused.code == "draining"
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_run_is_served_until_a_signal(toy_run: Path, tmp_path: Path) -> None:
    with Process(toy_run, free_port(), tmp_path / "log") as served:
        served.first_answer()
        listed = {model.id: model.model_dump()["herd"] for model in served.client.models.list().data}
        assert next(iter(listed)) == "flagship"
        assert listed["flagship"]["guard"] is None
        assert listed["flagship/base"]["base"]
        sibling = next(name for name in listed if not name.startswith("flagship"))
        secret = "Of this the log says nothing"
        for model in ("flagship", sibling):
            answer = served.client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": secret}], max_tokens=4
            )
            assert answer.usage is not None
            assert 0 < answer.usage.completion_tokens <= 4
        served.own.send_signal(signal.SIGTERM)
        assert served.own.wait(timeout=20) == 0
    log = (tmp_path / "log").read_text()
    rows = [json.loads(line) for line in log.splitlines()]
    assert [row["guard"] for row in rows if row["event"] == "serving"] == [None]
    assert any(row["event"].startswith("no guard") for row in rows)
    requests = [row for row in rows if row["event"] == "request" and row["path"].endswith("chat/completions")]
    assert [row["status"] for row in requests] == [200, 200]
    assert all(row["prompt_tokens"] > 0 and row["finish"] for row in requests)
    assert secret not in log


@pytest.mark.slow
def test_a_server_killed_while_it_streams_is_back_within_its_load_time(toy_run: Path, tmp_path: Path) -> None:
    port = free_port()
    with Process(toy_run, port, tmp_path / "log") as cold:
        usual = cold.first_answer()
        stream = cold.long_stream()
        cold.own.kill()
        with pytest.raises(openai.APIConnectionError):
            list(stream)
        cold.own.wait()
        # its connections are still being closed by the system: the same port must be had all the same
        with Process(toy_run, port, tmp_path / "log") as again:
            assert again.first_answer() < 2 * usual + 2


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_a_process_drains_on_the_first_signal_and_stops_on_the_second(
    toy_run: Path, tmp_path: Path, signals: int
) -> None:
    with Process(toy_run, free_port(), tmp_path / "log") as served:
        served.first_answer()
        stream = served.long_stream()
        served.own.send_signal(signal.SIGTERM)
        assert served.refuses()
        if signals == 2:
            served.own.send_signal(signal.SIGTERM)
            with pytest.raises(openai.APIConnectionError):
                list(stream)
        else:
            finished = [choice.finish_reason for chunk in stream for choice in chunk.choices if choice.finish_reason]
            assert finished == ["length"] * 16
        assert served.own.wait(timeout=20) == 0
