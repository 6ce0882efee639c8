"""What every request passes before any endpoint: host, keys, draining, the body's size and pace; and its log line."""

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from herd.serve.errors import ApiError
from herd.serve.service import Service
from herd.serve.shapes import to_bytes

log = logging.getLogger("herd.serve")
_API, _METRICS = "/v1/", "/metrics"


class Gate:
    """The outermost application. `paths` are those that are counted by name."""

    def __init__(self, app: ASGIApp, *, service: Service, paths: Sequence[str]) -> None:
        self._app, self._service, self._paths = app, service, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with the reason why not."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        facts: dict[str, Any] = {"request": f"req_{secrets.token_hex(8)}", "status": 499}  # until something is sent
        scope.setdefault("state", {}).update(facts=facts, arrived=time.monotonic())
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                own = [(b"x-request-id", facts["request"].encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", ()), *own]
            # a client that stops reading must hold neither its place nor the end of draining
            async with asyncio.timeout(self._service.config.send_seconds):
                await send(message)

        asks = scope["path"].startswith(_API)
        self._service.active += asks
        try:
            refusal = self._refusal(scope, asks=asks)
            if refusal is not None:
                await error_response(refusal)(scope, receive, sending)
            else:
                await self._app(scope, self._limited(receive), sending)
        except (ClientDisconnect, TimeoutError):
            facts["left"] = True
        finally:
            self._service.active -= asks
            self._service.metrics.answered(path, facts["status"])
            seconds = round(time.monotonic() - scope["state"]["arrived"], 4)
            level = logging.INFO if asks else logging.DEBUG
            log.log(level, "request", extra={"facts": {"path": path, **facts, "seconds": seconds}})

    def _refusal(self, scope: Scope, *, asks: bool) -> ApiError | None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        config = self._service.config
        if not config.known_as(headers.get(b"host", "")):
            return ApiError(
                "this server answers to localhost only; to be reached by another name it needs --api-key-file",
                status=403,
                code="unknown_host",
            )
        keyed = asks or (scope["path"] == _METRICS and not config.metrics_open)
        if keyed and not config.lets_in(headers.get(b"authorization", "")):
            return ApiError("a valid API key is needed: Authorization: Bearer KEY", status=401, code="invalid_api_key")
        if asks and self._service.draining:
            return ApiError("this server is shutting down", status=503, code="draining", retry_after=5)
        length = headers.get(b"content-length", "0")
        if length.isdigit() and int(length) > config.max_body:
            return _too_large(config.max_body)
        return None

    def _limited(self, receive: Receive) -> Receive:
        """Count a body that comes without its length, and give it up when it comes too slowly."""
        config = self._service.config
        most, got = config.max_body, 0
        until: float | None = asyncio.get_running_loop().time() + config.body_seconds

        async def receiving() -> Message:
            nonlocal got, until
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                reason = f"the body took more than {config.body_seconds:g} s to come"
                raise HTTPException(408, reason, headers={"Connection": "close"}) from None
            if not message.get("more_body"):
                until = None  # what comes now is that the client has left
            got += len(message.get("body", b""))
            if got > most:
                raise HTTPException(413, str(_too_large(most)))
            return message

        return receiving


def error_response(error: ApiError) -> Response:
    """Return the response of a refusal."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(to_bytes(error.body()), error.status, headers, media_type="application/json")


def _too_large(most: int) -> ApiError:
    return ApiError(f"a body of more than {most:,} bytes", status=413, code="body_too_large")
