"""Stage `pretrain`: the flagship from random weights, then longer rows in stages, then annealing (3.4)."""

from typing import Any

import numpy as np

from herd.base.errors import DataError
from herd.base.seeds import named_seed
from herd.stages.gate import Gate
from herd.stages.long_context import LongStageConfig
from herd.stages.step import Context, Outcome
from herd.stages.training import Plan, fresh_model, imported_model, passed_on, started_from, train, trained_model
from herd.tokenizer.shards import TokenShards
from herd.train.config import TrainConfig
from herd.train.feed import PackedFeed, ShardSource
from herd.train.objective import NextToken


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
        model = trained_model(context, folders[number - 1], config=config)
    elif recipe.flagship_path is not None:
        model = imported_model(context, config)
    else:
        model = fresh_model(context, config, "flagship")
    about: dict[str, Any] = {}
    if key == "pretrain" and recipe.flagship_path:
        about["started_from"] = started_from(recipe)
    if section.steps == 0:
        return passed_on(context, model, output=output, about=about)
    feed = shard_feed(context, section, key)
    about |= {"context": section.context, "batch_tokens": section.batch_tokens, "seed": recipe.seed}
    assert isinstance(feed.source, ShardSource)
    about["mixture"] = {name: round(share, 4) for name, share in feed.source.shares(1).items()}
    gate = None
    if isinstance(section, LongStageConfig) and section.gate is not None:
        gate = Gate(context, section, model, before=folders[number - 1])
    plan = Plan(
        NextToken(), feed, section.optim, section.steps, section.accumulate, about, watch=section.watch, gate=gate
    )
    return train(context, key, model, plan, output=output)


def shard_feed(
    context: Context, section: TrainConfig, name: str, *, teacher: tuple[np.ndarray, np.ndarray] | None = None
) -> PackedFeed:
    """Return the feed of packed shard rows for one training section. Raises DataError on a corpus below one batch."""
    shards = TokenShards(context.run / "shards", fingerprint=context.tokenizer.fingerprint)
    if shards.n_tokens < section.batch_tokens:
        raise DataError(
            f"the curated corpus has {shards.n_tokens} tokens, less than one batch of {section.batch_tokens}; "
            f"give more text or set {name.replace('-', '_')}.batch_tokens lower"
        )
    source = ShardSource(shards, row_length=section.context, repeats=section.repeats, teacher=teacher)
    return PackedFeed(
        source,
        rows=section.rows,
        row_length=section.context,
        pad_id=context.tokenizer.pad_id,
        seed=named_seed(context.recipe.seed, f"feed/{name}"),
    )
