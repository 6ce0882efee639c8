"""When things go wrong: bad requests, full queues, clients that leave, engines that fail, signals."""

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import ValidationError
from serving import Running, running
from standins import ScriptedEngine

from herd.base.errors import ConfigError
from herd.base.messages import Message
from herd.guard.classifier import Verdict
from herd.serve.app import build_app
from herd.serve.config import ServeConfig, read_keys
from herd.serve.schema import ChatRequest, CompletionRequest
from herd.serve.server import Connection

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def soon(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return bool(condition())


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running({"m": ScriptedEngine(), "m/base": ScriptedEngine()}, max_body=100_000) as it:
        yield it


def changed(**fields: Any) -> bytes:
    return json.dumps(HELLO | fields).encode()


def called(arguments: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


TOOL = {"type": "function", "function": {"name": "f"}}
BAD_BODIES = {
    b"": 400,
    b"{": 400,
    b"\xff\xfe": 400,
    b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}': 400,
    b"[" * 50_000: 400,
    b"null": 400,
    b'{"a": 1' + b"0" * 5000 + b"}": 400,
    changed(messages=[]): 400,
    changed(messages="Hello"): 400,
    changed(messages=[{"role": "wizard", "content": "x"}]): 400,
    changed(messages=[{"role": "user"}]): 400,
    changed(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]): 400,
    changed(messages=[{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]): 400,
    changed(messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1"}}]}]): 400,
    changed(
        messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 9999}}]}]
    ): 400,
    changed(temperature=float("nan")): 400,
    changed(temperature=-1): 400,
    changed(temperature="hot"): 400,
    changed(top_p=0): 400,
    changed(n=0): 400,
    changed(n=128): 400,
    changed(max_tokens=0): 400,
    changed(seed=1 << 70): 400,
    changed(stop=[""]): 400,
    changed(logit_bias={"x": 1}): 400,
    changed(top_logprobs=3): 400,
    changed(wizardry=True): 400,
    changed(tool_choice="required"): 400,
    changed(tools=[TOOL, TOOL]): 400,
    changed(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}): 400,
    changed(tools=[TOOL], response_format={"type": "json_object"}): 400,
    changed(response_format={"type": "json_schema"}): 400,
    changed(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wizard"}}}): 400,
    changed(messages=[{"role": "user", "content": "x" * 5000}]): 400,
    changed(model="\ud800"): 404,
    changed(model="m/base"): 400,
    changed(user="x" * 200_000): 413,
}


@pytest.mark.parametrize(("body", "status"), BAD_BODIES.items(), ids=lambda value: repr(value)[:60])
def test_a_bad_request_is_told_what_is_wrong_with_it(server: Running, body: bytes, status: int) -> None:
    response, content = server.send(CHAT, body)
    assert response.status == status, content
    error = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", ["[]", '[""]', "[[]]", "[99999]", "[-1]", "[[0], []]", '"' + "x" * 5000 + '"', "{}"])
def test_bad_prompts_of_completions(server: Running, prompt: str) -> None:
    response, content = server.send("/v1/completions", b'{"model": "m/base", "prompt": %s}' % prompt.encode())
    # an empty text is begin_of_text alone, which is fine
    assert response.status == (200 if prompt == '[""]' else 400), content


def test_odd_but_valid_requests_are_answered(server: Running) -> None:
    odd = [
        changed(messages=[{"role": "user", "content": "\ud800"}]),
        changed(messages=[{"role": "assistant", "content": None}]),
        changed(messages=[{"role": "user", "content": []}]),
        changed(messages=[{"role": "system", "content": "<|eot_id|>"}, {"role": "user", "content": ""}]),
        changed(seed=-(1 << 63), metadata={"a": 1}, user="me", store=False),
        changed(tools=[TOOL | {"function": {"name": "f", "parameters": {"properties": {"x": {}}}}}]),
        changed(tools=[TOOL | {"function": {"name": "f", "parameters": {"properties": 3, "type": []}}}]),
    ]
    for body in odd:
        response, content = server.send(CHAT, body)
        assert response.status in (200, 400), content
        assert response.status == 200 or b'"properties": 3' in body


def test_unknown_places_and_methods(server: Running) -> None:
    for path, body, status in [("/v1/nothing", b"{}", 404), (CHAT, None, 405), ("/v1/models/%ff", None, 404)]:
        response, content = server.send(path, body)
        assert response.status == status
        assert json.loads(content)["error"]["type"] == "invalid_request_error"


MANY = 30_000
FLOODS: list[dict[str, Any]] = [
    {"messages": [1] * MANY},
    {"messages": [{"role": "user", "content": [1] * MANY}]},
    {"messages": [{"role": "assistant", "tool_calls": [1] * MANY}]},
    {"messages": [], "tools": [1] * MANY},
    {"messages": [], "stop": [1] * MANY},
    {"messages": HELLO["messages"], "logit_bias": {str(i): "x" for i in range(MANY)}},
    {"messages": HELLO["messages"], **{f"field {i}": 1 for i in range(MANY)}},
    {"prompt": [None] * MANY},
    {"prompt": [[None]] * MANY},
]


