"""One training step as a plan sees it: a model, a mesh, a batch, and how the trainer runs it. No torch.

batch_tokens = rows x row_length;   rows = data ranks x micro-batches x micro_rows
a rank's share of a micro-batch     = micro_rows x row_length / cp positions
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig
from herd.parallel.config import ParallelConfig, check, layers_of, stages_of

_MOST_MASK = 1 << 28  # pairs of positions of a micro-batch; beyond, nothing of t x t is made
PRODUCTS = ("wq", "wk", "wv", "wo", "w1", "w3", "w2")


@dataclass(frozen=True)
class Trainer:
    """How a step is run where trainers differ.

    stages_per_rank: under Interleaved1F1B; None takes the schedule's. overlapped: axes beside dp_shard whose
    communication hides behind products. kept: products whose results selective recompute keeps; gathers: and inputs.
    score_bytes: a score, all scores at once; None works them in pieces. masked: who sees whom is a dense mask, so that
    attention computes the whole square. fused: norms and rotation are one kernel each when not compiled. whole_table:
    the embedding's gradient is whole on tensor parallel ranks (DTensor).
    """

    stages_per_rank: int | None = None
    overlapped: tuple[str, ...] = ()
    kept: tuple[str, ...] = PRODUCTS
    gathers: bool = True
    score_bytes: int | None = None
    masked: bool = False
    fused: bool = True
    whole_table: bool = True


HERD = Trainer(masked=True)
# Section 3.3.2 takes a layer from the first and the last stage, so that 126 layers and two are 16 ranks x 8 stages.
PAPER = Trainer(stages_per_rank=8, overlapped=("pp",), whole_table=False)
# torchtitan at the end of 2024: every second product is computed again, scores are float32 at once
TITAN = Trainer(kept=("wq", "wv", "w1", "w2"), gathers=False, score_bytes=12, fused=False)
TRAINERS = {"herd": HERD, "paper": PAPER, "torchtitan": TITAN}


@dataclass(frozen=True)
class Run:
    """What is trained, on which mesh, with how many tokens a step."""

    config: ModelConfig
    parallel: ParallelConfig
    row_length: int
    batch_tokens: int
    micro_rows: int = 1
    trainer: Trainer = HERD

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return self.batch_tokens // self.row_length

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step on each data rank."""
        return self.rows // (self.parallel.data * self.micro_rows)

    @property
    def positions(self) -> int:
        """Positions of a micro-batch on one rank; tensor parallel ranks share them."""
        return self.micro_rows * self.row_length // self.parallel.cp

    @property
    def masked(self) -> bool:
        """Whether attention reads a dense mask: herd's rows do, up to a size (model/attention.py) or cut by cp."""
        short = self.micro_rows * self.row_length**2 <= _MOST_MASK
        return self.trainer.masked and (short or self.parallel.cp > 1)

    @property
    def chunks(self) -> int:
        """Stages of the pipeline on each rank."""
        most = self.trainer.stages_per_rank if self.parallel.schedule == "Interleaved1F1B" else None
        return most or self.parallel.stages // self.parallel.pp

    @property
    def shards(self) -> int:
        """Ranks over which FSDP shards a weight: dp_shard and cp together."""
        return self.parallel.dp_shard * self.parallel.cp

    def check(self) -> None:
        """Refuse what can't run. Raises ConfigError with every misfit and a remedy."""
        where = f"{self.parallel.describe()}, rows of {self.row_length:,}"
        whole_rows(self.batch_tokens, self.row_length)
        part = self.parallel.data * self.micro_rows
        if self.rows % part:
            near = max(1, round(self.rows / part)) * part * self.row_length
            raise ConfigError(
                f"{where}: {self.rows:,} rows a step can't be divided by {self.parallel.data} data ranks x "
                f"{self.micro_rows} rows a micro-batch; a batch of {near:,} tokens can"
            )
        check(
            self.parallel,
            self.config,
            world=self.parallel.ranks,
            vocab_size=self.config.vocab_size,
            row_length=self.row_length,
            rows=part,
            accumulate=self.micro_batches,
            where=where,
        )

    def layers(self, rank: int) -> int:
        """Layers of a pipeline rank, in all of its stages."""
        sizes = _sizes(self.config.n_layers, self.parallel.pp * self.chunks)
        return sum(sizes[stage] for stage in self.stages(rank))

    def stages(self, rank: int) -> list[int]:
        """Stages of a pipeline rank."""
        return stages_of(self.parallel, rank, stages=self.parallel.pp * self.chunks)

    def has_embedding(self, rank: int) -> bool:
        """Whether a pipeline rank looks tokens up."""
        return 0 in self.stages(rank)

    def has_head(self, rank: int) -> bool:
        """Whether a pipeline rank computes scores and the loss."""
        return self.parallel.pp * self.chunks - 1 in self.stages(rank)

    def parameters(self, rank: int) -> int:
        """Parameters of a pipeline rank, before tensor parallelism and shards divide them."""
        return self.layers(rank) * block_parameters(self.config) + self.outside(rank)

    def outside(self, rank: int) -> int:
        """Parameters of a pipeline rank outside of its blocks: embedding, last norm, head."""
        table = self.config.vocab_size * self.config.dim
        tied = self.config.tie_embeddings and self.has_embedding(rank)
        head = self.has_head(rank) * (self.config.dim + (0 if tied else table))
        return self.has_embedding(rank) * table + head


def whole_rows(batch_tokens: int, row_length: int) -> None:
    """Raise ConfigError where a step is no whole number of rows."""
    if batch_tokens % row_length:
        near = max(1, round(batch_tokens / row_length)) * row_length
        raise ConfigError(
            f"a step of {batch_tokens:,} tokens is no whole number of rows of {row_length:,}; {near:,} is"
        )


def products(config: ModelConfig) -> Mapping[str, tuple[int, int]]:
    """Return (inputs, outputs) of a block's matrix products, by name, in the order in which they run."""
    dim, queries, keys = config.dim, config.n_heads * config.head_size, config.n_kv_heads * config.head_size
    ffn = config.ffn_hidden
    shapes = ((dim, queries), (dim, keys), (dim, keys), (queries, dim), (dim, ffn), (dim, ffn), (ffn, dim))
    return dict(zip(PRODUCTS, shapes, strict=True))


def block_parameters(config: ModelConfig) -> int:
    """Return the parameters of one block."""
    return sum(inputs * outputs for inputs, outputs in products(config).values()) + 2 * config.dim


@cache
def _sizes(n_layers: int, stages: int) -> tuple[int, ...]:
    return tuple(len(layers) for layers in layers_of(n_layers, stages))
