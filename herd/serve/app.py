"""The endpoints: chat and text completions, models, health, readiness, metrics, and the chat page at /."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from importlib.resources import files
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from herd import __version__
from herd.serve.errors import ApiError, as_api_error
from herd.serve.gate import Gate, error_response
from herd.serve.schema import ChatRequest, CompletionRequest
from herd.serve.service import Job, Reply, Service, chunks, whole_answer
from herd.serve.shapes import Json, to_bytes

log = logging.getLogger("herd.serve")
_PATHS = (
    "/",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/health",
    "/ready",
    "/metrics",
)
_CODES = {404: "not_found", 405: "method_not_allowed", 408: "body_too_slow", 413: "body_too_large"}
_LONGEST = 80  # of a field's name: it may be the client's own
_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        400: "A request that can't be answered",
        401: "No valid key",
        404: "No such model",
        408: "A body that took too long to come",
        413: "A body over the limit",
        429: "The queue is full; Retry-After says when to come again",
        500: "The server's own failure",
        503: "Draining, or the model can't be opened",
    }.items()
}


def build_app(service: Service) -> FastAPI:
    """Return the application over a service; it ends the service's threads when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        yield
        await asyncio.to_thread(service.stop)

    # the interactive documentation would load scripts from elsewhere
    app = FastAPI(title="herd", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    _refusals(app)
    _answers(app, service)
    _facts(app, service)
    app.add_middleware(Gate, service=service, paths=_PATHS)
    if service.config.cors:
        # outside the gate: a page must be able to read why it was refused
        app.add_middleware(
            CORSMiddleware, allow_origins=service.config.cors, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


def _answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", responses=_ANSWERS)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await _answer(service, request, body, lambda: service.chat_job(body))

    @app.post("/v1/completions", responses=_ANSWERS)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _answer(service, request, body, lambda: service.completion_job(body))

    @app.post("/v1/embeddings", responses={404: {"description": "Always: no model here makes embeddings"}})
    async def embeddings() -> Response:
        # hidden states of a model trained to continue text are a poor measure of likeness: better none
        message = "no model here makes embeddings: they continue text; use a server with a model trained for it"
        raise ApiError(message, status=404, code="no_embedding_model", param="model")


def _facts(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses={401: _ANSWERS[401]})
    async def models() -> Response:
        listed = [offer.facts(service.guard) for offer in service.models.offers.values()]
        return _json({"object": "list", "data": listed})

    @app.get("/v1/models/{name:path}", responses={401: _ANSWERS[401], 404: _ANSWERS[404]})
    async def model(name: str) -> Response:
        return _json(service.models.offer(name).facts(service.guard))

    @app.get("/health", responses={503: {"description": "An engine or the guard has stopped"}})
    async def health() -> Response:
        return _json({"status": "ok" if service.healthy else "failed"}, 200 if service.healthy else 503)

    @app.get("/ready", responses={503: {"description": "Not to be sent requests"}})
    async def ready() -> Response:
        state = "draining" if service.draining else "ready" if service.healthy else "failed"
        return _json({"status": state}, 200 if state == "ready" else 503)

    @app.get("/metrics", responses={401: _ANSWERS[401]})
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    page = files("herd.serve") / "page.html"
    if page.is_file():
        text = page.read_bytes()
        # the page's own policy stands in it; only this directive must be a header
        policy = {"Content-Security-Policy": "frame-ancestors 'none'", "Referrer-Policy": "no-referrer"}

        @app.get("/", include_in_schema=False)
        async def chat_page() -> Response:
            return Response(text, headers=policy, media_type="text/html; charset=utf-8")


def _refusals(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"][1:]]
        if first["type"] == "json_invalid":
            return error_response(ApiError("the body is not valid JSON", code="invalid_json"))
        param = ".".join(place)[:_LONGEST] or None
        return error_response(ApiError(f"{param or 'the body'}: {first['msg']}", code="invalid_value", param=param))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code)
        response = error_response(ApiError(str(error.detail), status=error.status_code, code=code))
        response.headers.update(error.headers or {})
        return response


async def _answer(
    service: Service, request: Request, body: ChatRequest | CompletionRequest, make: Callable[[], Awaitable[Job]]
) -> Response:
    """Answer a request, whole or streamed. Whoever goes away meanwhile gets nothing, and its work ends."""
    facts = request.state.facts
    facts.update(model=body.model if body.model in service.models.offers else "unknown", streamed=bool(body.stream))

    async def begin() -> Reply:
        return await service.reply(await make(), arrived=request.state.arrived, streamed=bool(body.stream))

    async def all_of_it() -> Response:
        reply = await begin()
        try:
            answer = await whole_answer(reply)
        finally:
            reply.close()
        _note(facts, answer["usage"], answer["choices"])
        return _json(answer)

    async def stream() -> Response:
        return EventStream(await begin(), usage=body.usage_streamed, facts=facts)

    try:
        return await _unless_gone(request, stream() if body.stream else all_of_it())
    except Exception as error:
        return error_response(_refusal(error))


async def _unless_gone(request: Request, work: Awaitable[Response]) -> Response:
    """Return the response, or end the work at once when the client goes away."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=499)  # nobody reads it; it is for the log
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))


async def _gone(request: Request) -> Literal[True]:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return True


class EventStream(StreamingResponse):
    """Server-sent events of one answer; however the sending ends, so does the work."""

    def __init__(self, reply: Reply, *, usage: bool, facts: Json) -> None:
        self._reply, self._facts = reply, facts
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._events(usage), headers=headers, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.close()
            _note(self._facts, self._reply.usage(), [])

    async def _events(self, usage: bool) -> AsyncGenerator[bytes, None]:
        reasons = self._facts["finish"] = []
        try:
            async with aclosing(chunks(self._reply, usage=usage)) as sending:
                async for chunk in sending:
                    reasons += [choice["finish_reason"] for choice in chunk["choices"] if choice["finish_reason"]]
                    yield b"data: %s\n\n" % to_bytes(chunk)
        except Exception as error:
            yield b"data: %s\n\n" % to_bytes(_refusal(error).body())
        yield b"data: [DONE]\n\n"


def _refusal(error: Exception) -> ApiError:
    """Return what the client is told of an exception; what isn't the client's doing goes to the log in full."""
    refusal = as_api_error(error)
    if refusal.status >= 500:
        log.error("failed", exc_info=error)
    return refusal


def _note(facts: Json, usage: Json, choices: list[Json]) -> None:
    facts.update(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])
    if choices:
        facts["finish"] = [choice["finish_reason"] for choice in choices]


def _json(value: Json, status: int = 200) -> Response:
    return Response(to_bytes(value), status, media_type="application/json")
