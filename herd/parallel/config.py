"""What a recipe says of parallelism: one mesh of five axes, and what each rank does to fit and to be fast. No torch.

    pp            stages of layers, one after the other            (point to point, smallest messages: outermost)
    dp_replicate  copies of the sharded model                      (gradients summed once a step)
    dp_shard      weights, gradients and moments in shards (FSDP)  (gathered a layer at a time)
    cp            a row's positions in parts                       (keys and values gathered a layer at a time)
    tp            heads, SwiGLU width and vocabulary in parts      (twice a layer, largest messages: innermost)

The order is that of section 3.3.2 of arXiv:2407.21783, outermost first, so that neighbouring ranks share a machine
where the most is sent.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Literal

from pydantic import Field

from herd.base.config import Section
from herd.base.errors import ConfigError
from herd.model.config import Shape

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
Schedule = Literal["1F1B", "Interleaved1F1B", "ZBVZeroBubble"]


class ParallelConfig(Section):
    """Ranks along each axis, and what each of them does. One rank everywhere is a single process.

    schedule: of the pipeline; Interleaved1F1B and ZBVZeroBubble keep two stages a rank, 1F1B one.
    recompute: activations computed again in the backward pass: none, the cheap ones (all but matrix products and
    attention), or whole blocks. compile: `torch.compile` of each block. float8: matrix products in float8 (torchao;
    cards that have it). offload: shards wait in the host's memory. reshard: gathered weights are let go after a block's
    forward pass (ZeRO 3), which a pipeline can't afford; None leaves it to the mesh.
    """

    dp_replicate: int = Field(1, ge=1)
    dp_shard: int = Field(1, ge=1)
    cp: int = Field(1, ge=1)
    tp: int = Field(1, ge=1)
    pp: int = Field(1, ge=1)
    schedule: Schedule = "1F1B"
    recompute: Literal["none", "selective", "full"] = "none"
    compile: bool = False
    float8: bool = False
    offload: bool = False
    reshard: bool | None = None

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return prod(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Ranks along each axis, in the order of AXES."""
        return tuple(getattr(self, axis) for axis in AXES)

    def place(self, rank: int) -> dict[str, int]:
        """Return where a rank stands along each axis; the last axis runs fastest."""
        found = {}
        for axis, size in zip(reversed(AXES), reversed(self.sizes), strict=True):
            rank, found[axis] = divmod(rank, size)
        return found

    def folded(self) -> "ParallelConfig":
        """Return the mesh for rows that may not be cut: context parallel ranks take rows of their own instead."""
        return self.model_copy(update={"dp_shard": self.dp_shard * self.cp, "cp": 1})

    @property
    def data(self) -> int:
        """Ranks that draw different rows: replicas and shards."""
        return self.dp_replicate * self.dp_shard

    @property
    def stages(self) -> int:
        """Stages of the pipeline."""
        return self.pp * (1 if self.schedule == "1F1B" or self.pp == 1 else 2)

    @property
    def resharding(self) -> bool:
        """Whether gathered weights are let go after a block's forward pass."""
        return self.pp == 1 if self.reshard is None else self.reshard

    def describe(self) -> str:
        """Return the axes that have more than one rank, such as 'dp_shard 4 x tp 2'."""
        return " x ".join(f"{a} {n}" for a, n in zip(AXES, self.sizes, strict=True) if n > 1) or "one process"


def layers_of(n_layers: int, stages: int) -> list[range]:
    """Return the layers of each stage: as even as can be, the first and the last one having the fewest.

    They have the embedding and the head besides (section 3.3.2 takes a layer from each of the two).
    """
    base, more = divmod(n_layers, stages)
    middle_first = sorted(range(stages), key=lambda stage: (stage in (0, stages - 1), stage))
    sizes = [base + (stage in middle_first[:more]) for stage in range(stages)]
    starts = [sum(sizes[:stage]) for stage in range(stages + 1)]
    return [range(start, end) for start, end in pairwise(starts)]


def stages_of(config: ParallelConfig, rank: int, *, stages: int | None = None) -> list[int]:
    """Return the stages of a rank: every pp-th of them, or one from each end (V, arXiv:2401.10241).

    stages: of the pipeline, where it isn't herd that runs it.
    """
    if config.schedule == "ZBVZeroBubble":
        return [rank, 2 * config.pp - 1 - rank]
    return list(range(rank, stages or config.stages, config.pp))


def check(
    config: ParallelConfig,
    shape: Shape,
    *,
    world: int,
    vocab_size: int,
    row_length: int,
    rows: int,
    accumulate: int = 1,
    where: str = "parallel",
) -> None:
    """Refuse a mesh that can't run a model, before a process starts. Raises ConfigError with every misfit and a remedy.

    rows: of one micro-batch over all data ranks; accumulate: micro-batches a step.
    """
    wrong = list(_misfits(config, shape, vocab_size, row_length, rows, accumulate))
    if config.ranks != world:
        product = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, config.sizes, strict=True))
        wrong.insert(0, f"{product} = {config.ranks} ranks, but {world} processes run")
    if wrong:
        raise ConfigError(f"{where}: {'; '.join(wrong)}")


def _misfits(
    config: ParallelConfig, shape: Shape, vocab_size: int, row_length: int, rows: int, accumulate: int
) -> Iterator[str]:
    tp, cp = config.tp, config.cp
    divided = {"n_heads": shape.n_heads, "n_kv_heads": shape.n_kv_heads, "ffn_hidden": shape.ffn_hidden}
    for name, value in (divided | {"vocab_size": vocab_size}).items():
        if value % tp:
            yield f"tp {tp} doesn't divide {name} {value}; {_fitting(value, tp)} does"
    if tp > 1 and (row_length // (2 * cp if cp > 1 else 1)) % tp:
        yield f"tp {tp} doesn't divide a rank's part of a row of {row_length} positions; norms are split by position"
    if cp > 1 and row_length % (2 * cp):
        yield f"a row of {row_length} positions can't be cut into 2 x cp = {2 * cp} equal parts"
    if rows < config.data:
        yield f"{rows} rows a micro-batch are too few for dp_replicate x dp_shard = {config.data} ranks"
    if config.pp > 1:
        if config.stages > shape.n_layers:
            yield f"{config.stages} pipeline stages need as many layers, the model has {shape.n_layers}"
        if accumulate < config.stages:
            yield f"{config.stages} pipeline stages need at least as many micro-batches: accumulate={config.stages}"
        if shape.tie_embeddings:
            yield "pp > 1: tied embeddings would lie on the first and the last stage; untie them"
    if config.schedule != "1F1B" and config.pp == 1:
        yield f"schedule {config.schedule} needs pp > 1"
    if config.schedule == "ZBVZeroBubble" and config.recompute != "none":
        # PyTorch refuses a second backward pass of what was recomputed selectively, and recomputes all of it twice
        yield f"recompute {config.recompute} under ZBVZeroBubble, whose backward pass comes in two halves: use none"


def _fitting(value: int, most: int) -> int:
    return max(n for n in range(1, most) if value % n == 0)
