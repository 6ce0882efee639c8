"""One model over several ranks by PyTorch's own means: tensor and sequence parallel (DTensor), then shards (FSDP2).

The plan of a block (arXiv:1909.08053, arXiv:2205.05198), | marks what is split by position, % by head or width:
    x| -> norm| -> gather -> wq% wk% wv% -> attention% -> wo% -> reduce-scatter| + x|   and the same around SwiGLU
Between blocks a rank has t / tp positions, so that norms and residuals, and what a pipeline sends, are split too.
Hidden states leave the model whole; scores stay split by vocabulary, as the loss reads them (train/vocabulary.py).
"""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from herd.model.transformer import Transformer
from herd.parallel.mesh import Mesh


def tensor_parallel(model: Transformer, mesh: DeviceMesh) -> None:
    """Split a model, or one stage of it, over the `tp` axis. Weights may still be on the meta device."""
    block: dict[str, ParallelStyle] = {
        "attention_norm": SequenceParallel(use_local_output=True),
        "attention": _gathered(2),
        "attention.wq": ColwiseParallel(),
        "attention.wk": ColwiseParallel(),
        "attention.wv": ColwiseParallel(),
        "attention.wo": RowwiseParallel(output_layouts=Shard(1)),
        "ffn_norm": SequenceParallel(use_local_output=True),
        "feed_forward": _gathered(1),
        "feed_forward.w1": ColwiseParallel(),
        "feed_forward.w2": RowwiseParallel(output_layouts=Shard(1)),
        "feed_forward.w3": ColwiseParallel(),
    }
    first, last = isinstance(model.tok_embeddings, nn.Embedding), isinstance(model.output, nn.Linear)
    plan: dict[str, ParallelStyle] = {f"layers.{i}.{name}": style for i in own(model) for name, style in block.items()}
    if first:
        plan["tok_embeddings"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
    if last:
        plan["norm"] = SequenceParallel(use_local_output=True)
        plan["output"] = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    parallelize_module(model, mesh, plan)
    if last:
        whole = PrepareModuleOutput(output_layouts=Shard(1), desired_output_layouts=Replicate(), use_local_output=True)
        parallelize_module(model, mesh, whole)
    if model.config.tie_embeddings:
        model.output.weight = model.tok_embeddings.weight


def _gathered(inputs: int) -> PrepareModuleInput:
    rest = (None,) * (inputs - 1)
    return PrepareModuleInput(input_layouts=(Shard(1), *rest), desired_input_layouts=(Replicate(), *rest))


def own(model: Transformer) -> list[int]:
    """Return the numbers of the layers that this stage has."""
    return [i for i, layer in enumerate(model.layers) if any(True for _ in layer.parameters())]


def shard(model: Transformer, mesh: Mesh, dtype: torch.dtype, *, root: nn.Module | None = None) -> None:
    """Shard each block, then all the rest as one group, which stays gathered from the forward to the backward pass.

    Weights and moments are float32 shards, gathered in `dtype`; gradients are summed in float32 and not divided: the
    loop does that, by the weight of all tokens. root: what runs the model, where that is not itself.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if mesh.config.offload else OffloadPolicy()
    for i in own(model):
        fully_shard(
            model.layers[i],
            mesh=mesh.shards,
            mp_policy=policy,
            offload_policy=offload,
            reshard_after_forward=mesh.config.resharding,
        )
    root = root or model
    # what is outside of blocks serves after the forward pass too: `logits` is not part of it
    fully_shard(root, mesh=mesh.shards, mp_policy=policy, offload_policy=offload, reshard_after_forward=False)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
