"""The process: one HTTP server that drains on the first signal and stops on the second."""

import asyncio
import logging
import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from herd.serve.service import Service

log = logging.getLogger("herd.serve")
_CLOSING_SECONDS = 5  # for connections that nothing runs on when the server ends


class Connection(H11Protocol):
    """A connection that is closed when the head of a request takes more than `patience` seconds to come."""

    patience = 10.0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self._late is not None:
            self._late.cancel()
            self._late = None
        elif not answering and self._late is None:
            self._late = self.loop.call_later(self.patience, self.timeout_keep_alive_handler)


class Server(uvicorn.Server):
    """On SIGTERM or Ctrl-C new requests are refused and /ready says so; when those under way have ended, it ends."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        config = service.config
        super().__init__(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                http=Connection,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_CLOSING_SECONDS,
            )
        )
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; when asked again, stop, and a third time without tidying up."""
        again = self._service.draining
        self._service.draining = True
        self.force_exit = self.should_exit and again
        if again:
            self.should_exit, self.config.timeout_graceful_shutdown = True, 0
        facts = {"signal": signal.Signals(sig).name, "active": self._service.active}
        log.info("stopping at once" if again else "draining", extra={"facts": facts})

    async def on_tick(self, counter: int) -> bool:
        """Say whether to end, ten times a second."""
        if self._service.draining and not self._service.active:
            self.should_exit = True
        return await super().on_tick(counter)
