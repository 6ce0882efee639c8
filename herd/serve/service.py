"""What the endpoints do: a request to the engine's requests, through the guard, and back as JSON or a stream."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from herd.base.messages import Message
from herd.engine.request import Request, Sampling
from herd.guard.classifier import Verdict
from herd.guard.shield import REFUSAL
from herd.serve.answering import Answer, Delta, Judge, together
from herd.serve.config import ServeConfig
from herd.serve.dialog import constraint_of, dialog_of
from herd.serve.errors import ApiError
from herd.serve.metrics import Metrics
from herd.serve.models import Models, Offer
from herd.serve.reading import DialogReader, Reader, TextReader
from herd.serve.schema import ChatRequest, CompletionRequest
from herd.serve.sentry import Sentry, Where, judged_prompt
from herd.serve.shapes import ChatShape, Json, Scored, Shape, TextShape, whole
from herd.serve.worker import Worker
from herd.tokenizer.stream import OutputStream

log = logging.getLogger("herd.serve")


@dataclass(frozen=True)
class Job:
    """A request made ready: what the engine is asked, how answers are read and judged, and how they look.

    before: what is judged before anything runs, one conversation for each prompt. per_prompt: choices of each.
    """

    offer: Offer
    requests: list[Request]
    before: Sequence[tuple[Message, ...]]
    reader: Callable[[], Reader]
    shape: Shape
    per_prompt: int = 1
    judged: bool = True


@dataclass
class Reply:
    """An answer under way."""

    job: Job
    deltas: AsyncGenerator[Delta, None]
    answers: list[Answer] = field(default_factory=list)
    where: Where = "output"
    id: str = ""
    created: int = 0

    def __post_init__(self) -> None:
        self.id = self.job.shape.prefix + secrets.token_hex(12)
        self.created = int(time.time())

    def head(self, kind: str, choices: list[Json]) -> Json:
        """Return the object around choices."""
        own = {"id": self.id, "object": kind, "created": self.created, "model": self.job.offer.id}
        return {**own, "choices": choices, "system_fingerprint": None}

    def usage(self) -> Json:
        """Return what it took; a prompt counts once however many answers it has."""
        prompts = [request.prompt for request in self.job.requests[:: self.job.per_prompt]]
        asked, said = sum(map(len, prompts)), sum(answer.tokens for answer in self.answers)
        done = [answer.completion for answer in self.answers[:: self.job.per_prompt]]
        reused = sum(completion.reused for completion in done if completion)
        whole = [answer.completion for answer in self.answers if answer.completion]
        drafted, accepted = (sum(getattr(each, name) for each in whole) for name in ("drafted", "accepted"))
        return {
            "prompt_tokens": asked,
            "completion_tokens": said,
            "total_tokens": asked + said,
            "prompt_tokens_details": {"cached_tokens": reused},
            "completion_tokens_details": {
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": drafted - accepted,
            },
        }

    def guarded(self, verdict: Verdict | None) -> Json:
        """Return the field `herd` with the guard's word, where there is one."""
        if verdict is None:
            return {}
        word = {"where": self.where, "hazards": list(verdict.hazards), "p_unsafe": verdict.p_unsafe}
        return {"herd": {"guard": word}}

    def close(self) -> None:
        """Cancel what still runs."""
        for answer in self.answers:
            answer.ticket.close()


