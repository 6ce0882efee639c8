"""vLLM in the engine's place: the same requests and completions, over a Hugging Face directory.

    Request --_params--> SamplingParams --LLMEngine.step--> RequestOutput --_take--> Token, Completion

vLLM schedules and chooses; what ends an answer is decided here, by the code that decides it for herd's own engine.
Not the same: a seed draws other tokens than herd's, and under a constraint the log-probabilities are those of the ids
that the grammar allows (vLLM masks the rest before it takes them).
"""

import importlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from herd.base.errors import HerdError
from herd.engine.constraint import Constraint
from herd.engine.grammar import Grammar
from herd.engine.request import Completion, FinishReason, Request, Sampling, Stats, Token
from herd.engine.sequence import Sequence as InFlight
from herd.tokenizer.bpe import Tokenizer

_COOLEST = 0.01  # vLLM takes this for any lower temperature but 0
_REASONS: Mapping[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "cancelled"}


class VLLMBackend:
    """A Hugging Face directory in vLLM; up to `max_running` requests decode together.

    dtype: the number format, as vLLM spells it. options: further fields of vLLM's EngineArgs, such as
    `tensor_parallel_size`. Raises HerdError where vLLM isn't installed, or refuses.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tokenizer: Tokenizer,
        dtype: str = "auto",
        max_running: int = 64,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._vllm = _module("vllm")
        settings = {
            "model": str(folder),
            "dtype": dtype,
            "max_num_seqs": max_running,
            "logprobs_mode": "raw_logprobs",  # the model's own: before temperature, penalties and filters
            "max_logprobs": -1,
            "scheduling_policy": "priority",
            "generation_config": "vllm",  # a request says all itself
            "structured_outputs_config": _module("vllm.config").StructuredOutputsConfig(backend="guidance"),
            **(options or {}),
        }
        with _refusals(str(folder)):
            self._engine = self._vllm.LLMEngine.from_engine_args(self._vllm.EngineArgs(**settings))
        self.capacity: int = self._engine.model_config.max_model_len
        self._tokenizer = tokenizer
        self._answers: dict[str, _Answer] = {}  # under way
        self._count = 0

    def stats(self) -> Stats:
        """Return zeros: vLLM keeps its own account."""
        return Stats(0, 0, 0, 0, 0, 0, 0, 0)

    def generate(
        self, requests: Sequence[Request], *, on_done: Callable[[int], None] = lambda done: None
    ) -> list[Completion]:
        """Complete all requests, in their order. Raises HerdError on one that vLLM refuses."""
        with self._begun((request, self._params(request)) for request in requests) as answers:
            self._finish(answers, on_done)
            return [answer.completion for answer in answers]

    def stream(self, request: Request) -> Iterator[Token]:
        """Yield the tokens of one request as they are chosen; who stops asking cancels it."""
        with self._begun([(request, self._params(request))]) as (answer,):
            given = 0
            while given < len(answer.tokens) or answer.reason is None:
                if given == len(answer.tokens):
                    self._step()
                else:
                    yield answer.tokens[given]
                    given += 1

    def score(
        self, sequences: Sequence[Sequence[int]], *, on_done: Callable[[int], None] = lambda done: None
    ) -> list[list[float]]:
        """Return log p(id | ids before it) for every id but the first of each sequence."""
        # the last id is the one that may be generated: so a sequence may fill the context, as the model's own pass does
        once = Sampling(max_tokens=1, prompt_logprobs=True)
        scored = [(Request(tuple(ids[:-1]), once), ids[-1]) for ids in sequences if len(ids) > 1]
        with self._begun((request, self._params(request, only=last)) for request, last in scored) as answers:
            self._finish(answers, on_done)
            rows = iter([[*answer.sequence.prompt_logprobs, answer.tokens[0].logprob] for answer in answers])
        return [next(rows) if len(ids) > 1 else [] for ids in sequences]

    def _params(self, request: Request, *, only: int | None = None) -> Any:
        """Return vLLM's SamplingParams; `only` is the one id that may come."""
        sampling, kinds = request.sampling, _module("vllm.sampling_params")
        if "" in request.stop_strings:
            raise HerdError("an empty stop string would end every answer before it begins; leave it out")
        if 0 < sampling.temperature < _COOLEST:
            raise HerdError(f"temperature {sampling.temperature}: vLLM would take {_COOLEST} for it; use that, or 0")
        structured = None
        if request.constraint is not None:
            if sampling.top_logprobs:
                raise HerdError("vLLM's top_logprobs under a constraint aren't the model's own; leave out one of them")
            structured = kinds.StructuredOutputsParams(grammar=_grammar(request.constraint))
        with _refusals("this request"):
            return kinds.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                frequency_penalty=sampling.frequency_penalty,
                presence_penalty=sampling.presence_penalty,
                logit_bias=dict(sampling.logit_bias) or None,
                seed=sampling.seed % (1 << 63),  # -1 would mean none
                max_tokens=sampling.max_tokens,
                logprobs=sampling.top_logprobs,  # the chosen id's comes in any case
                prompt_logprobs=0 if sampling.prompt_logprobs else None,
                stop_token_ids=sorted(request.stop_ids),
                ignore_eos=structured is None,  # the stop ids say it all, but a grammar ends with its own
                allowed_token_ids=None if only is None else [only],
                structured_outputs=structured,
                detokenize=False,
                output_kind=kinds.RequestOutputKind.DELTA,
            )

    @contextmanager
    def _begun(self, requests: Iterable[tuple[Request, Any]]) -> Generator[list["_Answer"]]:
        """Hand requests with their parameters over, and take back at the end those that haven't ended."""
        requests = list(requests)  # all are translated before any is run
        answers: list[_Answer] = []
        try:
            for request, params in requests:
                self._count += 1
                answer = _Answer(InFlight(self._count, request, tokenizer=self._tokenizer))
                # "type" marks ids that need no more preparation, which newer versions ask for
                prompt = {"type": "token", "prompt_token_ids": list(request.prompt)}
                with _refusals("this request"):
                    self._engine.add_request(answer.name, prompt, params, priority=-request.priority)
                self._answers[answer.name] = answer
                answers.append(answer)
            yield answers
        finally:
            for answer in answers:
                self._end(answer, "cancelled")

    def _finish(self, answers: Sequence["_Answer"], on_done: Callable[[int], None]) -> None:
        done = 0
        while done < len(answers):
            self._step()
            before, done = done, sum(answer.reason is not None for answer in answers)
            if done > before:
                on_done(done)

    def _step(self) -> None:
        for answer in [answer for answer in self._answers.values() if answer.sequence.late()]:
            self._end(answer, "deadline")
        if not self._answers:
            return
        for output in self._engine.step():
            answer = self._answers.get(output.request_id)
            if answer is None:
                continue  # taken back in the meantime
            reason = answer.take(output, self.capacity)
            if output.finished:
                answer.reason = reason
                del self._answers[answer.name]
            elif reason is not None:
                self._end(answer, reason)

    def _end(self, answer: "_Answer", reason: FinishReason) -> None:
        """End an answer that vLLM would go on with; one that has ended stays."""
        if self._answers.pop(answer.name, None) is not None:
            answer.reason = reason
            self._engine.abort_request([answer.name])


