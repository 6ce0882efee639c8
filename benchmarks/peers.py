"""The contestants: herd and the engines that people run Llama models with on processors.

    herd:bf16 fp32 int8 int4           its engine; keys and values as the weights are, or bf16
    llama.cpp:q8_0 q4_0 f16 ...        its low-level batches, one sequence a prompt; keys and values in f16
    openvino:int8 int4                 OpenVINO's runtime on optimum-intel's stateful model; its own choice of cache
    genai:int8 int4                    OpenVINO GenAI's continuous batching over the same model
    transformers:eager compiled batch  bf16; its loop over a model, one with a static cache under torch.compile,
                                       and `generate_batch`
    ctranslate2:int8                   its generator

Every step ends with the likeliest token chosen from all scores. Each class says what it needs when it is made.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arena import CHUNK, WINDOW, Contestant, Facts, Prompts, Worker, timed
from forms import Forms
from openvino_peers import GenAI, OpenVINO


def enter(spec: str, forms: Forms, *, threads: int, batch: int) -> Worker:
    """Start a contestant by its name, ENGINE:KIND; what it reads is made first."""
    engine, _, kind = spec.partition(":")
    if engine not in ENGINES:
        raise SystemExit(
            f"{spec}: no such contestant; write one of {', '.join(ENGINES)} and its kind, as llama.cpp:q8_0"
        )
    make, form = ENGINES[engine]
    try:
        path = forms.path(form.format(kind)) if form else forms.hf
    except Exception as error:  # an absent converter leaves out one contestant
        return _Absent(spec, f"its form can't be made here: {error}")
    return Worker(spec, make, path, kind, threads, batch)


class _Absent(Worker):
    def __init__(self, name: str, why: str) -> None:
        self.name, self.missing = name, why

    def close(self) -> None:
        """Nothing was started."""


def _written(matrix: Any) -> str:
    if hasattr(matrix, "bits"):
        return f"int{matrix.bits}, groups of {matrix.group}"
    return str(matrix.weight.dtype).removeprefix("torch.")


class Herd:
    """herd's engine."""

    def __init__(self, path: Path, kind: str, threads: int, batch: int) -> None:
        import torch

        from herd.engine.engine import Engine
        from herd.model.weights import load_model

        torch.set_num_threads(threads)
        dtype = torch.float32 if kind == "fp32" else torch.bfloat16
        quant: dict[str, Any] = {"quant": kind} if kind in ("int8", "int4") else {}
        self._model = load_model(path, dtype=dtype, **quant)
        blocks = batch * WINDOW // 16
        self._engine = Engine(self._model, max_running=batch, prefill_chunk=CHUNK, blocks=blocks, prefix_reuse=False)

    def facts(self) -> Facts:
        """Count what the modules hold but the embedding, of which a token reads a row (a tied one is the output's)."""
        model = self._model
        modules = [module for module in model.modules() if module is not model.tok_embeddings]
        held = [tensor for m in modules for tensor in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
        stored = sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())
        matrices = [module for module in model.layers.modules() if hasattr(module, "in_features")]
        cache = str(next(model.parameters()).dtype).removeprefix("torch.")
        return Facts(", ".join(sorted({_written(m) for m in matrices})), _written(model.output), stored, cache)

    def _submit(self, prompts: Prompts, tokens: int) -> set[int]:
        from herd.engine.request import Request, Sampling

        return {self._engine.submit(Request(tuple(p), Sampling(max_tokens=tokens))) for p in prompts}

    def decode(self, prompts: Prompts, steps: int) -> float:
        """Prompts are run until each has its first token; later tokens of the earlier ones are not timed."""
        handles = self._submit(prompts, WINDOW)
        waiting = set(handles)
        while waiting:
            waiting -= {event.handle for event in self._engine.step()}
        seconds = timed(self._engine.step, steps)
        for handle in handles:
            self._engine.cancel(handle)
        while self._engine.busy:
            self._engine.step()
        return seconds

    def prefill(self, prompt: Sequence[int]) -> float:
        self._submit([prompt], 1)
        start = time.perf_counter()
        while self._engine.busy:
            self._engine.step()
        return time.perf_counter() - start

    def logits(self, prompt: Sequence[int]) -> np.ndarray:
        """Ask the engine itself, so that its own kernels answer: all log-probabilities, which differ by a constant."""
        from herd.engine.request import Request, Sampling

        size = self._model.config.vocab_size
        done = self._engine.generate([Request(tuple(prompt), Sampling(max_tokens=1, top_logprobs=size))])
        scores = np.zeros(size, np.float32)
        for token, logprob in done[0].tokens[0].top:
            scores[token] = logprob
        return scores


