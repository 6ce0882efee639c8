"""Stage `distil`: each sibling from the flagship, and the same sibling alone on the same rows as its control.

A sibling with `init: pruned` starts its distillation as a cut of the flagship. Its control always starts from random
weights: it stands for what the same shape, rows and steps give without a flagship.
"""

import math
from typing import Any

import numpy as np

from herd.distill.objective import Distill
from herd.distill.prune import measure, prune
from herd.distill.teacher import teacher_cache
from herd.model.config import ModelConfig
from herd.model.source import Source, WeightsSource
from herd.stages.meshes import batches_of
from herd.stages.pretrain import shard_feed
from herd.stages.step import Context, Outcome
from herd.stages.training import Plan, fresh_weights, train, trained_model
from herd.tokenizer.shards import TokenShards
from herd.train.objective import NextToken, Objective

# tokens on which a flagship is measured before it is cut: on the meadow four times as many choose the same layers and
# heads, and 95 % or more of the same channels and neurons
_CALIBRATION = 1 << 16


def run(context: Context, key: str) -> Outcome:
    """Run 'teacher' (cache the flagship's log-probabilities), 'distil/NAME' or 'alone/NAME'."""
    if key == "teacher":
        return _teacher(context)
    way, name = key.split("/")
    recipe, section = context.recipe, context.recipe.distil
    config = recipe.model_config_of(name, vocab_size=context.tokenizer.n_vocab)
    objective: Objective = NextToken()
    teacher = None
    if way == "distil" and recipe.siblings[name].init == "pruned":
        start, how = _pruned(context, config)
    else:
        # both ways start from the same weights and see the same rows: only the objective differs
        start, how = fresh_weights(context, config, name), {"init": "random"}
    if way == "distil":
        objective = Distill(section.share)
        teacher = _cache(context)
    mesh = context.mesh(key, config, batches_of(section))
    feed = shard_feed(context, section, "distil", teacher=teacher, mesh=mesh)
    about = {
        "context": section.context,
        "batch_tokens": section.batch_tokens,
        "seed": recipe.seed,
        **how,
        **({"teacher": "flagship/base", "top_k": section.top_k, "share": section.share} if way == "distil" else {}),
    }
    plan = Plan(objective, feed, section.optim, section.steps, mesh, section.micro_batches, about, section.watch)
    return train(context, key, start, plan, output=f"siblings/{name}/{'base' if way == 'distil' else 'alone'}")


def _pruned(context: Context, config: ModelConfig) -> tuple[Source, dict[str, Any]]:
    """Return the sibling cut from the flagship, and what the ledger says of the cut."""
    section = context.recipe.distil
    flagship = trained_model(context, "flagship/base")
    count = math.ceil(_CALIBRATION / (section.rows * section.context))
    feed = shard_feed(context, section, "distil")
    importance = measure(flagship, (next(feed) for _ in range(count)))
    model, cut = prune(flagship, config, importance)
    widths = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_hidden")
    facts = {
        "init": "pruned",
        "pruned_from": "flagship/base",
        "calibration_batches": count,
        "layers_kept": list(cut.layers),
        "block_influence": [round(value, 4) for value in importance.layers_l.tolist()],
        "share_kept": {name: round(getattr(config, name) / getattr(flagship.config, name), 4) for name in widths},
    }
    return WeightsSource(dict(model.named_parameters()), config), facts


def _teacher(context: Context) -> Outcome:
    section = context.recipe.distil
    ids, _ = _cache(context)
    facts = {
        "model": "flagship/base",
        "tokens": int(ids.shape[0]),
        "top_k": section.top_k,
        "context": section.context,
    }
    return Outcome(facts, ("teacher",))


def _cache(context: Context) -> tuple[np.ndarray, np.ndarray]:
    section, ledger = context.recipe.distil, context.run.ledger
    anneal = ledger.latest("anneal")
    assert anneal is not None
    shards = TokenShards(context.run / "shards", fingerprint=context.tokenizer.fingerprint)
    return teacher_cache(
        context.run / "teacher",
        trained_model(context, "flagship/base").to(context.machine.dtype),
        shards,
        k=min(section.top_k, context.tokenizer.n_vocab),
        row_length=section.context,
        key=f"{anneal.writes['flagship/base']}/{shards.sha256}",
        advance=context.progress.advance,
    )
