"""One rank's training step, run without memory or neighbours: what herd's own code allocates, multiplies and sends.

    fake process group (this rank of all) -> herd.parallel lays the model out -> tensors without memory ->
    a whole step: PyTorch's schedule, forward, loss, backward, AdamW -> bytes alive, FLOPs, bytes of collectives
The process group is the process's own, so a trace has a process to itself: `simulate` starts it. What a processor does
otherwise than a GPU stays in the figures: a norm keeps float32 copies, keys are repeated for all queries of a group,
and nothing is compiled.
"""

import json
import subprocess
import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from herd.base.errors import HerdError
from herd.model.attention import attend, document_mask
from herd.model.config import ModelConfig
from herd.model.pieces import additive
from herd.model.rope import inverse_frequencies
from herd.parallel.config import AXES, ParallelConfig
from herd.parallel.mesh import Mesh
from herd.parallel.worker import Piped, Sharded, Worker, lay_out
from herd.plan.run import Run
from herd.train.batch import Batch
from herd.train.config import OptimConfig
from herd.train.objective import NextToken
from herd.train.optim import Optimizer

_ATEN, _FUNCTIONAL, _C10D = torch.ops.aten, torch.ops._c10d_functional, torch.ops.c10d
_SNAPSHOT = 1.01  # growth of the peak after which its parts are counted anew


@dataclass(frozen=True)
class Traced:
    """What a rank's step came to. Bytes at the fullest moment, in all and by part; FLOPs and sent bytes of the step.

    sent: 'AXIS OPERATION' -> (times, bytes of the whole buffer, of which a ring sends (n - 1) / n).
    """

    parameters: int
    micro_batches: int
    peak: int
    parts: Mapping[str, int]
    product_flops: float
    attention_flops: float
    sent: Mapping[str, tuple[int, int]]


