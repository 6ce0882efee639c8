"""Which mesh a training step runs on: what the recipe says, `auto`, and what its rows and its model allow."""

from dataclasses import dataclass

from herd.model.config import ModelConfig
from herd.parallel.config import ParallelConfig, check
from herd.plan.cards import card_of
from herd.plan.search import auto
from herd.runtime.world import world
from herd.stages.recipe import Recipe


@dataclass(frozen=True)
class Batches:
    """What a training step runs at once: micro-batches of `rows` x `row_length`; `whole`: its rows may not be cut."""

    rows: int
    row_length: int
    accumulate: int = 1
    whole: bool = False


def mesh_of(
    recipe: Recipe, key: str, config: ModelConfig, batches: Batches, *, device: str, ranks: int | None = None
) -> tuple[ParallelConfig, str]:
    """Return the mesh of ledger step `key`, and why, for `auto`. Raises ConfigError when it can't run.

    `meshes` may name the step ('distil/small') or its first part ('distil'). One process needs no mesh. ranks: how
    many there will be; those that run unless given.
    """
    ranks = world().size if ranks is None else ranks
    head = key.split("/")[0]
    named = next((name for name in (key, head) if name in recipe.meshes), None)
    wanted, why = (recipe.meshes[named] if named else recipe.parallel), ""
    where = f"meshes.{named}" if named else "parallel"
    if ranks == 1 and wanted == "auto":
        return ParallelConfig(), ""
    if wanted == "auto":
        tokens = batches.rows * batches.row_length * batches.accumulate
        wanted, why = auto(
            config,
            card_of(device),
            ranks,
            row_length=batches.row_length,
            batch_tokens=tokens,
            micro_batches=batches.accumulate,
        )
    if batches.whole:
        wanted = wanted.folded()
    check(
        wanted,
        config,
        world=ranks,
        vocab_size=config.vocab_size,
        row_length=batches.row_length,
        rows=batches.rows,
        accumulate=batches.accumulate,
        where=f"{where} ({key})",
    )
    return wanted, why
