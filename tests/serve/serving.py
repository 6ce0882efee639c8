"""A real server on a loopback port, in a thread of its own."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPResponse
from typing import Any, cast

import openai
from standins import TOKENIZER, ScriptedEngine

from herd.engine.engine import Engine
from herd.serve.app import build_app
from herd.serve.config import ServeConfig
from herd.serve.metrics import Metrics
from herd.serve.models import Models, Offer
from herd.serve.sentry import Classifier, Sentry
from herd.serve.server import Server
from herd.serve.service import Service
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.codec import DialogCodec
from herd.tokenizer.layout import Layout


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    url: str
    service: Service
    server: Server
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, **options: Any) -> openai.OpenAI:
        """Return the official client for it."""
        self.clients.append(openai.OpenAI(base_url=f"{self.url}/v1", max_retries=0, **{"api_key": "any", **options}))
        return self.clients[-1]

    def send(self, path: str, body: bytes | None = None, **headers: str) -> tuple[HTTPResponse, bytes]:
        """POST a body, or GET where there is none; return the response and its content."""
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=20)
        headers = {"Content-Type": "application/json", **headers}
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        content = response.read()
        response.close()
        connection.close()
        return response, content

    def idle(self, seconds: float = 5.0) -> bool:
        """Wait until no request is under way; say whether that came to pass."""
        until = time.monotonic() + seconds
        while self.service.active and time.monotonic() < until:
            time.sleep(0.01)
        return not self.service.active


def offer(name: str, engine: Engine | ScriptedEngine, *, base: bool = False, tokenizer: Tokenizer = TOKENIZER) -> Offer:
    """Return an offer of an engine that is there already."""
    codec = DialogCodec(tokenizer, Layout(tool_prompt="compact"))
    return Offer(name, codec, base, engine.capacity, 1_700_000_000, lambda: cast(Engine, engine))


@contextmanager
def running(
    engines: Mapping[str, Engine | ScriptedEngine], *, guard: Classifier | None = None, **limits: Any
) -> Iterator[Running]:
    """Serve engines by name; those whose name ends in 'base' are base models."""
    config = replace(ServeConfig(port=0), **limits)
    offers = [offer(name, engine, base=name.endswith("base")) for name, engine in engines.items()]
    metrics = Metrics()
    sentry = Sentry(guard, name="guard", metrics=metrics) if guard else None
    service = Service(Models(offers, most_open=config.most_open), config, sentry, metrics)
    server = Server(build_app(service), service)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    (port,) = [s.getsockname()[1] for each in server.servers for s in each.sockets]
    made = Running(f"http://127.0.0.1:{port}", service, server)
    try:
        yield made
    finally:
        for client in made.clients:
            client.close()
        server.should_exit, server.config.timeout_graceful_shutdown = True, 0
        thread.join(timeout=20)
        assert not thread.is_alive()