def simulate(run: Run, rank: int, *, fewest: bool = True) -> Traced:
    """Trace the step of a pipeline rank in a process of its own: a minute or so for 405B. Raises HerdError.

    fewest: only as many micro-batches as fill the pipeline, more of which hold no more.
    """
    parallel = run.parallel.model_copy(update={"compile": False, "float8": False})
    micro_batches = max(parallel.stages, min(2, run.micro_batches)) if fewest else run.micro_batches
    asked = {
        "config": run.config.model_dump(),
        "parallel": parallel.model_dump(),
        "row_length": run.row_length,
        "batch_tokens": micro_batches * run.micro_rows * parallel.data * run.row_length,
        "micro_rows": run.micro_rows,
        "rank": rank,
    }
    command = [sys.executable, "-m", "herd.plan.simulate"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise HerdError(f"the simulation of pipeline rank {rank} ended: {lines[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Traced(**found | {"sent": {name: tuple(pair) for name, pair in found["sent"].items()}})


def main() -> None:
    """Trace what standard input asks for, and print it as JSON."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    asked = json.load(sys.stdin)
    torch.set_num_threads(1)
    rank, parallel = asked.pop("rank"), ParallelConfig(**asked.pop("parallel"))
    run = Run(ModelConfig(**asked.pop("config")), parallel, **asked)
    world = parallel.ranks
    dist.init_process_group("fake", rank=rank * (world // parallel.pp), world_size=world, store=FakeStore())
    # how tensors are split is worked out once for each shape, on tensors of all ranks' size, which aren't to be counted
    trace(replace(run, config=run.config.model_copy(update={"n_layers": parallel.stages})))
    traced = trace(run)
    sys.stdout.write(json.dumps(asdict(traced)) + "\n")


def trace(run: Run) -> Traced:
    """Run one step of this rank, with tensors that have no memory."""
    device = torch.device("cpu")
    worker = lay_out(run.config, run.parallel, device=device, dtype=torch.bfloat16)
    assert worker.mesh is not None
    with FakeTensorMode(allow_non_fake_inputs=True), _Trace(_axes(worker.mesh)) as found:
        for model in worker.models:
            model.to_empty(device=device)
            model.frequencies = inverse_frequencies(run.config)
        settings = OptimConfig(learning_rate=1e-4)
        optimizer = Optimizer(
            worker.named_parameters(), settings, steps=10, dtype=torch.bfloat16, norm=worker.mesh.norm
        )
        for _, parameter in worker.named_parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(0, 1.0)  # makes the moments
        masters = [_local(master) for master in optimizer.masters.values()]
        moments = [_local(state) for master in optimizer.masters.values() for state in _moments(optimizer, master)]
        found.begin(lambda: {"masters": _bytes(masters), "moments": _bytes(moments)} | _parts(worker))
        worker.backward(NextToken().loss, [_batch(run) for _ in range(run.micro_batches)])
        optimizer.step(1, 1.0)
    return Traced(
        parameters=sum(parameter.numel() for _, parameter in worker.named_parameters()),
        micro_batches=run.micro_batches,
        peak=found.peak,
        parts=found.parts,
        product_flops=found.flops["products"],
        attention_flops=found.flops["attention"],
        sent={name: (times, size) for name, (times, size) in sorted(found.sent.items())},
    )


def _batch(run: Run) -> Batch:
    shape = run.micro_rows, run.row_length
    ids = torch.zeros(shape, dtype=torch.int64)
    # which rows are short enough for a mask a GPU decides otherwise than a processor; context parallel ranks always do
    documents: Any = ids.clone() if run.parallel.cp > 1 else _AsOnGPU(*shape) if run.masked else None
    return Batch(ids, ids.clone(), torch.ones(shape), documents, ids.clone())


class _AsOnGPU:
    """Attention under a dense mask (herd.model.attention.Reach), made when the first layer asks for it."""

    def __init__(self, rows: int, length: int) -> None:
        self._shape, self._bias = (rows, length), None

    def attend(self, q_bhtd: Tensor, k_bhsd: Tensor, v_bhsd: Tensor) -> Tensor:
        """Return attention [b, h, t, d]."""
        if self._bias is None:
            self._bias = additive(document_mask(torch.zeros(self._shape, dtype=torch.int64)), q_bhtd.dtype)
        return attend(q_bhtd, k_bhsd, v_bhsd, self._bias)


def _moments(optimizer: Optimizer, master: nn.Parameter) -> list[Tensor]:
    return [value for value in optimizer.moments(master).values() if value.numel() > 1]


def _axes(mesh: Mesh) -> dict[tuple[int, ...], str]:
    """Return the axis along which a group of ranks lies; PyTorch makes groups of its own with the same ranks."""
    sizes = zip(AXES, mesh.config.sizes, strict=True)
    groups = [(mesh.group(axis), axis) for axis, size in sizes if size > 1]
    groups.append((mesh.shards.get_group(mesh.shards.ndim - 1), "dp_shard"))
    return {tuple(dist.get_process_group_ranks(group)): axis for group, axis in groups}


def _parts(worker: Worker) -> dict[str, int]:
    """Return the bytes alive of what FSDP holds by name; the rest is activations and work."""
    parameters = [parameter for _, parameter in worker.named_parameters()]
    gathered: list[Tensor] = []
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert isinstance(worker, Sharded | Piped)
    for root in worker.roots:
        for held in _sharded(root):
            gathered += held.all_gather_outputs
            whole = getattr(held, "_unsharded_param", None)
            waiting = (held.unsharded_accumulated_grad, None if whole is None else whole.grad)
            gradients += [gradient for gradient in waiting if gradient is not None]
    return {
        "gathered weights": _bytes(map(_local, gathered)),
        "gradients": _bytes(map(_local, gradients)),
    }


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sharded(model: nn.Module) -> Iterable[Any]:
    for module in model.modules():
        group = module._get_fsdp_state()._fsdp_param_group if isinstance(module, FSDPModule) else None
        yield from () if group is None else group.fsdp_params


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors' storages, each counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


class _Trace(TorchDispatchMode):
    """Sees every operator on a rank's own tensors: counts storages that live, FLOPs, and what collectives move."""

    def __init__(self, axes: Mapping[tuple[int, ...], str]) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.parts: dict[str, int] = {}
        self.flops: dict[str, float] = defaultdict(float)
        self.sent: dict[str, tuple[int, int]] = {}
        self._axes, self._known = axes, None
        self._held: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._counted_at = 0.0

    def begin(self, known: Callable[[], dict[str, int]]) -> None:
        """Count from here on; what is alive stays."""
        self._known, self.peak, self._counted_at = known, self.alive, 0.0
        self.flops.clear()
        self.sent.clear()

    def __enter__(self) -> "_Trace":
        self._resize = torch.UntypedStorage.resize_
        trace, resize = self, self._resize

        # FSDP lets go of gathered weights by resizing their storage, which no operator shows
        def resized(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            trace._resized(storage)

        setattr(torch.UntypedStorage, "resize_", resized)  # noqa: B010  (its type is fixed)
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        setattr(torch.UntypedStorage, "resize_", self._resize)  # noqa: B010
        super().__exit__(exc_type, exc_val, exc_tb)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor | AsyncCollectiveTensor) for kind in types):
            return NotImplemented  # comes back as operators on what this rank holds
        if func is _ATEN._local_scalar_dense.default:
            # asked of a tensor without memory: a mask is full, a norm is 1, and every micro-batch is like another
            return args[0].dtype == torch.bool or (1.0 if args[0].is_floating_point() else 1)
        out = func(*args, **(kwargs or {}))
        self._count_flops(func, args, out)
        self._count_sent(func, args, out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return
        self._held[key] = weakref.ref(storage, partial(self._gone, key)), size
        self._grow(size)

    def _gone(self, key: int, _: Any) -> None:
        self.alive -= self._held.pop(key)[1]

    def _resized(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._held:
            ref, before = self._held[storage._cdata]
            self._held[storage._cdata] = ref, storage.nbytes()
            self._grow(storage.nbytes() - before)

    def _grow(self, size: int) -> None:
        self.alive += size
        if self.alive <= self.peak:
            return
        self.peak = self.alive
        if self._known is not None and self.peak > self._counted_at * _SNAPSHOT:
            self._counted_at = self.peak
            known, self._known = self._known, None  # what it asks of tensors isn't to be counted
            parts = known()
            self._known = known
            self.parts = parts | {"activations and work": self.peak - sum(parts.values())}

    def _count_flops(self, func: Any, args: Any, out: Any) -> None:
        if func in (_ATEN.mm.default, _ATEN.bmm.default):
            self.flops["products"] += 2 * args[0].numel() * args[1].shape[-1]
        elif func is _ATEN._scaled_dot_product_flash_attention_for_cpu.default:
            self.flops["attention"] += 4 * args[0].numel() * args[1].shape[-2]
        elif func is _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default:
            self.flops["attention"] += 10 * args[1].numel() * args[2].shape[-2]

    def _count_sent(self, func: Any, args: Any, out: Any) -> None:
        packet = getattr(func, "overloadpacket", None)
        if packet in (_FUNCTIONAL.all_gather_into_tensor, _FUNCTIONAL.reduce_scatter_tensor, _FUNCTIONAL.all_reduce):
            moved = out if packet is _FUNCTIONAL.all_gather_into_tensor else args[0]
            group = _resolve_process_group(args[-1])
        elif packet in (_C10D._allgather_base_, _C10D._reduce_scatter_base_):
            moved = args[0] if packet is _C10D._allgather_base_ else args[1]
            group = dist.ProcessGroup.unbox(args[2])
        elif packet in (_C10D.allreduce_, _C10D.send):
            moved, group = args[0][0], dist.ProcessGroup.unbox(args[1])
        else:
            return
        axis = self._axes.get(tuple(dist.get_process_group_ranks(group)), "several")
        name = f"{axis} {_NAMES[str(packet).split('.')[-1]]}"
        times, size = self.sent.get(name, (0, 0))
        self.sent[name] = times + 1, size + moved.numel() * moved.element_size()


_NAMES = {
    "all_gather_into_tensor": "gather",
    "_allgather_base_": "gather",
    "reduce_scatter_tensor": "reduce-scatter",
    "_reduce_scatter_base_": "reduce-scatter",
    "all_reduce": "sum",
    "allreduce_": "sum",
    "send": "send",
}


if __name__ == "__main__":
    main()
