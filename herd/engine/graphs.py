"""The runner of a GPU: rounds of one token a row replay a captured graph, prompts run as they come.

    shares of one id ─ by 1, 2, 4 ... 256 rows, the rest filled with a spare row ─ graph ──┐
    all others       ─ PromptPass ─────────────────────────────────────────────────────────┴─ scores, in their order

A graph is captured when its number of rows first comes up. Spare rows read and write a block that no one else has.
On a processor the same code runs uncaptured: that is how it is tested.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from herd.engine.passes import PLAIN, DecodeKernels, DecodePass, PackedAttention, PromptPass, packed_plain
from herd.engine.runner import note_prompts, score
from herd.engine.scheduler import Share
from herd.model.cache import PagedCache, Row
from herd.model.together import join
from herd.model.transformer import Transformer

log = logging.getLogger("herd.engine")
_MOST_ROWS = 256
_NARROWEST = 16  # blocks in a table of a pass that reads all of it


@dataclass(frozen=True)
class Kernels:
    """What a graph runner computes with, and whether it captures."""

    decode: DecodeKernels = PLAIN
    prompt: PackedAttention = packed_plain
    capture: bool = False
    unused: tuple[str, ...] = field(default=(), compare=False)  # what was tried before, and why it isn't used


class GraphRunner:
    """Runs a model whose decode step has fixed shapes; see the top of this file."""

    def __init__(self, model: Transformer, *, blocks: int, block_size: int, kernels: Kernels = Kernels()) -> None:
        self._model, self._kernels = model, kernels
        self._blocks, self._block_size = blocks, block_size
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._capture = kernels.capture
        join(model, gate=kernels.decode.gate)
        # nothing may come from the processor's memory while a graph is captured
        model.frequencies = model.frequencies.to(next(model.parameters()).device)

    @cached_property
    def _cache(self) -> PagedCache:
        parameter = next(self._model.parameters())
        return PagedCache(
            self._model.config,
            blocks=self._blocks + 1,  # the last one is of the spare rows
            block_size=self._block_size,
            dtype=parameter.dtype,
            device=parameter.device,
        )

    @cached_property
    def _rows(self) -> Tensor:
        width = -(-min(self._model.config.max_positions, self._blocks * self._block_size) // self._block_size)
        return torch.zeros((_MOST_ROWS, 2 + width), dtype=torch.int32, device=self._cache.keys.device)

    def run(self, shares: Sequence[Share]) -> Tensor:
        """Run single ids by graphs and all others in one pass."""
        single = [i for i, s in enumerate(shares) if s.count == 1 and s.scored < 2 and not s.sequence.logprobs_due]
        chosen = set(single)
        others = [i for i in range(len(shares)) if i not in chosen]
        pieces: list[Tensor] = []
        order: list[int] = []  # of each row of the pieces: its share
        if others:
            pieces.append(self._run_prompts([shares[i] for i in others]))
            order += [i for i in others for _ in range(shares[i].scored)]
        for start in range(0, len(single), _MOST_ROWS):
            part = single[start : start + _MOST_ROWS]
            scores = self._decode([shares[i] for i in part])
            wanted = [n for n, i in enumerate(part) if shares[i].scored]
            order += [part[n] for n in wanted]
            more = start + _MOST_ROWS < len(single)  # then the graph's output is about to be written over
            scores = scores if len(wanted) == len(part) else scores[wanted]
            pieces.append(scores.clone() if more else scores)
        if len(pieces) == 1:
            return pieces[0]
        places = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(pieces)[places]

    def score(self, sequences: Sequence[Sequence[int]], *, on_done: Callable[[int], None]) -> list[list[float]]:
        """Score them without a cache, those of like length together."""
        return score(self._model, sequences, on_done=on_done)

    def refresh(self) -> None:
        """Do nothing: graphs read the weights where they lie, and so do joined projections."""

    def _run_prompts(self, shares: Sequence[Share]) -> Tensor:
        rows = [Row(share.sequence.table, share.sequence.stored, share.count) for share in shares]
        ends = np.cumsum([share.count for share in shares]).tolist()
        lasts = [place for share, end in zip(shares, ends, strict=True) for place in range(end - share.scored, end)]
        tokens = torch.tensor([[i for share in shares for i in share.ids]], device=self._cache.keys.device)
        hidden_te = self._model(tokens, cache=PromptPass(self._cache, rows, self._kernels.prompt))[0]
        note_prompts(self._model.logits, hidden_te, shares)
        return self._model.logits(hidden_te[lasts]).float()

    def _decode(self, shares: Sequence[Share]) -> Tensor:
        """Return scores [b, vocab] of one id a share; they stay until the next call."""
        count = 1 << (len(shares) - 1).bit_length()
        filled = self._filled(shares, count)
        wide = self._rows.shape[1]
        if self._kernels.decode.whole:
            while wide > filled.shape[1] and (narrower := -(-(wide - 2) // 4)) >= max(_NARROWEST, filled.shape[1] - 2):
                wide = 2 + narrower
        self._rows[:count, : filled.shape[1]] = torch.from_numpy(filled).to(self._rows.device)
        return self._step(count, wide)[: len(shares)]

    def _filled(self, shares: Sequence[Share], count: int) -> np.ndarray:
        """Return ids, lengths and tables [count, 2 + the most blocks of any], spare rows at the end."""
        tables = [share.sequence.table for share in shares]
        filled = np.full((count, 2 + max(map(len, tables))), self._blocks, dtype=np.int32)
        filled[:, :2] = 0, 1
        for row, share, table in zip(filled, shares, tables, strict=False):
            row[0], row[1] = share.sequence.ids[share.sequence.stored], share.sequence.stored + 1
            row[2 : 2 + len(table)] = table
        return filled

    def _step(self, count: int, wide: int) -> Tensor:
        if not self._capture:
            return self._forward(count, wide)
        if (count, wide) not in self._graphs:
            try:
                self._graphs[count, wide] = self._captured(count, wide)
            except RuntimeError:
                log.exception("a decode step of %d rows can't be captured; going on without graphs", count)
                self._capture = False
                torch.cuda.synchronize()
                return self._forward(count, wide)
        graph, scores = self._graphs[count, wide]
        graph.replay()
        return scores

    def _forward(self, count: int, wide: int) -> Tensor:
        step = DecodePass(self._cache, self._rows[:count, :wide], self._kernels.decode)
        return self._model.logits(self._model(step.ids, cache=step)[0]).float()

    def _captured(self, count: int, wide: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # kernels are compiled and libraries opened outside of the capture; writing a token twice changes nothing
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._forward(count, wide)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool):
            scores = self._forward(count, wide)
        return graph, scores
