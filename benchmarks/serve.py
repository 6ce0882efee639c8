"""Served speed: 32 clients that stream from `herd serve`, and the same from llama.cpp's own server.

Both servers run all the time and work by turns; an idle one takes no core. A turn: every client sends a chat of fresh
random words, greedy and with the ids that end a turn forbidden, so that every answer has `--tokens` tokens; all
clients start together. Tokens are those of the servers' own `usage`. Rounds in which other programs took more than a
quarter of a core are dropped; the clients are one process of their own and count as the servers' work.

    tokens/s   of all clients, from the first request to the last token
    TTFT       seconds to the first text of a stream, median and 95th percentile over clients
    TPOT       milliseconds a token after it, median over clients

Run `python benchmarks/serve.py MODEL --llama-server PATH`; needs the `bench`, `serve` and `gguf` extras and a
llama-server built with GGML_NATIVE=ON (from the source that llama-cpp-python carries, so that versions are equal).
"""

import argparse
import asyncio
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from arena import LIMIT, busy_seconds, options, rival, spread, wait_until_quiet, write_json
from forms import Forms

from herd.tokenizer.hf_files import load_tokenizer

PATIENCE = 300.0  # seconds for a server to load its model


@dataclass(frozen=True)
class Answer:
    """One stream: seconds from the common start to its first and last text, and its tokens."""

    first: float
    last: float
    tokens: int


@dataclass(frozen=True)
class Load:
    """What one server made of all clients at once."""

    rate: float
    first: float
    first_95: float
    each: float

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Load":
        """Sum up one turn."""
        firsts = [answer.first for answer in answers]
        pace = [(answer.last - answer.first) / max(1, answer.tokens - 1) for answer in answers]
        rate = sum(answer.tokens for answer in answers) / max(answer.last for answer in answers)
        return cls(rate, statistics.median(firsts), float(np.quantile(firsts, 0.95)), statistics.median(pace))


