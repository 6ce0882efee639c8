"""A stand-in for vLLM: its classes by their own names and fields, over a toy model, one pass a token, greedy.

Written after vllm/sampling_params.py, outputs.py, logprobs.py and v1/engine/llm_engine.py: a field that isn't there
is a TypeError, a value out of range a ValueError, and deltas come several tokens at a time.
"""

import sys
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from herd.model.transformer import Transformer


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class StructuredOutputsParams:
    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


@dataclass
class StructuredOutputsConfig:
    backend: str = "auto"


@dataclass(kw_only=True)
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        if not -2.0 <= self.presence_penalty <= 2.0:
            raise ValueError(f"presence_penalty must be in [-2, 2], got {self.presence_penalty}.")
        if self.temperature > 2.0:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}.")


@dataclass
class EngineArgs:
    model: str
    dtype: str = "auto"
    max_num_seqs: int = 256
    logprobs_mode: str = "raw_logprobs"
    max_logprobs: int = 20
    scheduling_policy: str = "fcfs"
    generation_config: str = "auto"
    structured_outputs_config: StructuredOutputsConfig = field(default_factory=StructuredOutputsConfig)
    tensor_parallel_size: int = 1


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None


class LLMEngine:
    """`passes` and `asked` are for tests: how often the model ran, and with which parameters."""

    def __init__(self, args: EngineArgs, model: Transformer, *, eos_id: int, at_once: int) -> None:
        self.args, self.asked, self.passes = args, {}, 0
        self.model_config = SimpleNamespace(max_model_len=model.config.max_positions)
        self._model, self._eos_id, self._at_once = model, eos_id, at_once
        self._open: dict[str, SimpleNamespace] = {}

    def add_request(
        self, request_id: str, prompt: dict[str, Any], params: SamplingParams, *, priority: int = 0
    ) -> None:
        assert isinstance(request_id, str)
        ids, most = prompt["prompt_token_ids"], self.model_config.max_model_len
        if not 0 < len(ids) < most:
            raise ValueError(
                f"The decoder prompt (length {len(ids)}) is longer than the maximum model length of {most}."
            )
        self.asked[request_id] = (params, priority)
        self._open[request_id] = SimpleNamespace(prompt=list(ids), params=params, made=[], began=False)

    def abort_request(self, request_ids: list[str], internal: bool = False) -> None:
        for name in request_ids:
            self._open.pop(name, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self._open)

    def step(self) -> list[RequestOutput]:
        outputs = [self._advance(name, entry) for name, entry in list(self._open.items())]
        for output in outputs:
            if output.finished:
                del self._open[output.request_id]
        return outputs

    @torch.inference_mode()
    def _advance(self, name: str, entry: SimpleNamespace) -> RequestOutput:
        params, ids, logprobs, reason = entry.params, [], [], None
        due = params.prompt_logprobs is not None
        prompt_logprobs: list[dict[int, Logprob] | None] | None = [] if due else None
        while reason is None and len(ids) < self._at_once:
            self.passes += 1
            scores_tv = self._scores([*entry.prompt, *entry.made])
            if due and not entry.began:
                prompt_logprobs = [
                    None,
                    *map(_entry, scores_tv, entry.prompt[1:], [params.prompt_logprobs] * len(scores_tv)),
                ]
            entry.began = True
            chosen = int(_adjusted(scores_tv[-1], params, entry).argmax())
            logprobs.append(_entry(scores_tv[-1], chosen, params.logprobs or 0))
            ids.append(chosen)
            entry.made.append(chosen)
            reason = self._reason(entry)
        part = CompletionOutput(0, "", ids, None, logprobs if params.logprobs is not None else None, reason)
        return RequestOutput(name, None, entry.prompt, prompt_logprobs, [part], reason is not None, num_cached_tokens=0)

    def _scores(self, ids: list[int]) -> Tensor:
        row = torch.tensor([ids])
        return self._model.logits(self._model(row, documents=torch.zeros_like(row)))[0].log_softmax(-1)

    def _reason(self, entry: SimpleNamespace) -> str | None:
        params, last = entry.params, entry.made[-1]
        if last in (params.stop_token_ids or ()) or (last == self._eos_id and not params.ignore_eos):
            return "stop"
        full = len(entry.prompt) + len(entry.made) >= self.model_config.max_model_len
        return "length" if full or len(entry.made) >= params.max_tokens else None


def _entry(scores_v: Tensor, chosen: int, count: int) -> dict[int, Logprob]:
    """Return the chosen id first, then the likeliest, with their ranks; so there are up to count + 1."""
    rank = int((scores_v >= scores_v[chosen]).sum())
    values, ids = scores_v.topk(count)
    likeliest = {int(i): Logprob(float(v), n + 1) for n, (i, v) in enumerate(zip(ids, values, strict=True))}
    return {chosen: Logprob(float(scores_v[chosen]), rank), **likeliest}


def _adjusted(scores_v: Tensor, params: SamplingParams, entry: SimpleNamespace) -> Tensor:
    scores_v = scores_v.clone()
    for i in {*entry.prompt, *entry.made} if params.repetition_penalty != 1 else ():
        scores_v[i] *= params.repetition_penalty if scores_v[i] < 0 else 1 / params.repetition_penalty
    for i in set(entry.made):
        scores_v[i] -= params.frequency_penalty * entry.made.count(i) + params.presence_penalty
    for i, bias in (params.logit_bias or {}).items():
        scores_v[i] += bias
    if params.allowed_token_ids is not None:
        allowed = torch.zeros_like(scores_v, dtype=torch.bool)
        allowed[params.allowed_token_ids] = True
        scores_v[~allowed] = float("-inf")
    return scores_v


def install(patch: pytest.MonkeyPatch, model: Transformer, *, eos_id: int = 0, at_once: int = 3) -> None:
    """Make `import vllm` give the stand-in over a model."""

    class Engine(LLMEngine):
        @classmethod
        def from_engine_args(cls, args: EngineArgs) -> "Engine":
            return cls(args, model, eos_id=eos_id, at_once=at_once)

    modules = {
        "vllm": {"EngineArgs": EngineArgs, "LLMEngine": Engine, "SamplingParams": SamplingParams},
        "vllm.config": {"StructuredOutputsConfig": StructuredOutputsConfig},
        "vllm.sampling_params": {
            "SamplingParams": SamplingParams,
            "StructuredOutputsParams": StructuredOutputsParams,
            "RequestOutputKind": RequestOutputKind,
        },
    }
    for name, values in modules.items():
        module = ModuleType(name)
        vars(module).update(values)
        patch.setitem(sys.modules, name, module)
