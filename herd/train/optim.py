"""AdamW with float32 masters, and learning rates as functions of the step (arXiv:2407.21783, section 3.4)."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from herd.base.errors import HerdError
from herd.train.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Return the rate of `step` (from 0) out of `steps`: linear warm-up, then the schedule; beyond it the last rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    falling = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.learning_rate * (config.final_share + (1 - config.final_share) * falling)


def own_norm(gradients: list[Tensor]) -> float:
    """Return the norm of all gradients of one process."""
    return float(torch.nn.utils.get_total_norm(gradients))


class Diverged(HerdError):
    """The loss or the gradient is no longer a number."""


class Optimizer:
    """AdamW over the masters of a model's parameters; the model may compute in a shorter format.

    Weight decay falls on matrices only. `step` divides the summed gradients by the weight of the batch first.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        *,
        steps: int,
        dtype: torch.dtype = torch.float32,
        norm: Callable[[list[Tensor]], float] = own_norm,
    ) -> None:
        """Take a float32 model's parameters; they are converted to `dtype`, the masters stay float32.

        Shards (DTensor) stay float32 whatever `dtype` is: they are the masters, and converted when they are gathered.
        norm: of all gradients, over all ranks that hold some.
        """
        self.config, self.steps, self._norm = config, steps, norm
        self._parameters = dict(named)
        self.masters: dict[str, nn.Parameter] = {}
        for name, parameter in self._parameters.items():
            if dtype == torch.float32 or isinstance(parameter, DTensor):
                self.masters[name] = parameter
            else:
                self.masters[name] = nn.Parameter(parameter.detach().clone())
                parameter.data = parameter.data.to(dtype)
        self._average: dict[str, Tensor] = {}
        matrices = [master for master in self.masters.values() if master.dim() >= 2]
        vectors = [master for master in self.masters.values() if master.dim() < 2]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )

    def step(self, step: int, weight: float) -> dict[str, float]:
        """Make one update from summed gradients; returns the learning rate and the gradient norm before clipping."""
        for name, parameter in self._parameters.items():
            master = self.masters[name]
            if parameter.grad is None:
                continue
            if master is not parameter:
                master.grad = parameter.grad.float()
                parameter.grad = None
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        norm = self._norm(grads) / weight
        if not math.isfinite(norm):
            raise Diverged(f"step {step + 1}: the gradient's norm is {norm}; lower optim.learning_rate")
        # one pass divides by the batch's weight and clips
        scale = min(1.0, self.config.clip_norm / (norm + 1e-6)) / weight
        torch._foreach_mul_(grads, scale)
        rate = learning_rate(self.config, step, self.steps)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._copy_back()
        self._update_average(step + 1)
        return {"learning_rate": rate, "grad_norm": norm}

    def moments(self, master: nn.Parameter) -> dict[str, Tensor]:
        """Return AdamW's state of one master, empty before the first step."""
        return dict(self._adamw.state.get(master, {}))

    def weights(self) -> dict[str, Tensor]:
        """Return what is to be kept: the average where one was taken, else the masters."""
        return self._average or {name: master.detach() for name, master in self.masters.items()}

    @torch.no_grad()
    def _update_average(self, done: int) -> None:
        taken = self._averaged(done)
        if taken == self._averaged(done - 1):
            return
        for name, master in self.masters.items():
            if taken == 1:
                self._average[name] = master.detach().clone()
            else:
                self._average[name].lerp_(master, 1 / taken)

    def _averaged(self, done: int) -> int:
        """Return how many weights have entered the average after `done` steps; the last step always does."""
        every = self.config.average_every
        if not every:
            return 0
        first = self.steps - int(self.steps * self.config.average_share)
        return sum(1 for s in range(first, done + 1) if s and (self.steps - s) % every == 0)

    @torch.no_grad()
    def _copy_back(self) -> None:
        for name, parameter in self._parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])

    def state(self, step: int) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint after `step` steps, keyed by parameter name, to be written or filled.

        Asking a fresh optimizer for a later step gives places of the right shapes for `restore`.
        """
        tensors: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            moments = self._adamw.state.get(master) or {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }
            tensors[f"masters/{name}"] = master.detach()
            tensors |= {f"{key}/{name}": value for key, value in moments.items()}
            if self._averaged(step):
                tensors[f"average/{name}"] = self._average.get(name, torch.zeros_like(master))
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take masters, moments and average from `tensors`, and give the model its weights; drop all else."""
        self._average = {}
        self._adamw.zero_grad(set_to_none=True)
        for name, master in self.masters.items():
            master.copy_(tensors[f"masters/{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            self._adamw.state[master] = {key: tensors[f"{key}/{name}"].clone() for key in keys}
            if f"average/{name}" in tensors:
                self._average[name] = tensors[f"average/{name}"].clone()
        for parameter in self._parameters.values():
            parameter.grad = None
        self._copy_back()
