"""OpenVINO as a contestant: its runtime on optimum-intel's stateful model, and GenAI's continuous batching over it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arena import CHUNK, WINDOW, Facts, Prompts, timed


def stored_facts(path: Path) -> Facts:
    """Read off the graph what its matrices are stored in."""
    import openvino

    graph = openvino.Core().read_model(path / "openvino_model.xml")
    matrices: dict[str, Any] = {}
    for op in (op for op in graph.get_ops() if op.get_type_name() == "Constant"):
        name = op.get_friendly_name()
        if op.data.size >= 1 << 14 and "scale" not in name and "zero_point" not in name:
            matrices[name] = op

    def of(part: str) -> list[Any]:
        return [op for name, op in matrices.items() if part in name]

    def kinds(found: list[Any]) -> str:
        return ", ".join(sorted({op.get_output_element_type(0).get_type_name() for op in found}))

    rows, heads = of("embed_tokens"), of("lm_head")
    stored = (path / "openvino_model.bin").stat().st_size
    stored -= sum(op.data.nbytes for op in rows) if heads else 0
    return Facts(kinds(of("layers.")), kinds(heads or rows), stored, "its choice")


class OpenVINO:
    """OpenVINO's runtime on the stateful model, one request with a row a prompt."""

    def __init__(self, path: Path, kind: str, threads: int, batch: int) -> None:
        import openvino

        self._path = path
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        self._request = (
            openvino.Core().compile_model(path / "openvino_model.xml", "CPU", settings).create_infer_request()
        )

    def facts(self) -> Facts:
        return stored_facts(self._path)

    def _run(self, ids: np.ndarray, first: int) -> np.ndarray:
        rows, count = ids.shape
        places = np.tile(np.arange(first, first + count), (rows, 1))
        mask = np.ones((rows, first + count), np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": places,
            "beam_idx": np.arange(rows, dtype=np.int32),
        }
        self._request.infer(inputs, share_inputs=True, share_outputs=True)
        return self._request.get_tensor("logits").data[:, -1]

    def decode(self, prompts: Prompts, steps: int) -> float:
        self._request.reset_state()
        last = self._run(np.array(prompts, np.int64), 0).argmax(-1)[:, None]
        place = len(prompts[0])

        def step() -> None:
            nonlocal last, place
            last = self._run(last, place).argmax(-1)[:, None]
            place += 1

        return timed(step, steps)

    def prefill(self, prompt: Sequence[int]) -> float:
        self._request.reset_state()
        return timed(lambda: self._run(np.array([prompt], np.int64), 0).argmax(-1), 1)

    def logits(self, prompt: Sequence[int]) -> np.ndarray:
        self._request.reset_state()
        return self._run(np.array([prompt], np.int64), 0)[0].copy()


class GenAI:
    """OpenVINO GenAI's continuous batching: paged attention, a step at a time."""

    def __init__(self, path: Path, kind: str, threads: int, batch: int) -> None:
        import openvino_genai

        self._genai, self._path, self._count = openvino_genai, path, 0
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs, scheduler.max_num_batched_tokens = batch, max(CHUNK, batch)
        scheduler.cache_size, scheduler.enable_prefix_caching = 2, False
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipe = openvino_genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", settings)

    def facts(self) -> Facts:
        return stored_facts(self._path)

    def _add(self, prompt: Sequence[int], tokens: int) -> Any:
        import openvino

        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        self._count += 1
        return self._pipe.add_request(self._count, openvino.Tensor(np.array([prompt], np.int64)), config)

    def decode(self, prompts: Prompts, steps: int) -> float:
        handles = [self._add(prompt, WINDOW // 2) for prompt in prompts]
        while not all(handle.can_read() for handle in handles):
            self._pipe.step()
        seconds = timed(self._pipe.step, steps)
        for handle in handles:
            handle.cancel()
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
        return seconds

    def prefill(self, prompt: Sequence[int]) -> float:
        self._add(prompt, 1)
        start = time.perf_counter()
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
        return time.perf_counter() - start

    def logits(self, prompt: Sequence[int]) -> np.ndarray:
        raise NotImplementedError("GenAI gives tokens only; see openvino")
