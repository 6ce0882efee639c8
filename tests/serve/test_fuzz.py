"""Requests drawn from the server's own OpenAPI document, fitting it and not: none makes it fail, whatever it says."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from serving import offer
from standins import ScriptedEngine, WordGuard

from herd.serve.app import build_app
from herd.serve.config import ServeConfig
from herd.serve.metrics import Metrics
from herd.serve.models import Models
from herd.serve.sentry import Sentry
from herd.serve.service import Service

schemathesis = pytest.importorskip("schemathesis")
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "Hello"}]},
    "/v1/completions": {"model": "m/base"},
}


@pytest.fixture(scope="module")
def operations() -> Iterator[dict[str, Any]]:
    models = Models([offer("m", ScriptedEngine()), offer("m/base", ScriptedEngine(), base=True)], most_open=500)
    metrics = Metrics()
    # not on loopback, where only requests to that name are answered
    config = ServeConfig(host="0.0.0.0", max_tokens=8)
    service = Service(models, config, Sentry(WordGuard(), name="guard", metrics=metrics), metrics)
    stop, service.stop = service.stop, lambda: None  # to the client each request is a life of the application
    schema = schemathesis.openapi.from_asgi("/openapi.json", build_app(service))
    yield {found.ok().path: found.ok() for found in schema.get_all_operations()}
    stop()


def draw(operation: Any, mode: Any) -> set[int]:
    """Ask 40 times or more; return the statuses that came."""
    statuses: set[int] = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=40,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        hold(case)
        if isinstance(case.body, dict):  # the same with what else most drawn requests fail at
            case.body |= GOOD[case.path]
            hold(case)

    def hold(case: Any) -> None:
        response = case.call()
        statuses.add(response.status_code)
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert set(json.loads(response.text)["error"]) == {"message", "type", "param", "code"}

    ask()
    return statuses


@pytest.mark.parametrize("path", GOOD)
def test_requests_of_the_documented_kind_are_answered_or_refused(operations: dict[str, Any], path: str) -> None:
    assert 200 in draw(operations[path], schemathesis.GenerationMode.POSITIVE)


@pytest.mark.parametrize("path", GOOD)
def test_requests_of_no_documented_kind_are_refused(operations: dict[str, Any], path: str) -> None:
    assert 400 in draw(operations[path], schemathesis.GenerationMode.NEGATIVE)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/models/{name}", "/v1/models", "/health", "/ready", "/metrics"])
def test_all_else_never_fails(operations: dict[str, Any], path: str) -> None:
    assert draw(operations[path], schemathesis.GenerationMode.POSITIVE) <= {200, 404}
