"""A small OpenAI-compatible API that plays scripted replies and keeps what it was asked: the page's other side."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

MODELS = [
    {"id": "flagship", "object": "model", "herd": {"guard": "guard", "context": 1024, "base": False}},
    {"id": "flagship/base", "object": "model", "herd": {"guard": None, "context": 1024, "base": True}},
]


@dataclass(frozen=True)
class Reply:
    """A status with its body, or a stream of `chunks` (text is a content delta), held open till `hold` is set."""

    chunks: Sequence[str | dict[str, Any]] = ()
    finish: str | None = "stop"
    usage: tuple[int, int] = (7, 5)
    hold: threading.Event | None = None
    status: int = 200
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class FakeApi:
    """What the server plays next, and what it saw: requests, and whether a stream's client went away."""

    url: str = ""
    key: str = ""
    replies: Queue[Reply] = field(default_factory=Queue)
    requests: list[dict[str, Any]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    def play(self, *chunks: str | dict[str, Any], **fields: Any) -> None:
        """Put one reply in the queue."""
        self.replies.put(Reply(chunks, **fields))


def call(index: int, name: str, *arguments: str) -> list[dict[str, Any]]:
    """Return the chunks of one streamed tool call: the name first, then the pieces of its arguments."""
    begin = {"index": index, "id": f"call_{index}x", "type": "function", "function": {"name": name, "arguments": ""}}
    pieces = [{"index": index, "function": {"arguments": piece}} for piece in arguments]
    return [{"tool_calls": [piece]} for piece in [begin, *pieces]]


def _events(reply: Reply) -> Iterator[dict[str, Any]]:
    for chunk in reply.chunks:
        if isinstance(chunk, dict) and ({"error", "herd"} & chunk.keys()):
            yield {"choices": [], **chunk}
        else:
            delta = {"content": chunk} if isinstance(chunk, str) else chunk
            yield {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    if reply.finish:
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish}]}
        yield {"choices": [], "usage": dict(zip(("prompt_tokens", "completion_tokens"), reply.usage, strict=True))}


def _handler(api: FakeApi, page: bytes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def _send(self, body: bytes, kind: str, *, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> None:
            self.send_response(status)
            for name, value in [("Content-Type", kind), ("Content-Length", str(len(body))), *headers]:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _refused(self) -> bool:
            if not api.key or self.headers.get("Authorization") == f"Bearer {api.key}":
                return False
            self._send(b'{"error": {"message": "No such key."}}', "application/json", status=401)
            return True

        def do_GET(self) -> None:
            if self.path == "/":
                self._send(page, "text/html; charset=utf-8")
            elif not self._refused():
                self._send(json.dumps({"object": "list", "data": MODELS}).encode(), "application/json")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self._refused():
                return
            api.requests.append(json.loads(body))
            reply = api.replies.get_nowait()
            if reply.status != 200:
                self._send(reply.body.encode(), "application/json", status=reply.status, headers=reply.headers)
            else:
                self._stream(reply)

        def _stream(self, reply: Reply) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                for number, event in enumerate(_events(reply)):
                    while reply.hold and number == len(reply.chunks) and not reply.hold.wait(0.02):
                        self._write(b": still here\n\n")
                    self._write(f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())
                if reply.finish:
                    self._write(b"data: [DONE]\n\n")
            except OSError:
                api.left.set()

        def _write(self, data: bytes) -> None:
            half = len(data) // 2  # in two parts: characters and events are cut anywhere on a real network
            for part in (data[:half], data[half:]):
                self.wfile.write(part)
                self.wfile.flush()

    return Handler


@contextmanager
def serving(page: Path) -> Iterator[FakeApi]:
    """Serve `page` and the fake API on a free loopback port."""
    api = FakeApi()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(api, page.read_bytes()))
    api.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
