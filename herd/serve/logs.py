"""Logs as JSON lines on stderr: what happened, never what was said."""

import json
import logging
import sys
from datetime import UTC, datetime

from herd.serve.service import Service

_LOGGERS = {"herd.serve": logging.INFO, "uvicorn.error": logging.INFO, "asyncio": logging.ERROR}


class JsonLines(logging.Formatter):
    """One object a line; a record's `facts` become fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        row = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str)  # ASCII: no character moves a terminal's cursor or ends a line


def log_start(service: Service) -> None:
    """Send the server's logs, and those of its HTTP library, to stderr, beginning with what is served."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in _LOGGERS.items():
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level)
    config, log = service.config, logging.getLogger("herd.serve")
    facts = {"models": list(service.models.offers), "guard": service.guard, "host": config.host, "port": config.port}
    log.info("serving", extra={"facts": facts})
    if service.guard is None:
        log.warning("no guard: prompts and answers are not judged")
    if not config.keys and not config.local:
        log.warning("no API keys: whoever reaches this address can use the models")
