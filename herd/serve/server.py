"""The process: one HTTP server that drains on the first signal and stops on the second."""

import logging
import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI

from herd.serve.patience import patient
from herd.serve.service import Service

log = logging.getLogger("herd.serve")


class Server(uvicorn.Server):
    """On SIGTERM or Ctrl-C new requests are refused and /ready says so; when those under way have ended, it ends."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        config = service.config
        super().__init__(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                http=patient(config.patience),
                log_config=None,
                access_log=False,
                server_header=False,
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
