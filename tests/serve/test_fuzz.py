"""Requests drawn from the server's own OpenAPI document: none makes it fail, whatever it says to them."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from serving import offer
from standins import ScriptedEngine

from herd.serve.app import build_app
from herd.serve.config import ServeConfig
from herd.serve.models import Models
from herd.serve.service import Service

schemathesis = pytest.importorskip("schemathesis")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/models/{name}"])
def test_no_request_of_the_documented_kind_is_a_failure(path: str) -> None:
    engine = ScriptedEngine()
    # not on loopback, where only requests to that name are answered
    service = Service(Models([offer("m", engine)], most_open=500), ServeConfig(host="0.0.0.0", max_tokens=8))
    schema = schemathesis.openapi.from_asgi("/openapi.json", build_app(service))
    (operation,) = [found.ok() for found in schema.get_all_operations() if found.ok().path == path]
    statuses: set[int] = set()

    @given(case=operation.as_strategy())
    @settings(
        max_examples=40,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            case.body["model"] = "m"  # any other gets no further
        response = case.call()
        statuses.add(response.status_code)
        assert response.status_code < 500, response.text

    ask()
    assert 200 in statuses or path.startswith("/v1/models/")  # some got as far as the engine
    service.stop()
