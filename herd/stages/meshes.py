"""Which mesh a training step runs on: what the recipe says, `auto`, and what its rows and its model allow."""

from dataclasses import dataclass

from herd.model.config import ModelConfig
from herd.parallel.config import ParallelConfig, check
from herd.plan.cards import card_of
from herd.plan.search import auto
from herd.runtime.device import set_up
from herd.runtime.world import world
from herd.stages.recipe import DpoConfig, EpochConfig, Recipe
from herd.train.config import TrainConfig


@dataclass(frozen=True)
class Batches:
    """What a training step runs at once: micro-batches of `rows` x `row_length`; `whole`: its rows may not be cut."""

    rows: int
    row_length: int
    accumulate: int = 1
    whole: bool = False


def check_meshes(recipe: Recipe, *, ranks: int) -> None:
    """Refuse, before a process starts, what can't run in so many. Raises ConfigError."""
    device = set_up(recipe.runtime).name
    vocab = recipe.tokenizer.vocab_size
    models = ("flagship", *recipe.siblings)
    shapes = {name: recipe.model_config_of(name, vocab_size=vocab) for name in models}
    sections: dict[str, TrainConfig] = {"pretrain": recipe.pretrain, "anneal": recipe.anneal}
    sections |= {stage.key: stage for stage in recipe.long_context.stages}
    for key, section in sections.items():
        if section.steps:
            mesh_of(recipe, key, shapes["flagship"], batches_of(section), device=device, ranks=ranks)
    for name in recipe.siblings:
        mesh_of(recipe, f"distil/{name}", shapes[name], batches_of(recipe.distil), device=device, ranks=ranks)
    for name, shape in shapes.items():
        mesh_of(recipe, f"sft/{name}", shape, example_batches(recipe.sft), device=device, ranks=ranks)
        mesh_of(recipe, f"dpo/{name}", shape, pair_batches(recipe.dpo), device=device, ranks=ranks)
    guard = shapes[recipe.guard.sibling]
    mesh_of(recipe, "guard", guard, example_batches(recipe.guard), device=device, ranks=ranks)


def batches_of(section: TrainConfig) -> Batches:
    """Return what a training section runs at once: the fewest rows and micro-batches, the longest rows."""
    rows, micro = (min(getattr(phase, name) for phase in section.phases) for name in ("rows", "accumulate"))
    return Batches(rows, section.context, micro)


def example_batches(section: EpochConfig) -> Batches:
    """Return what training over examples runs at once."""
    rows = max(1, section.batch_tokens // section.context // section.accumulate)
    return Batches(rows, section.context, section.accumulate)


def pair_batches(section: DpoConfig) -> Batches:
    """Return what preference optimisation runs at once. Rows are not cut: a preference is one number over one."""
    return Batches(section.batch_pairs // section.accumulate, section.context, section.accumulate, whole=True)


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
