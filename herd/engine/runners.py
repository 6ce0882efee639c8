"""Which runner a model gets."""

from herd.engine.native.runner import NativeRunner, supports
from herd.engine.runner import Runner, TorchRunner
from herd.model.transformer import Transformer


def open_runner(model: Transformer, *, blocks: int, block_size: int, keep_weights: bool = True) -> Runner:
    """Return herd's own kernels where the model is on a processor and they can be compiled, else PyTorch's.

    keep_weights: whether the model must stay usable beside the runner, which may hold all weights a second time.
    """
    if supports(model, block_size=block_size):
        return NativeRunner(model, blocks=blocks, block_size=block_size, keep_weights=keep_weights)
    return TorchRunner(model, blocks=blocks, block_size=block_size)