class LlamaCpp:
    """llama.cpp through the C interface of llama-cpp-python, which should be built with GGML_NATIVE=ON."""

    def __init__(self, path: Path, kind: str, threads: int, batch: int) -> None:
        import llama_cpp

        self._c, self._path = llama_cpp, path
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)  # ctypes forgets one that nobody holds
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = batch * WINDOW, batch
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)
        self._size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def facts(self) -> Facts:
        from gguf import GGUFReader

        tensors = {tensor.name: tensor for tensor in GGUFReader(self._path).tensors}
        tied = "output.weight" not in tensors
        head = tensors["token_embd.weight" if tied else "output.weight"]
        stored = sum(int(t.n_bytes) for t in tensors.values() if tied or t.name != "token_embd.weight")
        bodies = {t.tensor_type.name for name, t in tensors.items() if name.startswith("blk") and len(t.shape) > 1}
        return Facts(", ".join(sorted(bodies)).lower(), head.tensor_type.name.lower(), stored, "f16")

    def _run(self, tokens: Sequence[tuple[int, int, int]], scored: int) -> list[int]:
        """Run (token, position, sequence) rows; return the likeliest ids after the last `scored` of them."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, sequence
            batch.logits[i] = i >= len(tokens) - scored
        if self._c.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        return [int(self._scores(i).argmax()) for i in range(len(tokens) - scored, len(tokens))]

    def _scores(self, i: int) -> np.ndarray:
        return np.ctypeslib.as_array(self._c.llama_get_logits_ith(self._context, i), (self._size,))

    def _start(self, prompt: Sequence[int], sequence: int) -> int:
        rows = [(token, position, sequence) for position, token in enumerate(prompt)]
        chosen = [self._run(rows[i : i + CHUNK], int(i + CHUNK >= len(rows))) for i in range(0, len(rows), CHUNK)]
        return chosen[-1][0]

    def _clear(self) -> None:
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), False)

    def decode(self, prompts: Prompts, steps: int) -> float:
        self._clear()
        last = [self._start(prompt, i) for i, prompt in enumerate(prompts)]
        place = len(prompts[0])

        def step() -> None:
            nonlocal last, place
            last = self._run([(token, place, i) for i, token in enumerate(last)], len(last))
            place += 1

        return timed(step, steps)

    def prefill(self, prompt: Sequence[int]) -> float:
        self._clear()
        return timed(lambda: self._start(prompt, 0), 1)

    def logits(self, prompt: Sequence[int]) -> np.ndarray:
        self._clear()
        self._start(prompt, 0)
        return self._scores(len(prompt) - 1).copy()


class Transformers:
    """transformers in bfloat16."""

    def __init__(self, path: Path, kind: str, threads: int, batch: int) -> None:
        import torch
        from transformers import LlamaForCausalLM

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        logging.disable(logging.WARNING)  # it tells of every warm-up
        self._torch, self._kind = torch, kind
        self._model = LlamaForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self._step = torch.compile(self._model, dynamic=False) if kind == "compiled" else self._model

    def facts(self) -> Facts:
        parts = {p.data_ptr(): p for p in self._model.parameters()}
        config, embedding = self._model.config, self._model.get_input_embeddings().weight
        stored = sum(p.numel() * p.element_size() for p in parts.values())
        return Facts("bf16", "bf16", stored - (0 if config.tie_word_embeddings else embedding.nbytes), "bf16")

    def _cache(self) -> Any:
        from transformers import DynamicCache, StaticCache

        if self._kind == "compiled":
            return StaticCache(config=self._model.config, max_cache_len=WINDOW)
        return DynamicCache(config=self._model.config)

    def _run(self, model: Any, ids: Any, cache: Any, first: int) -> Any:
        places = self._torch.arange(first, first + ids.shape[1])[None]
        found = model(input_ids=ids, past_key_values=cache, position_ids=places, use_cache=True, logits_to_keep=1)
        return found.logits[:, -1]

    def decode(self, prompts: Prompts, steps: int) -> float:
        if self._kind == "batch":
            return self._generated(prompts, steps + 1)
        cache, place = self._cache(), len(prompts[0])
        last = self._run(self._model, self._torch.tensor(prompts), cache, 0).argmax(-1)[:, None]

        def step() -> None:
            nonlocal last, place
            last = self._run(self._step, last, cache, place).argmax(-1)[:, None]
            place += 1

        return timed(step, steps)

    def _generated(self, prompts: Prompts, tokens: int) -> float:
        """Return the time from when every prompt has its first token."""
        from transformers import GenerationConfig

        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1)
        done = self._model.generate_batch(
            [list(prompt) for prompt in prompts], generation_config=config, record_timestamps=True, progress_bar=False
        )
        times = [found.timestamps for found in done.values()]
        return max(row[-1] for row in times) - max(row[0] for row in times)

    def prefill(self, prompt: Sequence[int]) -> float:
        ids = self._torch.tensor([prompt])
        return timed(lambda: self._run(self._model, ids, self._cache(), 0).argmax(-1), 1)

    def logits(self, prompt: Sequence[int]) -> np.ndarray:
        return self._run(self._model, self._torch.tensor([prompt]), self._cache(), 0)[0].float().numpy()


class CTranslate2:
    """CTranslate2's generator, timed from the first to the last token of a batch."""

    def __init__(self, path: Path, kind: str, threads: int, batch: int) -> None:
        import ctranslate2

        self._path, self._kind, self._library = path, kind, ctranslate2
        self._generator = ctranslate2.Generator(str(path), compute_type=kind, intra_threads=threads, inter_threads=1)

    def facts(self) -> Facts:
        stored = (self._path / "model.bin").stat().st_size  # an untied embedding counts here
        return Facts(self._kind, self._kind, stored, "float32")

    def _times(self, prompts: Prompts, tokens: int) -> list[float]:
        import json

        if not hasattr(self, "_words"):
            self._words = json.loads((self._path / "vocabulary.json").read_text(encoding="utf-8"))
        times: list[float] = []
        self._generator.generate_batch(
            [[self._words[token] for token in prompt] for prompt in prompts],
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=lambda result: times.append(time.perf_counter()),
        )
        return times

    def decode(self, prompts: Prompts, steps: int) -> float:
        times = self._times(prompts, steps + 1)
        return times[-1] - times[len(prompts) - 1]

    def prefill(self, prompt: Sequence[int]) -> float:
        start = time.perf_counter()
        return self._times([prompt], 1)[0] - start

    def logits(self, prompt: Sequence[int]) -> np.ndarray:
        found = self._generator.forward_batch([list(prompt)])
        return np.array(found)[0, -1].astype(np.float32)


# what each reads: a form (see forms.py) by its kind, or the Hugging Face folder
ENGINES: dict[str, tuple[Callable[..., Contestant], str]] = {
    "herd": (Herd, ""),
    "llama.cpp": (LlamaCpp, "{}"),
    "openvino": (OpenVINO, "openvino-{}"),
    "genai": (GenAI, "openvino-{}"),
    "transformers": (Transformers, ""),
    "ctranslate2": (CTranslate2, "ctranslate2-{}"),
}
