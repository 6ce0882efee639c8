"""Without the extras that serving and structured output need, one clear line says which one to install."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from serving import running
from standins import ScriptedEngine

SERVE = "import sys; sys.modules[sys.argv.pop(1)] = None; import herd.__main__; herd.__main__.main()"
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client"])
def test_serving_without_its_extra_says_what_to_install(missing: str) -> None:
    command = [sys.executable, "-c", SERVE, missing, "serve", "no-such-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    assert done.returncode == 2
    assert "pip install 'herd[serve]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [{"response_format": SCHEMA}, {"tools": [TOOL], "tool_choice": "required"}])
def test_a_server_without_llguidance_refuses_what_needs_it_and_answers_the_rest(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    hello = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    with running({"m": ScriptedEngine()}) as server:
        refused, content = server.send("/v1/chat/completions", json.dumps(hello | options).encode())
        assert refused.status == 400
        assert "pip install 'herd[grammar]'" in json.loads(content)["error"]["message"]
        assert server.send("/v1/chat/completions", json.dumps(hello).encode())[0].status == 200
