"""What a recipe says of blocks holds in one process too, and changes no gradient."""

from typing import Any

import pytest
import torch
from step import CONFIG, batches, toy

from herd.model.source import WeightsSource
from herd.parallel.config import ParallelConfig
from herd.parallel.worker import Alone, hold
from herd.train.config import OptimConfig
from herd.train.objective import NextToken
from herd.train.optim import Optimizer

DEVICE = torch.device("cpu")
COUNT = 4 * 9 + 3


def held(*, tied: bool = False, **how: Any) -> Alone:
    model = toy(tied)
    return hold(WeightsSource(dict(model.named_parameters()), model.config), ParallelConfig(**how), device=DEVICE)


def gradients(worker: Alone, dtype: torch.dtype, rows: int = 4) -> dict[str, torch.Tensor]:
    for parameter in worker.model.parameters():
        parameter.data = parameter.data.to(dtype)
    worker.backward(NextToken().loss, batches(micro=1, rows=rows))
    found = {name: parameter.grad for name, parameter in worker.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("how", ["full", "selective"])
@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, 4), (torch.bfloat16, 20)])  # 640 places: packed weights
def test_recomputing_changes_no_bit(how: str, dtype: torch.dtype, rows: int) -> None:
    torch.set_num_threads(1)
    wanted, found = (gradients(held(recompute=r), dtype, rows) for r in ("none", how))
    assert len(wanted) == COUNT
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # within PyTorch's compiler
def test_compiled_blocks_have_the_gradients_of_others() -> None:
    wanted, found = (gradients(held(compile=c), torch.float32) for c in (False, True))
    for name, gradient in wanted.items():
        assert (found[name] - gradient).abs().max() <= 4e-6 * gradient.abs().max(), name


@pytest.mark.parametrize("tied", [False, True])
def test_others_see_plain_blocks_with_the_weights_that_are_trained(tied: bool) -> None:
    worker = held(recompute="full", tied=tied)
    optimizer = Optimizer(worker.named_parameters(), OptimConfig(learning_rate=1e-2), steps=1, dtype=torch.bfloat16)
    worker.backward(NextToken().loss, batches(micro=1))
    optimizer.step(0, 1.0)
    assert worker.plain is not worker.model
    trained, seen = dict(worker.model.named_parameters()), dict(worker.plain.named_parameters())
    assert len(trained) == COUNT - tied
    assert trained.keys() == seen.keys()
    assert all(seen[name] is trained[name] for name in trained)
    tokens = torch.arange(CONFIG.vocab_size).view(1, -1)
    with torch.no_grad():
        assert torch.equal(worker.plain(tokens), worker.model(tokens))


def test_without_changes_there_is_one_model() -> None:
    worker = held()
    assert worker.plain is worker.model
