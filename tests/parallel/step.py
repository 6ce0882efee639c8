"""One training step on a mesh, for comparison with one process: summed loss and every gradient."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from toys import toy_examples, toy_model

from herd.distill.objective import Distill
from herd.model.config import ModelConfig
from herd.model.source import WeightsSource
from herd.model.transformer import Transformer
from herd.parallel.config import ParallelConfig
from herd.parallel.weights import Gathered
from herd.parallel.worker import Alone, spread
from herd.train.batch import Batch, Example, collate
from herd.train.objective import NextToken, Objective

CONFIG = ModelConfig(
    dim=32, n_layers=4, n_heads=8, n_kv_heads=4, ffn_hidden=48, vocab_size=64, max_positions=64, norm_eps=1e-5
)
ROW, ROWS, MICRO = 32, 4, 4
OBJECTIVES: dict[str, Objective] = {"next token": NextToken(), "distil": Distill(0.7)}


def toy(tied: bool = False) -> Transformer:
    return toy_model(CONFIG.model_copy(update={"tie_embeddings": tied}), std=0.1)


def batches(*, micro: int = MICRO, rows: int = ROWS) -> list[Batch]:
    """Ragged documents, several to a row, weights of all sizes, and a teacher."""
    lengths = np.random.default_rng(3).integers(3, ROW // 2, 2 * micro * rows).tolist()
    examples = [_taught(e) for e in toy_examples(lengths, share=0.5)]
    pairs = [examples[i : i + 2] for i in range(0, len(examples), 2)]
    return [collate(pairs[i * rows : (i + 1) * rows], row_length=ROW, pad_id=0) for i in range(micro)]


def _taught(example: Example, k: int = 5) -> Example:
    rng = np.random.default_rng(len(example.ids))
    dense = rng.normal(size=(len(example.ids), CONFIG.vocab_size))
    logprobs = dense - np.log(np.exp(dense).sum(1, keepdims=True))
    ids = np.argsort(-logprobs, 1)[:, :k]
    return Example(example.ids, example.weights, (ids, np.take_along_axis(logprobs, ids, 1).astype(np.float32)))


def part(batch: Batch, rank: int, size: int) -> Batch:
    """Return a rank's rows."""
    pair = tuple(t[rank::size] for t in batch.teacher) if batch.teacher else None
    rows = (batch.tokens, batch.targets, batch.weights, batch.documents, batch.positions)
    return Batch(*(t[rank::size] for t in rows), teacher=pair)


def reference(objective: str, tied: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Return loss, weight and tokens, and the gradients, of one process."""
    model = toy(tied)
    losses = Alone(model).backward(OBJECTIVES[objective].loss, batches())
    return [float(sum(x.total for x in losses)), float(sum(x.weight for x in losses))], {
        name: p.grad for name, p in model.named_parameters()
    }


def compare(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run each mesh; return by how much loss and gradients differ from one process, relative to the largest entry."""
    return [_compare(**case) for case in cases]


def _compare(objective: str = "next token", tied: bool = False, dtype: str = "float32", **mesh: Any) -> dict[str, Any]:
    config = ParallelConfig(**mesh)
    sums, gradients = reference(objective, tied)
    model = toy(tied)
    source = WeightsSource(dict(model.named_parameters()), model.config)
    worker = spread(source, config, device=torch.device("cpu"), dtype=getattr(torch, dtype))
    assert worker.mesh is not None
    mine = [part(batch, worker.mesh.data_rank, config.data) for batch in batches()]
    losses = worker.backward(OBJECTIVES[objective].loss, mine)
    found = torch.tensor([float(sum(x.total for x in losses)), float(sum(x.weight for x in losses))])
    found = worker.sum(found).tolist()
    own = {name: p.grad for name, p in worker.named_parameters() if p.grad is not None}
    everything = Gathered(own, model.config, worker.mesh)
    wrong = {}
    for name, gradient in everything.whole():
        wanted = gradients[name]
        wrong[name] = float((gradient - wanted).abs().max() / wanted.abs().max())
    norm = worker.mesh.norm(list(own.values()))
    whole = float(torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt())
    worst = max(wrong, key=wrong.__getitem__)
    dist.barrier()
    return {
        "mesh": config.describe(),
        "loss": abs(found[0] - sums[0]) / abs(sums[0]),
        "weight": abs(found[1] - sums[1]),
        "gradient": wrong[worst],
        "worst": worst,
        "norm": abs(norm / whole - 1),
        "parameters": len(wrong),
    }
