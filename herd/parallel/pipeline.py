"""Pipeline parallelism: a rank's stages, run by PyTorch's schedules over the micro-batches of a step.

    micro-batches of one shape -> schedule: forward and backward of each, stage after stage -> sums of the last stage
The loss is the same function as ever: it is called with a model whose forward pass has been made already.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle, get_schedule_class

from herd.model.transformer import Transformer
from herd.parallel.mesh import Mesh
from herd.parallel.rows import Rows

Summed = Callable[[Any, Any], Any]  # (model, batch) -> a loss: summed, with a weight and metrics


class StageModel(nn.Module):
    """One stage: looks up positions and documents of the micro-batch whose number comes with its input."""

    def __init__(self, part: Transformer) -> None:
        super().__init__()
        self.part = part
        self.rows: Sequence[Rows] = ()

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        """Return hidden states for tokens or hidden states."""
        rows = self.rows[int(number)]
        return self.part(x, positions=rows.positions, documents=rows.documents)


class Passed:
    """A model whose forward pass was made by the pipeline: gives its hidden states to whoever asks."""

    def __init__(self, part: Transformer, hidden: Tensor) -> None:
        self.config, self._part, self._hidden = part.config, part, hidden

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return scores."""
        return self._part.logits(hidden)


class Pipeline:
    """This rank's stages. PyTorch's stages know shapes beforehand, so there is a schedule for each shape of a step."""

    def __init__(self, stages: Sequence[tuple[int, StageModel]], mesh: Mesh, device: torch.device) -> None:
        self._stages, self._mesh, self._device = stages, mesh, device
        self._schedules: dict[tuple[int, ...], Any] = {}
        self._loss: Callable[[Tensor, Tensor], Tensor] | None = None

    def run(self, loss_of: Summed, rows: Sequence[Rows], *, dtype: torch.dtype) -> list[Any]:
        """Run forward and backward of micro-batches of one shape; return their losses, on the last stage."""
        losses: list[Any] = []

        def loss(hidden: Tensor, numbers: Tensor) -> Tensor:
            assert self._last is not None
            found = loss_of(Passed(self._last, hidden), rows[int(numbers)].batch)
            # detached: where the backward pass comes in two halves, its graph would keep a stage's activations
            losses.append(replace(found, total=found.total.detach()))
            return found.total.clone()  # a schedule detaches it in place, which a view refuses

        self._loss = loss
        for _, stage in self._stages:
            stage.rows = rows
        shape = (len(rows), *rows[0].batch.tokens.shape)
        schedule = self._schedules.get(shape) or self._schedules.setdefault(shape, self._schedule(shape, dtype))
        numbers = torch.arange(len(rows), device=self._device)
        tokens = torch.cat([each.batch.tokens for each in rows]) if self._first else None
        inputs = () if tokens is None else (tokens,)
        target = {} if self._last is None else {"target": numbers, "losses": []}
        # what the last stage gave out would be kept, and all that its graph holds, until the step's end
        schedule.step(*inputs, number=numbers, return_outputs=False, **target)
        return losses

    @property
    def _first(self) -> bool:
        return any(number == 0 for number, _ in self._stages)

    @property
    def _last(self) -> Transformer | None:
        final = self._mesh.config.stages - 1
        return next((stage.part for number, stage in self._stages if number == final), None)

    def _schedule(self, shape: tuple[int, ...], dtype: torch.dtype) -> PipelineScheduleSingle | PipelineScheduleMulti:
        micro, rows, length = shape
        config, count = self._mesh.config, self._mesh.config.stages
        made = []
        for number, stage in self._stages:
            hidden = torch.empty(rows, length // config.tp, stage.part.config.dim, dtype=dtype, device="meta")
            whole = torch.empty(rows, length, stage.part.config.dim, dtype=dtype, device="meta")
            tokens = torch.empty(rows, length, dtype=torch.int64, device="meta")
            made.append(
                PipelineStage(
                    stage,
                    number,
                    count,
                    self._device,
                    input_args=(hidden.requires_grad_() if number else tokens,),
                    output_args=((whole if number == count - 1 else hidden).requires_grad_(),),
                    group=self._mesh.group("pp"),
                )
            )
        schedule = get_schedule_class(config.schedule)

        def loss(hidden: Tensor, numbers: Tensor) -> Tensor:
            assert self._loss is not None
            return self._loss(hidden, numbers)

        return schedule(made[0] if count == config.pp else made, micro, loss_fn=loss, scale_grads=False)
