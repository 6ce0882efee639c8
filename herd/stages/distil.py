"""Stage `distil`: each sibling from the flagship, and the same sibling alone on the same rows as its control."""

import numpy as np

from herd.distill.objective import Distill
from herd.distill.teacher import teacher_cache
from herd.stages.pretrain import shard_feed
from herd.stages.step import Context, Outcome
from herd.stages.training import Plan, fresh_model, train, trained_model
from herd.tokenizer.shards import TokenShards
from herd.train.objective import NextToken, Objective


def run(context: Context, key: str) -> Outcome:
    """Run 'teacher' (cache the flagship's log-probabilities), 'distil/NAME' or 'alone/NAME'."""
    if key == "teacher":
        return _teacher(context)
    way, name = key.split("/")
    recipe, section = context.recipe, context.recipe.distil
    config = recipe.model_config_of(name, vocab_size=context.tokenizer.n_vocab)
    # both ways start from the same weights and see the same rows: only the objective differs
    model = fresh_model(context, config, name)
    objective: Objective = NextToken()
    teacher = None
    if way == "distil":
        objective = Distill(section.share)
        teacher = _cache(context)
    feed = shard_feed(context, section, "distil", teacher=teacher)
    about = {
        "context": section.context,
        "batch_tokens": section.batch_tokens,
        "seed": recipe.seed,
        **({"teacher": "flagship/base", "top_k": section.top_k, "share": section.share} if way == "distil" else {}),
    }
    plan = Plan(objective, feed, section.optim, section.steps, section.accumulate, about)
    return train(context, key, model, plan, output=f"siblings/{name}/{'base' if way == 'distil' else 'alone'}")


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