@pytest.mark.parametrize("fields", FLOODS, ids=lambda fields: f"{next(reversed(fields))}"[:20])
def test_a_body_full_of_mistakes_is_not_reported_mistake_by_mistake(fields: dict[str, Any]) -> None:
    kind = CompletionRequest if "prompt" in fields else ChatRequest
    with pytest.raises(ValidationError) as refused:
        kind.model_validate({"model": "m"} | fields)
    assert refused.value.error_count() < 10


def test_embeddings_are_refused_in_words(server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="no model here makes embeddings") as refused:
        server.client().embeddings.create(model="m", input="Hello")
    assert refused.value.code == "no_embedding_model"


def test_a_body_without_its_length_is_counted(server: Running) -> None:
    connection = HTTPConnection(server.url.removeprefix("http://"), timeout=20)
    pieces = iter([b"x" * 60_000] * 3)
    connection.request("POST", CHAT, pieces, {"Content-Type": "application/json"}, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "body_too_large"
    response.close()
    connection.close()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /", None])
def test_a_request_that_does_not_come_is_given_up(sent: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "patience", 0.3)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    with running({"m": ScriptedEngine()}, body_seconds=0.3) as server:
        server.server.config.timeout_keep_alive = 1
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as raw:
            raw.sendall(head.encode() + b"{" if sent is None else sent)
            got = b"".join(iter(lambda: raw.recv(1000), b""))  # ends: the server closes the connection
        assert got.startswith(b"HTTP/1.1 408") if sent is None else b"408" not in got
        assert server.idle()


def test_the_page_and_the_facts(server: Running) -> None:
    response, content = server.send("/", None)
    assert response.status == 200
    assert b"<!doctype html>" in content
    assert response.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert server.send("/health", None)[0].status == 200
    assert server.send("/ready", None)[0].status == 200
    server.send(CHAT, changed())
    metrics = server.send("/metrics", None)[1].decode()
    assert 'herd_requests_total{path="/v1/chat/completions",status="200"}' in metrics
    assert 'herd_time_to_first_token_seconds_count{model="m"}' in metrics
    assert 'herd_cache_blocks{model="m"} 100.0' in metrics
    schema = json.loads(server.send("/openapi.json", None)[1])
    assert CHAT in schema["paths"]


def test_keys_are_asked_for_where_there_are_some(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nsecret\n\nother\n")
    with running({"m": ScriptedEngine()}, keys=read_keys(file), cors=("https://page.example",)) as server:
        for key in ("any", "secre", "# ours"):
            with pytest.raises(openai.AuthenticationError):
                server.client(api_key=key).chat.completions.create(**HELLO)
        for key in ("secret", "other"):
            assert server.client(api_key=key).models.list().data
        assert server.send("/ready", None)[0].status == 200
        refused, _ = server.send("/v1/models", None, Origin="https://page.example")
        assert refused.status == 401
        assert refused.headers["Access-Control-Allow-Origin"] == "https://page.example"
        foreign, _ = server.send("/v1/models", None, Origin="https://other.example")
        assert "Access-Control-Allow-Origin" not in foreign.headers
        assert server.send("/metrics")[0].status == 401
        assert server.send("/metrics", Authorization="Bearer other")[0].status == 200
    with running({"m": ScriptedEngine()}, keys=read_keys(file), metrics_open=True) as server:
        assert server.send("/metrics")[0].status == 200
        assert server.send("/v1/models")[0].status == 401
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(file)


@pytest.mark.parametrize("limits", [{"port": 70000}, {"max_waiting": -1}, {"max_tokens": 0}, {"window": 0}])
def test_limits_that_make_no_sense_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        ServeConfig(**limits)


def test_a_full_queue_turns_away_and_says_when_to_come_again() -> None:
    engine = ScriptedEngine()
    engine.hold.clear()
    with running({"m": engine}, slots=1, max_waiting=1, max_tokens=2) as server:
        client = server.client()
        streams = [client.chat.completions.create(**HELLO, stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(**HELLO)
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        assert refused.value.code == "queue_full"
        engine.hold.set()
        for stream in streams:
            assert list(stream)[-1].choices[0].finish_reason == "length"  # the server's own limit
        assert client.chat.completions.create(**HELLO).choices[0].message.content == "He"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_ends_its_work_at_once(streamed: bool) -> None:
    engine = ScriptedEngine(lambda prompt: "x" * 3000)
    engine.hold.clear()
    with running({"m": engine}) as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = changed(stream=streamed, n=3)
        with socket.create_connection((host, int(port))) as raw:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert soon(lambda: len(engine.asked) == 3)
            assert not streamed or raw.recv(100)
        assert soon(lambda: sorted(engine.cancelled) == [1, 2, 3], 1.0)
        assert server.idle()
        engine.hold.set()
        assert server.send("/ready", None)[0].status == 200


def test_an_engine_that_fails_is_an_error_in_the_right_shape() -> None:
    engine = ScriptedEngine()
    with running({"m": engine}) as server:
        engine.failing = True
        client = server.client()
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(**HELLO)
        assert refused.value.body == {
            "message": "the server failed on this request; its log says why",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
        with pytest.raises(openai.APIError, match="its log says why"):
            list(client.chat.completions.create(**HELLO, stream=True))
        engine.failing = False
        assert client.chat.completions.create(**HELLO).choices[0].message.content == "Hello."


def test_what_the_guard_could_not_judge_is_not_sent() -> None:
    class Failing:
        def classify(self, conversations: Sequence[Sequence[Message]]) -> list[Verdict]:
            if conversations[0][-1].role == "user":
                return [Verdict(True)] * len(conversations)
            raise RuntimeError("out of memory")

    with running({"m": ScriptedEngine()}, guard=Failing()) as server:
        with pytest.raises(openai.InternalServerError):
            server.client().chat.completions.create(**HELLO)
        _, content = server.send(CHAT, changed(stream=True))
        assert b"Hello" not in content
        assert b"its log says why" in content
        assert server.idle()


def test_the_first_signal_drains_and_the_second_stops() -> None:
    engine = ScriptedEngine()
    engine.hold.clear()
    with running({"m": engine}) as server:
        stream = server.client().chat.completions.create(**HELLO, stream=True)
        server.server.handle_exit(signal.SIGTERM, None)
        assert server.send("/ready", None)[0].status == 503
        response, content = server.send(CHAT, changed())
        assert response.status == 503
        assert json.loads(content)["error"]["code"] == "draining"
        engine.hold.set()
        said = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
        assert said == "Hello."
        assert soon(lambda: server.server.should_exit)


def test_the_second_signal_ends_what_is_under_way() -> None:
    engine = ScriptedEngine()
    engine.hold.clear()
    with running({"m": engine}) as server:
        stream = server.client().chat.completions.create(**HELLO, stream=True)
        for _ in range(2):
            server.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(openai.APIConnectionError):
            list(stream)
        assert server.idle()


def test_a_model_is_opened_when_first_asked_for_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with running({"m": ScriptedEngine()}) as server:
        opened: list[str] = []
        models, real = server.service.models, server.service.models.open
        monkeypatch.setattr(models, "open", lambda offer: (opened.append(offer.id), time.sleep(0.1), real(offer))[2])

        async def many() -> None:
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
                await asyncio.gather(*(client.chat.completions.create(**HELLO) for _ in range(5)))

        asyncio.run(many())
        assert opened == ["m"]


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:99", 200), ("[::1]:1", 200), ("evil.example", 403), ("localhost.example:80", 403)],
)
def test_a_name_made_to_point_here_opens_nothing(server: Running, host: str, status: int) -> None:
    response, content = server.send("/v1/models", None, Host=host)
    assert response.status == status
    assert status == 200 or json.loads(content)["error"]["code"] == "unknown_host"


def test_with_keys_or_on_a_network_any_name_will_do() -> None:
    assert ServeConfig(host="0.0.0.0").known_as("api.example")
    assert ServeConfig(keys=frozenset((b"digest",))).known_as("api.example")


def test_a_request_for_millions_of_answers_is_refused_before_any_is_made(server: Running) -> None:
    body = json.dumps({"model": "m/base", "prompt": [[1]] * 10_000, "n": 128}).encode()
    began = time.process_time()
    response, content = server.send("/v1/completions", body)
    assert response.status == 400
    assert json.loads(content)["error"]["message"].startswith("1280000 answers in one request")
    assert time.process_time() - began < 2


def test_a_field_of_the_clients_own_is_not_sent_back_whole(server: Running) -> None:
    response, content = server.send(CHAT, changed(**{"x" * 50_000: 1}))
    assert response.status == 400
    assert len(content) < 500


def test_a_request_that_is_only_slow_to_be_answered_is_not_hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "patience", 0.2)
    engine = ScriptedEngine()
    engine.hold.clear()
    with running({"m": engine}, body_seconds=0.2, send_seconds=0.2) as server:
        threading.Timer(0.6, engine.hold.set).start()
        assert server.client().chat.completions.create(**HELLO).choices[0].message.content == "Hello."


def test_a_client_that_stops_reading_gives_its_place_back() -> None:
    engine = ScriptedEngine()
    engine.hold.clear()
    with running({"m": engine}, send_seconds=0.2) as server:
        asked = iter([{"type": "http.request", "body": changed(stream=True), "more_body": False}])

        async def receive() -> Any:
            return next(asked, None) or await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        head = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": head, "query_string": b"", "root_path": ""}
        asyncio.run(asyncio.wait_for(build_app(server.service)(scope, receive, send), 10))
        assert soon(lambda: engine.cancelled == [1])
        assert not server.service.active


def test_a_model_that_cant_be_opened_names_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(offer: object) -> None:
        raise ConfigError("/srv/models/secret: truncated")

    with running({"m": ScriptedEngine()}) as server:
        monkeypatch.setattr(server.service.models, "open", fail)
        response, content = server.send(CHAT, changed())
    assert response.status == 503
    assert b"secret" not in content
