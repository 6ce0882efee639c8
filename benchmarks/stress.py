"""A server under ill-behaved clients: does it stay up, leak nothing, and answer the others as if they were alone?

Many clients at once, each drawing what it does next: ask and read the whole answer or a stream; leave in the middle;
send half a body, no JSON, invalid UTF-8, wrong fields, a prompt or a body that is too long. First every question is
asked alone, whole and as a stream (a guard judges that in windows, and may stop it where the whole passes); each answer
under load must be the same. At the end no request and no cache block may be left.

Run `herd serve RUN --max-waiting 100` (fewer than the clients, so that some are turned away), and beside it
`python benchmarks/stress.py http://127.0.0.1:8000 --seconds 60 --clients 200`. Exits with 1 when something was wrong.
"""

import argparse
import json
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from itertools import product
from typing import Any
from urllib.parse import urlsplit

CHAT = "/v1/chat/completions"
QUESTIONS = 16
# what a well-kept server says to each of these: a status of the client's own fault
MALFORMED: tuple[tuple[bytes, int], ...] = (
    (b"", 400),
    (b"{", 400),
    (b"null", 400),
    (b"\xff\xfe\x00", 400),
    (b'{"model": "x", "messages": [{"role": "user", "content": "\xc3\x28"}]}', 400),
    (b"[" * 20_000, 400),
    (b'{"model": 3, "messages": "hello"}', 400),
    (b'{"model": "no such model", "messages": [{"role": "user", "content": "x"}]}', 404),
    (b'{"model": "x", "messages": [], "wizardry": 1e999}', 400),
)


@dataclass
class Tally:
    """What happened, by kind, and what should not have."""

    did: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, wrong: str | None = None) -> None:
        """Count one request."""
        with self._lock:
            self.did[kind] += 1
            if wrong:
                self.wrong.append(f"{kind}: {wrong}")


@dataclass(frozen=True)
class Target:
    """A server and one of its models. `context`: the positions that the model has."""

    host: str
    port: int
    model: str
    context: int
    key: str

    def open(self, path: str, body: bytes | None = None) -> tuple[HTTPConnection, HTTPResponse]:
        """Send a request; return the connection and the response, its body unread."""
        connection = HTTPConnection(self.host, self.port, timeout=120)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        connection.request("GET" if body is None else "POST", path, body, headers)
        return connection, connection.getresponse()

    def get(self, path: str, body: bytes | None = None) -> tuple[HTTPResponse, bytes]:
        """Return a response and its whole body."""
        connection, response = self.open(path, body)
        try:
            return response, response.read()
        finally:
            response.close()
            connection.close()

    def question(self, number: int, **options: Any) -> bytes:
        """Return the body of one of the questions: every second one is greedy, the others have seeds."""
        said = [{"role": "user", "content": f"Tell me of number {number}."}]
        own = {"temperature": 0.8 * (number % 2), "seed": number, "max_tokens": 8 + 4 * (number % 8)}
        return json.dumps({"model": self.model, "messages": said, **own, **options}).encode()


def find(url: str, model: str | None, key: str) -> Target:
    """Return the target behind a URL; the first model that chats unless one is named."""
    parts = urlsplit(url)
    target = Target(parts.hostname or "127.0.0.1", parts.port or 80, model or "", 0, key)
    try:
        response, body = target.get("/v1/models")
    except OSError as error:
        sys.exit(f"{url} doesn't answer: {error}")
    if response.status != 200:
        sys.exit(f"{url}/v1/models: {response.status} {body[:200].decode('utf-8', 'replace')}")
    listed = {each["id"]: each.get("herd", {}) for each in json.loads(body)["data"]}
    name = model or next(each for each, facts in listed.items() if not facts.get("base"))
    return Target(target.host, target.port, name, listed[name].get("context", 131_072), key)


def said_whole(body: bytes) -> str:
    """Return the text of a whole answer."""
    return json.loads(body)["choices"][0]["message"]["content"]


def said_streamed(body: bytes) -> str:
    """Return the text of a stream."""
    rows = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
    return "".join(choice["delta"].get("content") or "" for row in rows for choice in row["choices"])


READ: dict[str, Callable[[bytes], str]] = {"whole": said_whole, "streamed": said_streamed}