class _Answer:
    """A request at vLLM: the bookkeeping of herd's own engine, fed with what vLLM chose. `reason`: why it ended."""

    def __init__(self, sequence: InFlight) -> None:
        self.sequence, self.name = sequence, f"herd-{sequence.handle}"
        self.reason: FinishReason | None = None
        self._prompt_places = 0  # of the prompt, whose log-probabilities came

    @property
    def tokens(self) -> list[Token]:
        """What was generated so far."""
        return self.sequence.tokens

    @property
    def completion(self) -> Completion:
        """All of it, once it has ended."""
        assert self.reason is not None
        return self.sequence.completion(self.reason)

    def take(self, output: Any, capacity: int) -> FinishReason | None:
        """Take what a RequestOutput brings; say whether, and why, it ends the answer."""
        prompt = self.sequence.request.prompt
        for entry in output.prompt_logprobs or ():
            if entry is not None:  # as it is for the first id
                self.sequence.prompt_logprobs.append(entry[prompt[self._prompt_places]].logprob)
            self._prompt_places += 1
        self.sequence.reused = max(self.sequence.reused, output.num_cached_tokens or 0)
        (part,) = output.outputs
        for token_id, entry in zip(part.token_ids, part.logprobs or (), strict=True):
            self.sequence.append(_token(token_id, entry, self.sequence.request.sampling.top_logprobs))
            if (reason := self.sequence.finish_reason(capacity)) is not None:
                return reason  # what came after a stop string is dropped
        if not output.finished:
            return None
        if part.finish_reason not in _REASONS:
            raise HerdError(f"vLLM ended a request with {part.finish_reason!r}; its log says why")
        return _REASONS[part.finish_reason]


def _token(token_id: int, entry: Mapping[int, Any], top: int) -> Token:
    """Return a chosen id with its log-probability, and the `top` likeliest; vLLM adds the chosen one to those."""
    likeliest = sorted(((other, found.logprob) for other, found in entry.items()), key=lambda pair: -pair[1])
    return Token(token_id, entry[token_id].logprob, tuple(likeliest[:top]))


def _grammar(constraint: Constraint) -> str:
    if isinstance(constraint, Grammar) and constraint.source is not None:
        return constraint.source
    raise HerdError("vLLM can follow only a grammar from its beginning: json_, regex_, choice_ or tool_constraint")


@contextmanager
def _refusals(what: str) -> Generator[None]:
    """Turn what vLLM says of bad values into one clear line."""
    try:
        yield
    except ValueError as error:
        raise HerdError(f"vLLM refuses {what}: {' '.join(str(error).split()):.300}") from error


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("vllm"):
            raise  # one of vLLM's own needs: its message says which
        raise HerdError(
            "the backend vllm needs vLLM, which brings a PyTorch of its own: pip install vllm, in an environment made "
            "for it"
        ) from None
