"""What one rank of a training run holds and how it runs a step: the one function behind which all parallelism lies.

    Alone      one process: the model itself
    Sharded    FSDP, tensor and context parallel: the model, each layer gathered when it is needed
    Piped      stages of a pipeline, sharded or not
`hold` builds the first, `spread` the right one of the others. The loop (train/loop.py) asks it for summed losses with
gradients behind them, and for sums over ranks; it knows nothing else of a mesh.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig
from herd.model.source import Source
from herd.model.transformer import Transformer
from herd.parallel.config import ParallelConfig, layers_of, stages_of
from herd.parallel.float8 import to_float8
from herd.parallel.mesh import Mesh
from herd.parallel.pipeline import Pipeline, StageModel
from herd.parallel.recompute import recompute
from herd.parallel.rows import alike, rows_of
from herd.parallel.sharding import own, shard, tensor_parallel
from herd.parallel.stages import keep_stage
from herd.parallel.weights import fill

Summed = Callable[[Any, Any], Any]  # (model, batch) -> a loss with `total`, `weight` and `metrics`


class Worker(Protocol):
    """One rank's part of a model; `mesh` is None where it is the whole, `models` are its stages."""

    @property
    def mesh(self) -> Mesh | None: ...

    @property
    def models(self) -> Sequence[Transformer]: ...

    def backward(self, loss_of: Summed, batches: Sequence[Any]) -> list[Any]:
        """Run forward and backward of a step's micro-batches; return their losses, as far as this rank knows them."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks that know other losses."""
        ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Yield what this rank holds, by the model's own names."""
        ...

    def train(self) -> None:
        """Say that training goes on: another use of the model may have said otherwise."""
        ...


class Alone:
    """A whole model in one process; `plain` is the same weights in blocks as they are written, for other uses."""

    mesh = None

    def __init__(self, model: Transformer, plain: Transformer | None = None) -> None:
        self.model, self.models, self.plain = model, (model,), plain or model

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self.model.named_parameters()

    def train(self) -> None:
        self.model.train()

    def backward(self, loss_of: Summed, batches: Sequence[Any]) -> list[Any]:
        return [_backward(loss_of(self.model, batch)) for batch in batches]

    def sum(self, values: Tensor) -> Tensor:
        return values


class Sharded:
    """A model of which each layer is gathered when it is needed; `roots` is what FSDP knows as the whole."""

    def __init__(self, model: Transformer, mesh: Mesh, dtype: torch.dtype) -> None:
        self.model, self.mesh, self._dtype = model, mesh, dtype
        self.models, self.roots = (model,), (model,)

    def sum(self, values: Tensor) -> Tensor:
        return self.mesh.sum_of_tokens(values)

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self.model.named_parameters()

    def train(self) -> None:
        self.model.train()

    def backward(self, loss_of: Summed, batches: Sequence[Any]) -> list[Any]:
        losses = []
        assert isinstance(self.model, FSDPModule)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            # gradients are summed over ranks once a step
            self.model.set_requires_gradient_sync(last)
            self.model.set_is_last_backward(last)
            whole = alike([batch], self.mesh)[0]
            losses.append(_backward(loss_of(self.model, rows_of(whole, self.mesh, self._dtype).batch)))
        return losses


class Piped:
    """Stages of a pipeline."""

    def __init__(self, stages: Sequence[tuple[int, StageModel]], mesh: Mesh, dtype: torch.dtype) -> None:
        self.mesh, self._dtype = mesh, dtype
        self._stages, self._device = stages, torch.device(mesh.root.device_type)
        self.roots = tuple(stage for _, stage in stages)
        self.models = tuple(stage.part for stage in self.roots)
        self._pipeline = Pipeline(stages, mesh, self._device)

    def sum(self, values: Tensor) -> Tensor:
        return self.mesh.sum_of_tokens(values)

    def train(self) -> None:
        for _, stage in self._stages:
            stage.train()

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return (named for _, stage in self._stages for named in stage.part.named_parameters())

    def backward(self, loss_of: Summed, batches: Sequence[Any]) -> list[Any]:
        rows = [rows_of(batch, self.mesh, self._dtype) for batch in alike(batches, self.mesh)]
        return self._pipeline.run(loss_of, rows, dtype=self._dtype)


def hold(source: Source, config: ParallelConfig, *, device: torch.device) -> Alone:
    """Hold a source's whole model in one process, in float32; what `config` says of blocks is done to them."""
    with torch.device("meta"):
        model = Transformer(source.config)
    changed = config.float8 or config.compile or config.recompute != "none"
    if config.float8:
        to_float8(model, device)
    _run_as(model, config)
    fill([model], source, device)
    if source.config.tie_embeddings:  # giving memory has torn them apart
        model.output.weight = model.tok_embeddings.weight
    return Alone(model, _sharing(model) if changed else None)


def spread(source: Source, config: ParallelConfig, *, device: torch.device, dtype: torch.dtype) -> Worker:
    """Lay a source's weights out over the process group. Raises HerdError where the source is damaged."""
    worker = lay_out(source.config, config, device=device, dtype=dtype)
    fill(worker.models, source, device)
    return worker


def lay_out(shape: ModelConfig, config: ParallelConfig, *, device: torch.device, dtype: torch.dtype) -> Worker:
    """Make this rank's part of a model, which has no memory yet (`fill` gives it some).

    Order matters: stages, float8, tensor parallel, recompute, compile, shards; then memory is given and filled.
    """
    if config.offload and device.type != "cuda":
        raise ConfigError("parallel.offload: this device's memory is the host's already; leave it out")
    mesh = Mesh.of(config, device)
    count = config.stages
    made: list[tuple[int, StageModel]] = []
    for number in stages_of(config, mesh.rank("pp")):
        with torch.device("meta"):
            model = Transformer(shape)
        if count > 1:
            layers = layers_of(shape.n_layers, count)[number]
            keep_stage(model, layers, first=number == 0, last=number == count - 1)
        root = _laid_out(model, mesh, dtype, piped=count > 1)
        if not isinstance(root, StageModel):
            return Sharded(model, mesh, dtype)
        made.append((number, root))
    return Piped(made, mesh, dtype)


def _laid_out(model: Transformer, mesh: Mesh, dtype: torch.dtype, *, piped: bool) -> nn.Module:
    """Make a model, or a stage, one rank's part; return what runs it."""
    if mesh.config.float8:
        to_float8(model, torch.device(mesh.root.device_type))
    if mesh.config.tp > 1:
        tensor_parallel(model, mesh.heads)
    _run_as(model, mesh.config)
    root = StageModel(model) if piped else model
    shard(model, mesh, dtype, root=root)
    return root


def _run_as(model: Transformer, config: ParallelConfig) -> None:
    """Make blocks forget activations, and compile them, as told."""
    for i in own(model):
        recompute(model.layers[i], config.recompute)
        if config.compile:
            model.layers[i].compile()


def _sharing(model: Transformer) -> Transformer:
    """Return a model of plain blocks whose parameters are those of `model`."""
    with torch.device("meta"):
        plain = Transformer(model.config)
    plain.frequencies = model.frequencies
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(owner), leaf, parameter)
    return plain


def _backward(loss: Any) -> Any:
    loss.total.backward()
    return loss
