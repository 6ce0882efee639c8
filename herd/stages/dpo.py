"""Stage `dpo`: preference optimisation with the paper's recipe (section 4.1.4); its result is the instruct model."""

import math

from herd.align.dialogs import preference_pair
from herd.align.preference import PairFeed, Preference
from herd.base.files import read_jsonl
from herd.base.messages import parse_messages
from herd.base.seeds import named_seed
from herd.stages.meshes import pair_batches
from herd.stages.sft import folder_of
from herd.stages.step import Context, Outcome
from herd.stages.training import Plan, part_of, save, train, trained_model, trained_weights


def run(context: Context, key: str) -> Outcome:
    """Run 'dpo/MODEL' on top of its SFT model."""
    name = key.split("/")[1]
    folder = folder_of(name)
    if not (context.run / folder / "sft").exists():
        return Outcome({"skipped": "there is no SFT model to start from"})
    path = context.run / "corpus/preferences.jsonl"
    start = trained_weights(context, f"{folder}/sft")
    if not path.exists():
        save(context, start, f"{folder}/instruct")
        reason = (
            "this corpus has no preference pairs, so the instruct model is the SFT model; preferences=FILE adds some"
        )
        return Outcome({"skipped": reason}, (f"{folder}/instruct",))
    section = context.recipe.dpo
    pairs = []
    for row in read_jsonl(path):
        prompt = parse_messages(row["prompt"])
        # an edited answer stands above the chosen one, and both above the rejected
        for better in filter(None, (row.get("edited"), row["chosen"])):
            pairs.append(preference_pair(context.codec, prompt, better, row["rejected"]))
    batches = pair_batches(section)
    mesh = context.mesh(key, start.config, batches)
    feed = PairFeed(
        pairs,
        batch_pairs=batches.rows,
        row_length=section.context,
        pad_id=context.tokenizer.pad_id,
        seed=named_seed(context.recipe.seed, f"feed/{key}"),
        part=part_of(mesh),
    )
    # in the format that the policy computes in: a rounding difference would be a preference of its own
    feed.set_reference(trained_model(context, f"{folder}/sft").to(context.machine.dtype))
    steps = max(1, math.ceil(section.epochs * len(feed) / (batches.rows * section.accumulate)))
    about = {"pairs": len(feed), "beta": section.beta, "nll": section.nll, "epochs": section.epochs}
    objective = Preference(section.beta, section.nll)
    plan = Plan(objective, feed, section.optim, steps, mesh, section.accumulate, about, watch=section.watch, chat=True)
    return train(context, key, start, plan, output=f"{folder}/instruct")
