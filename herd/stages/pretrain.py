"""Stage `pretrain`: the flagship from random weights, then longer rows in stages, then annealing (3.4)."""

from functools import partial
from typing import Any

import numpy as np

from herd.base.errors import DataError
from herd.base.seeds import named_seed
from herd.parallel.config import ParallelConfig
from herd.stages.gate import Gate
from herd.stages.long_context import LongStageConfig
from herd.stages.meshes import batches_of
from herd.stages.step import Context, Outcome
from herd.stages.training import (
    Plan,
    fresh_weights,
    imported_weights,
    part_of,
    passed_on,
    started_from,
    train,
    trained_weights,
)
from herd.tokenizer.shards import TokenShards
from herd.train.batch import WHOLE
from herd.train.config import TrainConfig
from herd.train.feed import Feed, PackedFeed, ShardSource
from herd.train.objective import NextToken
from herd.train.windows import WindowFeed, windows_of


def run(context: Context, key: str) -> Outcome:
    """Run 'pretrain', a long-context stage or 'anneal'; each starts from the folder of the one before."""
    recipe = context.recipe
    stages = recipe.long_context.stages
    sections: dict[str, TrainConfig] = {
        "pretrain": recipe.pretrain,
        **{stage.key: stage for stage in stages},
        "anneal": recipe.anneal,
    }
    folders = ["flagship/pretrain", *(stage.folder for stage in stages), "flagship/base"]
    number, section = list(sections).index(key), sections[key]
    output = folders[number]
    config = recipe.model_config_of("flagship", vocab_size=context.tokenizer.n_vocab, stages=number)
    if number > 0:
        start = trained_weights(context, folders[number - 1], config=config)
    elif recipe.flagship_path is not None:
        start = imported_weights(context, config)
    else:
        start = fresh_weights(context, config, "flagship")
    about: dict[str, Any] = {}
    if key == "pretrain" and recipe.flagship_path:
        about["started_from"] = started_from(recipe)
    if section.steps == 0:
        return passed_on(context, start, output=output, about=about)
    mesh = context.mesh(key, config, batches_of(section))
    feed = shard_feed(context, section, key, mesh=mesh)
    about |= {"context": section.context, "batch_tokens": section.batch_tokens, "seed": recipe.seed}
    if isinstance(feed, PackedFeed) and isinstance(feed.source, ShardSource):  # other feeds tell what they have shown
        about["mixture"] = {name: round(share, 4) for name, share in feed.source.shares(1).items()}
    gate = None
    if isinstance(section, LongStageConfig) and section.gate is not None:
        gate = partial(Gate, context, section, before=folders[number - 1])
    plan = Plan(
        NextToken(), feed, section.optim, section.steps, mesh, section.micro_batches, about, section.watch, gate=gate
    )
    return train(context, key, start, plan, output=output)


def shard_feed(
    context: Context,
    section: TrainConfig,
    name: str,
    *,
    teacher: tuple[np.ndarray, np.ndarray] | None = None,
    mesh: ParallelConfig | None = None,
) -> Feed:
    """Return the feed of packed shard rows for one training section: this process's part of them on a mesh.

    A corpus of up to a window is shuffled whole; a larger one, a mixture and a ramp go by windows. Raises DataError on
    a corpus below one batch.
    """
    shards = TokenShards(context.run / "shards", fingerprint=context.tokenizer.fingerprint)
    key = name.replace("-", "_")
    if shards.n_tokens < section.batch_tokens:
        raise DataError(
            f"the curated corpus has {shards.n_tokens} tokens, less than one batch of {section.batch_tokens}; "
            f"give more text or set {key}.batch_tokens lower"
        )
    part, shorter_rows = (part_of(mesh), mesh.pp == 1) if mesh else (WHOLE, True)
    seed, pad_id = named_seed(context.recipe.seed, f"feed/{name}"), context.tokenizer.pad_id
    if section.mixture or section.ramp or shards.n_tokens > section.window_tokens:
        windows = windows_of(shards, section, seed=seed, teacher=teacher, where=f"{key}.mixture")
        return WindowFeed(windows, section.phases, pad_id=pad_id, part=part, shorter_rows=shorter_rows)
    return PackedFeed(
        ShardSource(shards, row_length=section.context, repeats=section.repeats, teacher=teacher),
        rows=section.rows,
        row_length=section.context,
        pad_id=pad_id,
        seed=seed,
        part=part,
        shorter_rows=shorter_rows,
    )