@dataclass
class Service:
    """One server: its models, its guard, its limits. `draining`: no new requests; `active`: those under way."""

    models: Models
    config: ServeConfig
    sentry: Sentry | None = None
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False
    active: int = 0

    def __post_init__(self) -> None:
        self.metrics.watch(self.models.workers)

    @property
    def guard(self) -> str | None:
        """The guard's name."""
        return self.sentry.name if self.sentry else None

    @property
    def healthy(self) -> bool:
        """Whether every engine that is open, and the guard, still answer."""
        return all(worker.alive for worker in self.models.workers()) and (self.sentry is None or self.sentry.alive)

    def stop(self) -> None:
        """End all threads."""
        self.models.stop()
        if self.sentry is not None:
            self.sentry.stop()

    async def reply(self, job: Job, *, arrived: float, streamed: bool) -> Reply:
        """Judge what was asked and put it into the engine. Raises HerdError."""
        if self.sentry is not None:
            verdicts = await asyncio.gather(*(self.sentry.judge(said, "input") for said in job.before))
            if worst := next((verdict for verdict in verdicts if not verdict.safe), None):
                return Reply(job, _refused(len(job.requests), worst), where="input")
        worker = await self.models.worker(job.offer)
        tickets = await worker.submit(job.requests)
        window = self.config.window if streamed else None
        answers = [
            Answer(
                index=index,
                ticket=ticket,
                reader=job.reader(),
                judge=self._judge(job.before[index // job.per_prompt]) if job.judged else None,
                window=window,
                model=job.offer.id,
                metrics=self.metrics,
                arrived=arrived,
            )
            for index, ticket in enumerate(tickets)
        ]
        return Reply(job, together(answers), answers)

    def _judge(self, before: Sequence[Message]) -> Judge | None:
        sentry = self.sentry
        if sentry is None:
            return None
        return lambda text: sentry.judge((*before, Message("assistant", text)), "output")

    async def chat_job(self, body: ChatRequest) -> Job:
        """Make a chat request ready. Raises HerdError."""
        offer = self.models.offer(body.model)
        if offer.base:
            raise ApiError(f"{offer.id} is a base model: it continues text; use /v1/completions", param="model")
        if body.top_logprobs and not body.logprobs:
            raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
        worker = await self.models.worker(offer)
        dialog = dialog_of(body)
        # a long prompt or a large schema takes a while: others go on meanwhile
        prompt = await asyncio.to_thread(offer.codec.prompt, dialog)
        limit = body.max_completion_tokens or body.max_tokens
        sampling = self._sampling(body, worker, len(prompt), limit, where="messages")
        sampling = replace(sampling, top_logprobs=body.top_logprobs or 0)
        constraint = await asyncio.to_thread(constraint_of, body, dialog, offer.codec)
        stop_ids = frozenset(offer.codec.tokenizer.stop_ids)
        requests = [
            Request(
                tuple(prompt),
                replace(sampling, seed=(sampling.seed + number) % (1 << 63)),
                stop_ids,
                body.stops,
                constraint=constraint.fork() if constraint else None,
            )
            for number in range(body.n or 1)
        ]

        def reader() -> Reader:
            output = OutputStream(offer.codec, tools=dialog.tools, calls=bool(dialog.tools))
            return DialogReader(offer.codec.tokenizer, output)

        shape = ChatShape(offer.codec.tokenizer, bool(body.logprobs))
        return Job(offer, requests, [judged_prompt(dialog.messages)], reader, shape, per_prompt=len(requests))

    async def completion_job(self, body: CompletionRequest) -> Job:
        """Make a completion request ready. Raises HerdError."""
        offer = self.models.offer(body.model)
        tokenizer = offer.codec.tokenizer
        silent = body.max_tokens == 0
        if silent and (not body.echo or body.stream):
            raise ApiError("max_tokens 0 is for echo: true without stream", param="max_tokens")
        if body.echo and body.stream and body.logprobs is not None:
            raise ApiError("the log-probabilities of an echoed prompt aren't streamed", param="echo")
        worker = await self.models.worker(offer)
        given = _given(body)
        worker.check(len(given) * (body.n or 1))  # before anything is made or judged for each
        prompts = await asyncio.to_thread(_prompts, given, offer)
        shown = [tokenizer.decode([i for i in prompt if i != tokenizer.bos_id]) for prompt in prompts]
        requests = []
        for prompt in prompts:
            sampling = self._sampling(body, worker, len(prompt), 1 if silent else body.max_tokens, where="prompt")
            scored = bool(body.echo) and body.logprobs is not None
            sampling = replace(sampling, top_logprobs=body.logprobs or 0, prompt_logprobs=scored)
            for number in range(body.n or 1):
                own = replace(sampling, seed=(sampling.seed + number) % (1 << 63))
                requests.append(Request(tuple(prompt), own, frozenset(tokenizer.stop_ids), body.stops))
        shape = TextShape(
            tokenizer,
            body.logprobs is not None,
            shown=shown if body.echo else (),
            per_prompt=body.n or 1,
            silent=silent,
        )
        before = [(Message("user", text),) for text in shown]
        return Job(
            offer, requests, before, lambda: TextReader(tokenizer), shape, per_prompt=body.n or 1, judged=not silent
        )

    def _sampling(
        self, body: ChatRequest | CompletionRequest, worker: Worker, length: int, limit: int | None, *, where: str
    ) -> Sampling:
        """Return how to choose tokens: the API's defaults, the answer as long as asked, allowed and possible."""
        room = worker.capacity - length
        if room < 1:
            raise ApiError(
                f"a prompt of {length} tokens: this model holds {worker.capacity}, the answer included; shorten it",
                code="context_length_exceeded",
                param=where,
            )
        return Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=body.top_k or 0,
            min_p=body.min_p or 0.0,
            repetition_penalty=body.repetition_penalty or 1.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            logit_bias=_biases(body.logit_bias or {}),
            max_tokens=min(filter(None, (room, limit, self.config.max_tokens))),
            seed=secrets.randbits(63) if body.seed is None else body.seed % (1 << 63),
        )


async def whole_answer(reply: Reply) -> Json:
    """Return the answer as one object."""
    async with aclosing(reply.deltas) as deltas:
        got = [delta async for delta in deltas]
    shape = reply.job.shape
    if isinstance(shape, TextShape):
        shape.echoed.update(_echoed(reply))
    choices = whole(shape, got, len(reply.job.requests))
    verdicts = [delta.verdict for delta in got if delta.verdict]
    worst = max(verdicts, key=lambda verdict: (not verdict.safe, verdict.p_unsafe), default=None)
    return reply.head(shape.whole_kind, choices) | {"usage": reply.usage()} | reply.guarded(worst)


async def chunks(reply: Reply, *, usage: bool) -> AsyncGenerator[Json, None]:
    """Yield the chunks of the answer; with `usage`, the last one has it."""
    shape = reply.job.shape
    empty: dict[str, Any] = {"usage": None} if usage else {}
    for choice in shape.opening(len(reply.job.requests)):
        yield reply.head(shape.chunk_kind, [choice]) | empty
    async with aclosing(reply.deltas) as deltas:
        async for delta in deltas:
            for choice in shape.pieces(delta):
                yield reply.head(shape.chunk_kind, [choice]) | empty | reply.guarded(delta.verdict)
    if usage:
        yield reply.head(shape.chunk_kind, []) | {"usage": reply.usage()}


async def _refused(choices: int, verdict: Verdict) -> AsyncGenerator[Delta, None]:
    for index in range(choices):
        yield Delta(index, REFUSAL, finish="content_filter", verdict=verdict)


def _echoed(reply: Reply) -> dict[int, list[Scored]]:
    """Return the ids of each choice's prompt with their log-probabilities; the first has none."""
    echoed: dict[int, list[Scored]] = {}
    for answer in reply.answers:
        if answer.completion is not None and answer.completion.prompt_logprobs is not None:
            logprobs = (None, *answer.completion.prompt_logprobs)
            prompt = reply.job.requests[answer.index].prompt
            echoed[answer.index] = [(i, logprob, ()) for i, logprob in zip(prompt, logprobs, strict=True)]
    return echoed


def _given(body: CompletionRequest) -> list[Any]:
    """Return the prompts, texts or ids, one or several."""
    given: Any = body.prompt
    return [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given


def _prompts(given: Sequence[Any], offer: Offer) -> list[list[int]]:
    """Return the prompts as ids; text begins with begin_of_text."""
    encode = offer.codec.tokenizer.encode
    prompts = [encode(one, bos=True) if isinstance(one, str) else list(one) for one in given]
    if not prompts or not all(prompts):
        raise ApiError("an empty prompt", param="prompt")
    wrong = next((i for prompt in prompts for i in prompt if not 0 <= i < offer.codec.tokenizer.n_vocab), None)
    if wrong is not None:
        raise ApiError(f"id {wrong} is not one of this model's {offer.codec.tokenizer.n_vocab}", param="prompt")
    return prompts


def _biases(given: dict[str, float]) -> dict[int, float]:
    try:
        return {int(key): bias for key, bias in given.items()}
    except ValueError:
        raise ApiError("the keys of logit_bias are token ids", param="logit_bias") from None
