"""Which runner a model gets: by where it lies, and by which kernels were seen to be right there."""

import logging
from functools import partial

import torch
from torch import Tensor

from herd.engine import kernels, lockstep
from herd.engine.graphs import GraphRunner, Kernels
from herd.engine.lockstep import LeadingRunner
from herd.engine.native import runner as native
from herd.engine.passes import (
    PLAIN,
    TRITON,
    DecodeKernels,
    PackedAttention,
    Spans,
    packed_flash,
    packed_plain,
    packed_rows,
)
from herd.engine.runner import Runner, TorchRunner
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.parallel.tensor import GatheredLinear

log = logging.getLogger("herd.engine")
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # of the largest value


def open_runner(model: Transformer, *, blocks: int, block_size: int, keep_weights: bool = True) -> Runner:
    """Return a runner for the model where it lies; of a model over several ranks the one that leads the others'.

    keep_weights: whether the model must stay usable beside the runner, which may hold all weights a second time.
    """
    runner = _own_runner(model, blocks=blocks, block_size=block_size, keep_weights=keep_weights)
    if isinstance(model.output, GatheredLinear):
        return LeadingRunner(runner, blocks=blocks, block_size=block_size)
    return runner


def follow(model: Transformer) -> None:
    """Run, on any rank but 0, this rank's part of all that rank 0's engine runs, until that is closed."""
    lockstep.follow(partial(_own_runner, model))


def _own_runner(model: Transformer, *, blocks: int, block_size: int, keep_weights: bool = True) -> Runner:
    parameter = next(model.parameters())
    if native.supports(model, block_size=block_size):
        return native.NativeRunner(model, blocks=blocks, block_size=block_size, keep_weights=keep_weights)
    if parameter.device.type != "cuda":
        return TorchRunner(model, blocks=blocks, block_size=block_size)
    chosen = choose_kernels(model.config, block_size=block_size, dtype=parameter.dtype, device=parameter.device)
    return GraphRunner(model, blocks=blocks, block_size=block_size, kernels=chosen)


def choose_kernels(config: ModelConfig, *, block_size: int, dtype: torch.dtype, device: torch.device | str) -> Kernels:
    """Return the fastest kernels that agree with the plain ones on a small case; others are named in the log, once."""
    case = _Case(config, block_size, dtype, torch.device(device))
    unused = []
    decode, prompt = PLAIN, packed_plain
    if not kernels.fits(config.head_size, block_size):
        unused.append("Triton: not installed, or not made for these sizes")
    elif reason := case.decode_fault(TRITON):
        unused.append(f"Triton: {reason}")
    else:
        decode = TRITON
    for candidate in (packed_flash, packed_rows):
        if not (reason := case.prompt_fault(candidate)):
            prompt = candidate
            break
        unused.append(f"{candidate.__name__}: {reason}")
    if unused:
        log.warning("kernels that aren't used: %s; PyTorch's plain operators do their work", "; ".join(unused))
    return Kernels(decode, prompt, capture=torch.device(device).type == "cuda", unused=tuple(unused))


class _Case:
    """Three rows of random numbers, one of a single position and one of several blocks."""

    def __init__(self, config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self._size, self._dtype, self._device = block_size, dtype, device
        self._heads, self._kv, self._wide = config.n_heads, config.n_kv_heads, config.head_size

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        self._lengths = [1, 5 * block_size - 1, 2 * block_size]
        new = len(self._lengths)
        self._q, self._k, self._v = draw(new, self._heads, self._wide), *draw(2, new, self._kv, self._wide)
        self._keys, self._values = draw(2, self._kv, 16 * block_size, self._wide)
        self._table = torch.randperm(16, generator=generator)[: 3 * 5].view(3, 5).to(device, torch.int32)
        angle = torch.rand((new, self._wide // 2), generator=generator).to(device)
        angles = torch.cat((angle, angle), -1)
        self._cos, self._sin = angles.cos(), angles.sin()

    def decode_fault(self, candidate: DecodeKernels) -> str | None:
        """Say what is wrong with kernels of a decode pass, or nothing."""
        try:
            found = self._decode(candidate)
            torch.cuda.synchronize() if self._device.type == "cuda" else None
        except Exception as error:  # a compiler, a driver or a launch can fail in any way: each means the plain path
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.160}"
        return self._compared(found, self._decode(PLAIN))

    def prompt_fault(self, candidate: PackedAttention) -> str | None:
        """Say what is wrong with an attention of packed rows, or nothing."""
        stored = sum(self._lengths)
        keys, values = (held[:, :stored].transpose(0, 1) for held in (self._keys, self._values))
        spans = Spans((0, 1, 3, 4), (0, 1, 1 + 5 * self._size - 1, stored))
        edges = torch.tensor([spans.new, spans.stored], dtype=torch.int32, device=self._device)
        q = torch.cat((self._q, self._q[:1]))
        try:
            found = candidate(q, keys, values, spans, edges)
            torch.cuda.synchronize() if self._device.type == "cuda" else None
        except Exception as error:
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.160}"
        return self._compared([found], [packed_plain(q, keys, values, spans, edges)])

    def _decode(self, candidate: DecodeKernels) -> list[Tensor]:
        keys, values = self._keys.clone(), self._values.clone()
        lengths = torch.tensor(self._lengths, dtype=torch.int32, device=self._device)
        last = (lengths - 1).long()
        blocks = self._table.gather(1, (last // self._size).unsqueeze(1)).squeeze(1)
        places = blocks * self._size + last % self._size
        turned = candidate.store(
            self._q, self._k, self._v, self._cos, self._sin, places_t=places, keys_hpd=keys, values_hpd=values
        )
        out = candidate.attend(turned, keys, values, table_tw=self._table, lengths_t=lengths, block_size=self._size)
        halves = self._q.flatten(1).unsqueeze(0).chunk(2, -1)
        gate = candidate.gate(*halves) if candidate.gate else torch.nn.functional.silu(halves[0]) * halves[1]
        return [turned, out, keys, values, gate]

    def _compared(self, found: list[Tensor], wanted: list[Tensor]) -> str | None:
        for one, other in zip(found, wanted, strict=True):
            error = float((one.float() - other.float()).abs().max() / other.float().abs().max())
            if not error <= _TOLERANCE[self._dtype]:  # NaN is wrong too
                return f"differs from the plain operators by {error:.1e} of the largest value"
        return None