class Server:
    """A server's process on a free port."""

    def __init__(self, name: str, command: Sequence[str], *, threads: int, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.name, self._log = name, log
        place = ["--host", "127.0.0.1", "--port", str(self.port)]
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with log.open("w") as output:
            self._process = subprocess.Popen([*command, *place], stdout=output, stderr=output, env=env)

    def wait(self) -> str:
        """Return the model's id when it answers. Raises SystemExit with the log's end where it doesn't."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    pass
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=5) as answer:
                    return json.load(answer)["data"][0]["id"]
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise SystemExit(f"{self.name} did not start:\n{self._log.read_text()[-2000:]}")

    def used(self) -> float:
        """Return the seconds of processor time it has taken."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()


async def _stream(port: int, body: Mapping[str, object], start: float) -> Answer:
    """Send one request and read its events, without a client library's own work on the same cores."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    payload = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload)
    first, last, tokens, seen = 0.0, 0.0, 0, b""
    while line := await reader.readline():
        seen = seen or line
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("choices") and event["choices"][0]["delta"].get("content"):
            last = time.perf_counter() - start
            first = first or last
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    writer.close()
    if not tokens:
        raise SystemExit(f"port {port}: no answer but {seen[:200]!r}")
    return Answer(first, last, tokens)


async def _clients(port: int, bodies: Sequence[Mapping[str, object]]) -> list[Answer]:
    start = time.perf_counter()
    return await asyncio.gather(*(_stream(port, body, start) for body in bodies))


def chats(
    words: Sequence[str], model: str, forbidden: Sequence[int], *, seed: int, clients: int, length: int, tokens: int
) -> list[dict]:
    """Return one request a client: fresh words, so that no cache knows them."""
    draw = random.Random(seed)
    shared = {
        "model": model,
        "temperature": 0,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logit_bias": {str(token): -100 for token in forbidden},
    }
    texts = [" ".join(draw.choices(words, k=length)) for _ in range(clients)]
    return [shared | {"messages": [{"role": "user", "content": text}]} for text in texts]


def commands(chosen: argparse.Namespace, forms: Forms) -> dict[str, list[str]]:
    """Return how each server is started."""
    found = {}
    for kind in chosen.herd:
        quant = [] if kind == "default" else ["--quant", kind]
        found[f"herd:{kind}"] = [sys.executable, "-m", "herd", "serve", str(forms.hf), "--no-guard", *quant]
    if chosen.guarded:
        found["herd:guarded"] = [sys.executable, "-m", "herd", "serve", str(chosen.guarded)]
    for form in chosen.llama if chosen.llama_server else ():
        slots = [
            "--parallel",
            str(chosen.clients),
            "--ctx-size",
            str(chosen.clients * chosen.window),
            "--cont-batching",
        ]
        threads = ["--threads", str(chosen.threads), "--threads-batch", str(chosen.threads), "--no-ui", "--jinja"]
        found[f"llama.cpp:{form}"] = [str(chosen.llama_server), "-m", str(forms.path(form)), *slots, *threads]
    return found


def play(servers: Sequence[Server], chosen: argparse.Namespace, forms: Forms) -> tuple[dict[str, list[Load]], int]:
    """Return quiet rounds by server, and how many were dropped; all of them where none was quiet."""
    tokenizer = load_tokenizer(forms.hf)
    words = [
        word for word in (t.decode("ascii", "ignore") for t in tokenizer.ranks) if word.isalpha() and len(word) > 1
    ]
    models = {server.name: server.wait() for server in servers}
    quiet: list[dict[str, Load]] = []
    loud: list[dict[str, Load]] = []
    for turn in range(chosen.limit + 1):
        row, foreign = {}, 0.0
        for server in servers:
            bodies = chats(
                words,
                models[server.name],
                tokenizer.stop_ids,
                seed=turn,
                clients=chosen.clients,
                length=chosen.words,
                tokens=chosen.tokens,
            )
            wait_until_quiet(chosen.patience)
            before, clock = _others(servers), time.perf_counter()
            row[server.name] = Load.of(asyncio.run(_clients(server.port, bodies)))
            foreign = max(foreign, (_others(servers) - before) / (time.perf_counter() - clock))
        if turn:  # the first warms up
            (quiet if foreign <= LIMIT else loud).append(row)
        if len(quiet) == chosen.rounds:
            break
    kept = quiet or loud
    return {server.name: [row[server.name] for row in kept] for server in servers}, len(loud) if quiet else -1


def _others(servers: Sequence[Server]) -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return busy_seconds() - own.ru_utime - own.ru_stime - sum(server.used() for server in servers)


def print_loads(loads: Mapping[str, Sequence[Load]], dropped: int) -> None:
    """Print a row a server."""
    ours = [name for name in loads if name.startswith("herd:") and name != "herd:guarded"]
    print("\nno round was quiet: read ratios as rough" if dropped < 0 else f"\n{dropped} rounds dropped")
    print("\n| server | tokens/s | TTFT s | TTFT 95 % s | TPOT ms | herd's tokens/s are more by | herd's TTFT is |")
    print("| --- | ---: | ---: | ---: | ---: | --- | --- |")
    for name, rows in loads.items():
        cells = [spread([row.rate for row in rows], ".1f"), spread([row.first for row in rows])]
        cells += [spread([row.first_95 for row in rows]), spread([row.each * 1000 for row in rows], ".1f")]
        against = rival(name, ours) if not name.startswith("herd:") else None
        pairs = list(zip(loads[against], rows, strict=True)) if against else []
        cells += [f"{spread([a.rate / b.rate for a, b in pairs])} ({against})" if pairs else ""]
        cells += [f"{spread([a.first / b.first for a, b in pairs])} times as long" if pairs else ""]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's binary; without it only herd is measured")
    parser.add_argument("--llama", nargs="*", default=["q8_0"], help="forms of its model")
    parser.add_argument("--herd", nargs="*", default=["default"], help="values of `herd serve --quant`")
    parser.add_argument("--guarded", type=Path, help="a run whose guard is on, measured too")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--words", type=int, default=60, help="random words a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens an answer")
    parser.add_argument("--window", type=int, default=512, help="positions a slot of llama.cpp's")
    chosen = parser.parse_args()
    forms = Forms(chosen.model, chosen.work)
    servers = []
    try:
        for name, command in commands(chosen, forms).items():
            log = chosen.work / f"{name.replace(':', '-')}.log"
            servers.append(Server(name, command, threads=chosen.threads, log=log))
            servers[-1].wait()  # one loads after another
        loads, dropped = play(servers, chosen, forms)
    finally:
        for server in servers:
            server.close()
    print(f"{forms.name}: {chosen.clients} clients, {chosen.words} words in, {chosen.tokens} tokens out,", end=" ")
    print(f"{chosen.threads} threads")
    print_loads(loads, dropped)
    if chosen.json:
        rates = {name: [row.rate for row in rows] for name, rows in loads.items()}
        firsts = {name: [row.first for row in rows] for name, rows in loads.items()}
        write_json(chosen.json, model=forms.name, kind="serve", rates=rates, ttft=firsts)


if __name__ == "__main__":
    main()
