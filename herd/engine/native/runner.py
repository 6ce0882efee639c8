"""Runs a model on a processor by herd's own kernels: one call a round, whatever is in it (src/herd.cpp).

The transformer stays the definition; its weights are packed once (and again when they change). Each score is worked
out in one order of sums whoever else is in the round, so a request gets the same bits alone and in a crowd.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from herd.engine.native.library import Cache, Layer, Linear, Model, Pass, Shape, load
from herd.engine.native.pack import LANES, STRIP, Packed, pack, packable
from herd.engine.runner import note_prompts, target_logprobs
from herd.engine.scheduler import Share
from herd.model.cache import zeros
from herd.model.norm import RMSNorm
from herd.model.quant import QuantLinear
from herd.model.rope import rotation_table
from herd.model.transformer import Block, Transformer

_MOST_HEAD = 512
_SCORED_PLACES = 2048  # ids in a pass that only scores


def supports(model: Transformer, *, block_size: int) -> bool:
    """Say whether the kernels can run this model here."""
    config, parameters = model.config, list(model.parameters())
    fits = block_size % LANES == 0 and config.head_size <= _MOST_HEAD and config.head_size % 2 == 0
    on_processor = all(parameter.device.type == "cpu" for parameter in parameters)
    known = {parameter.dtype for parameter in parameters} <= {torch.float32, torch.bfloat16}
    known &= all(packable(parts) for parts in _inputs(model))
    return fits and on_processor and known and load() is not None


def _inputs(model: Transformer) -> Iterator[tuple[nn.Module, ...]]:
    """Yield the linear layers, those that share an input together."""
    for block in model.layers:
        assert isinstance(block, Block)
        attention, ffn = block.attention, block.feed_forward
        yield from ((attention.wq, attention.wk, attention.wv), (attention.wo,), (ffn.w1, ffn.w3), (ffn.w2,))
    yield (model.output,)


class NativeRunner:
    """The kernels over one model, and a cache of keys and values in their layout."""

    def __init__(self, model: Transformer, *, blocks: int, block_size: int, keep_weights: bool = True) -> None:
        library = load()
        assert library is not None
        self._library, self._model, self._blocks, self._block_size = library, model, blocks, block_size
        self._keep_weights = keep_weights
        self._kept: _Storage | None = None
        self._cos = self._sin = torch.empty(0, model.config.head_size // 2)
        self._decoder: _Decoder | None = None

    def run(self, shares: Sequence[Share]) -> Tensor:
        """Run each share in one pass over all."""
        if self._kept is None:
            self._kept = _Storage(self._model, self._blocks, self._block_size)
        due = any(share.sequence.logprobs_due for share in shares)
        rows = [(share.ids, share.sequence.stored, share.sequence.table) for share in shares]
        if not due:
            return self._run(rows, [share.scored for share in shares], self._kept, scores=True)
        states = self._run(rows, [share.count for share in shares], self._kept, scores=False)
        note_prompts(self._scores, states, shares)
        lasts, end = [], 0
        for share in shares:
            end += share.count
            lasts += range(end - share.scored, end)
        return self._scores(states[lasts])

    def score(self, sequences: Sequence[Sequence[int]], *, on_done: Callable[[int], None]) -> list[list[float]]:
        """Score them in passes of bounded size, with a cache that lasts as long."""
        results: list[list[float]] = [[] for _ in sequences]
        order = sorted((i for i in range(len(sequences)) if len(sequences[i]) > 1), key=lambda i: -len(sequences[i]))
        done = len(sequences) - len(order)
        while order:
            group = [order.pop()]
            places = len(sequences[group[0]])
            while order and places + len(sequences[order[-1]]) <= _SCORED_PLACES:
                group.append(order.pop())
                places += len(sequences[group[-1]])
            for i, row in zip(group, self._score([sequences[i] for i in group]), strict=True):
                results[i] = row
            done += len(group)
            on_done(done)
        return results

    def refresh(self) -> None:
        """Pack the weights anew before the next pass."""
        self._decoder = None

    def _score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        size = self._block_size
        counts = [-(-(len(ids) - 1) // size) for ids in sequences]
        storage = _Storage(self._model, sum(counts), size)
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        tables = [list(range(first, first + count)) for first, count in zip(firsts, counts, strict=True)]
        results: list[list[float]] = [[] for _ in sequences]
        for start in range(0, max(map(len, sequences)) - 1, _SCORED_PLACES):
            parts = [list(ids[start : start + _SCORED_PLACES + 1]) for ids in sequences]
            live = [i for i, part in enumerate(parts) if len(part) > 1]
            rows = [(parts[i][:-1], start, tables[i]) for i in live]
            states = self._run(rows, [len(ids) for ids, _, _ in rows], storage, scores=False)
            targets = torch.tensor([target for i in live for target in parts[i][1:]])
            found = target_logprobs(self._scores, states, targets).tolist()
            for i in live:
                results[i] += found[: len(parts[i]) - 1]
                del found[: len(parts[i]) - 1]
        return results

    def _run(
        self,
        rows: Sequence[tuple[Sequence[int], int, Sequence[int]]],
        scored: Sequence[int],
        storage: "_Storage",
        *,
        scores: bool,
    ) -> Tensor:
        """Run ids from a place on in their blocks; return scores, or states, of the last `scored` of each row."""
        config, wanted = self._model.config, sum(scored)
        counts = [len(ids) for ids, _, _ in rows]
        ids = _int32([token for row, _, _ in rows for token in row])
        starts, tables = _int32([start for _, start, _ in rows]), _int32([b for _, _, table in rows for b in table])
        at, ats = 0, []
        for _, _, table in rows:
            ats.append(at)
            at += len(table)
        table_at, count, score = torch.tensor(ats), _int32(counts), _int32(scored)
        self._turn_to(max(start + n for (_, start, _), n in zip(rows, counts, strict=True)))
        states = torch.empty(max(1, wanted), config.dim + -config.dim % STRIP)
        logits = torch.empty(wanted, config.vocab_size) if scores else None
        request = Pass(
            len(ids), len(rows), wanted,
            *(t.data_ptr() for t in (ids, starts, count, score, tables, table_at)),
            storage.description,
            self._cos.data_ptr(), self._sin.data_ptr(), states.data_ptr(),
            logits.data_ptr() if logits is not None and wanted else None,
        )  # fmt: skip
        self._library.herd_run(self._ready().handle, ctypes.byref(request))
        return states[:wanted] if logits is None else logits

    def _scores(self, states_te: Tensor) -> Tensor:
        states_te = states_te.contiguous()
        logits = torch.empty(len(states_te), self._model.config.vocab_size)
        self._library.herd_head(self._ready().handle, states_te.data_ptr(), len(states_te), logits.data_ptr())
        return logits

    def _ready(self) -> "_Decoder":
        if self._decoder is None:
            self._decoder = _Decoder(self._library, self._model, keep_weights=self._keep_weights)
        return self._decoder

    def _turn_to(self, positions: int) -> None:
        """Have angles for this many positions."""
        if positions > len(self._cos):
            count = min(max(positions, 2 * len(self._cos), 256), self._model.config.max_positions)
            half = self._model.config.head_size // 2
            cos, sin = rotation_table(self._model.frequencies, torch.arange(max(count, positions)))
            self._cos, self._sin = cos[:, :half].contiguous(), sin[:, :half].contiguous()


class _Storage:
    """Blocks of keys and values, in bfloat16 unless the model is in float32."""

    def __init__(self, model: Transformer, blocks: int, block_size: int) -> None:
        config = model.config
        whole = all(p.dtype == torch.float32 for p in model.parameters()) and not isinstance(model.output, QuantLinear)
        dtype = torch.float32 if whole else torch.bfloat16
        padded = config.head_size + -config.head_size % LANES
        slots = config.n_layers * config.n_kv_heads * blocks * block_size
        self._keys, self._values = (zeros((slots, size), dtype, "cpu") for size in (config.head_size, padded))
        self.description = Cache(
            self._keys.data_ptr(), self._values.data_ptr(), dtype == torch.bfloat16,
            blocks, block_size, config.n_kv_heads, config.head_size, padded,
        )  # fmt: skip


class _Decoder:
    """Packed weights, and the kernels' own memory."""

    def __init__(self, library: ctypes.CDLL, model: Transformer, *, keep_weights: bool) -> None:
        config = model.config
        self._library, self._keep_weights = library, keep_weights
        self._held: list[object] = []
        self._table = table = model.tok_embeddings.weight.detach()
        layers = (Layer * config.n_layers)()
        inputs = _inputs(model)
        for layer, block in zip(layers, model.layers, strict=True):
            assert isinstance(block, Block)
            layer.attention_norm, layer.ffn_norm = self._norm(block.attention_norm), self._norm(block.ffn_norm)
            layer.qkv, layer.out = self._pack(next(inputs)), self._pack(next(inputs))
            layer.gate_up, layer.down = self._pack(next(inputs), paired=True), self._pack(next(inputs))
        self._held += [layers, table]
        shape = Shape(
            config.dim, config.n_layers, config.n_heads, config.n_kv_heads, config.head_size, config.ffn_hidden,
            config.vocab_size, config.norm_eps, torch.get_num_threads(),
        )  # fmt: skip
        self._description = Model(
            shape, layers, self._norm(model.norm), self._pack(next(inputs)), table.data_ptr(),
            table.dtype == torch.bfloat16,
        )  # fmt: skip
        self.handle = library.herd_open(ctypes.byref(self._description))

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self._library.herd_close(self.handle)

    def _pack(self, parts: Sequence[nn.Module], *, paired: bool = False) -> Linear:
        packed: Packed = pack(parts, paired=paired)
        self._held.append(packed)
        if not self._keep_weights:
            for part in parts:
                _release(part, but=self._table)
        return packed.linear

    def _norm(self, norm: RMSNorm) -> int:
        weight = norm.weight.detach().float()
        padded = torch.nn.functional.pad(weight, (0, -len(weight) % STRIP))
        self._held.append(padded)
        return padded.data_ptr()


def _release(part: nn.Module, *, but: Tensor) -> None:
    """Give up the memory of a layer's tensors, which keep their shapes, unless `but` shares it (a tied embedding)."""
    for tensor in (*part.parameters(), *part.buffers()):
        if tensor.data_ptr() != but.data_ptr():
            tensor.data = tensor.new_zeros(()).expand(tensor.shape)


def _int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
