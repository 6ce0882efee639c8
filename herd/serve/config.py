"""How a server is set up, as plain values; read without torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from herd.base.errors import ConfigError


@dataclass(frozen=True)
class ServeConfig:
    """Address, limits and keys of a server.

    max_waiting: requests that may wait for each model beside the `slots` that run. max_tokens: the longest answer;
    a request for more gets this many (None: what the context holds). max_body: bytes of a request.
    patience: seconds that the head of a request may take to come, and its body.
    window: tokens of a streamed answer that are held back and judged together. cors: origins of foreign pages.
    keys: SHA-256 digests of the keys let in; none means that everybody is. metrics_open: /metrics needs no key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 32
    max_waiting: int = 64
    max_tokens: int | None = None
    max_body: int = 4 << 20
    patience: float = 60.0
    window: int = 32
    cors: tuple[str, ...] = ()
    keys: frozenset[bytes] = frozenset()
    metrics_open: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port {self.port} is not one of 0 to 65535")
        least = min(self.slots, self.window, self.max_body, 1 if self.max_tokens is None else self.max_tokens)
        if least < 1 or self.max_waiting < 0:
            raise ConfigError("slots, window, max_body and max_tokens must be 1 or more, and max_waiting 0 or more")

    @property
    def most_open(self) -> int:
        """How many requests one model takes at once, running and waiting."""
        return self.slots + self.max_waiting

    def lets_in(self, authorization: str) -> bool:
        """Say whether a request with this Authorization header may pass."""
        if not self.keys:
            return True
        scheme, _, key = authorization.partition(" ")
        # how long comparing digests takes tells nothing of a key
        return scheme.lower() == "bearer" and _digest(key.strip()) in self.keys


def read_keys(path: Path) -> frozenset[bytes]:
    """Return the digests of the keys in a file: one a line, '#' begins a comment line. Raises ConfigError."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as a file of API keys ({error})") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{path}: holds no key; write one a line, or leave out --api-key-file to let everybody in")
    return frozenset(map(_digest, keys))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