class Client:
    """One ill-behaved client; `alone` holds the right answers: to a kind of request, one for each question."""

    def __init__(self, target: Target, alone: Mapping[str, list[str]], tally: Tally, seed: int) -> None:
        self._target, self._alone, self._tally = target, alone, tally
        self._dice = random.Random(seed)
        self._deeds: dict[Callable[[], tuple[str, str | None]], int] = {
            self._whole: 3,
            self._streamed: 4,
            self._leaves: 4,
            self._malformed: 2,
            self._half: 1,
            self._huge: 1,
        }

    def go_on(self, until: float) -> None:
        """Do one thing after the other; whatever fails to happen as it should is noted."""
        while time.monotonic() < until:
            (deed,) = self._dice.choices(list(self._deeds), list(self._deeds.values()))
            try:
                self._tally.add(*deed())
            except (OSError, HTTPException, ValueError, KeyError, IndexError) as error:
                self._tally.add(deed.__name__.strip("_"), f"{type(error).__name__}: {error}")

    def _whole(self) -> tuple[str, str | None]:
        number = self._dice.randrange(QUESTIONS)
        return self._judged("whole", number, *self._target.get(CHAT, self._target.question(number)))

    def _streamed(self) -> tuple[str, str | None]:
        number = self._dice.randrange(QUESTIONS)
        body = self._target.question(number, stream=True)
        return self._judged("streamed", number, *self._target.get(CHAT, body))

    def _judged(self, kind: str, number: int, response: HTTPResponse, body: bytes) -> tuple[str, str | None]:
        if response.status == 429:
            time.sleep(self._dice.random() * int(response.headers["Retry-After"]))
            return "turned away (429)", None
        if response.status != 200:
            return kind, f"status {response.status}: {body[:200]!r}"
        said, wanted = READ[kind](body), self._alone[kind][number]
        return kind, None if said == wanted else f"question {number}: {said!r}, not {wanted!r}"

    def _leaves(self) -> tuple[str, str | None]:
        body = self._target.question(self._dice.randrange(QUESTIONS), stream=True, n=self._dice.choice((1, 1, 4)))
        connection, response = self._target.open(CHAT, body)
        if response.status == 200:
            response.read(self._dice.choice((0, 1, 300, 1000)))
        self._close(connection, response)
        return "left", None if response.status in (200, 429) else f"status {response.status}"

    def _close(self, connection: HTTPConnection, response: HTTPResponse) -> None:
        if connection.sock is not None and self._dice.random() < 0.5:  # a reset instead of a farewell
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        response.close()
        connection.close()

    def _malformed(self) -> tuple[str, str | None]:
        body, wanted = self._dice.choice(MALFORMED)
        return self._refused("malformed", body, wanted)

    def _huge(self) -> tuple[str, str | None]:
        words = "x 1 " * self._target.context
        said = [{"role": "user", "content": words}]
        return self._refused("huge", self._target.question(0, messages=said), 400 if len(words) < 4_000_000 else 413)

    def _refused(self, kind: str, body: bytes, wanted: int) -> tuple[str, str | None]:
        response, content = self._target.get(CHAT, body)
        shaped = set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
        return kind, None if response.status == wanted and shaped else f"{response.status} for {body[:60]!r}"

    def _half(self) -> tuple[str, str | None]:
        body = self._target.question(0)
        with socket.create_connection((self._target.host, self._target.port), timeout=120) as raw:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: {self._target.host}\r\nAuthorization: Bearer {self._target.key}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            raw.sendall((head.encode() + body)[: self._dice.randrange(1, len(head) + len(body))])
        return "half a request", None


def left_over(target: Target, seconds: float = 30.0) -> dict[str, float]:
    """Return what the model's engine still holds, once it holds nothing or the time is up."""
    until = time.monotonic() + seconds
    while True:
        text = target.get("/metrics")[1].decode()
        names = ("running", "waiting", "cache_blocks_used")
        found = {
            name: re.search(rf'^herd_{name}{{model="{re.escape(target.model)}"}} (\S+)', text, re.M) for name in names
        }
        held = {name: float(match[1]) if match else float("nan") for name, match in found.items()}
        if not any(held.values()) or time.monotonic() > until:
            return held
        time.sleep(0.1)


def held_back(target: Target) -> str:
    """Return how long the server's guard has held pieces of streams back so far, first token to verdict."""
    text = target.get("/metrics")[1].decode()
    rows = re.findall(r'^herd_guard_held_seconds_bucket{le="(\S+)"} (\S+)', text, re.MULTILINE)
    counts = [(float(edge), float(count)) for edge, count in rows]
    total = counts[-1][1] if counts else 0.0
    if not total:
        return "no guard held anything back"
    spent = re.search(r"^herd_guard_held_seconds_sum (\S+)", text, re.MULTILINE)
    mean = float(spent[1]) / total if spent else float("nan")
    within = {share: next(edge for edge, count in counts if count >= share * total) for share in (0.5, 0.95)}
    spread = f"half within {within[0.5]} s, 95 % within {within[0.95]} s"
    return f"the guard held {total:.0f} windows back: mean {mean:.3f} s, {spread}"


def stress(target: Target, *, clients: int, seconds: float, seed: int = 0) -> Tally:
    """Let the clients loose; return what happened. Leftovers and a server that isn't well count as wrong."""
    alone: dict[str, list[str]] = {kind: [] for kind in READ}
    for kind, number in product(READ, range(QUESTIONS)):
        response, body = target.get(CHAT, target.question(number, stream=kind == "streamed"))
        if response.status != 200:
            sys.exit(f"asked alone, question {number} gave {response.status}: {body[:200].decode('utf-8', 'replace')}")
        alone[kind].append(READ[kind](body))
    tally = Tally()
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(clients) as pool:
        all_of_them = [Client(target, alone, tally, seed * 1_000_003 + each) for each in range(clients)]
        list(pool.map(lambda client: client.go_on(until), all_of_them))
    held = left_over(target)
    if any(held.values()):
        tally.wrong.append(f"left in the engine: {held}")
    if target.get("/health")[0].status != 200:
        tally.wrong.append("/health says that the server isn't well")
    return tally


def main() -> None:
    """Print the counts, then what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model", help="the first that chats unless given")
    parser.add_argument("--key", default="any")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    target = find(given.url, given.model, given.key)
    began = time.monotonic()
    tally = stress(target, clients=given.clients, seconds=given.seconds, seed=given.seed)
    total = sum(tally.did.values())
    print(f"{target.model}: {given.clients} clients, {total} requests in {time.monotonic() - began:.0f} s")
    for kind, count in sorted(tally.did.items()):
        print(f"  {kind:20} {count:6}")
    print(held_back(target))
    print(f"wrong: {len(tally.wrong)}")
    for line in tally.wrong[:20]:
        print(f"  {line}")
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
