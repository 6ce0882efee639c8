"""Stage `sft`: a base model learns dialogs, with weight on the assistant's tokens only (section 4.1.3)."""

import math

from herd.align.dialogs import dialog_examples
from herd.base.files import read_jsonl
from herd.base.messages import parse_dialog
from herd.base.seeds import named_seed
from herd.model.config import ModelConfig
from herd.stages.meshes import example_batches
from herd.stages.recipe import EpochConfig
from herd.stages.step import Context, Outcome
from herd.stages.training import Plan, part_of, train, trained_weights
from herd.train.batch import Example
from herd.train.feed import ExampleSource, PackedFeed
from herd.train.objective import NextToken


def folder_of(model: str) -> str:
    """Return the folder of 'flagship' or a sibling within the run."""
    return "flagship" if model == "flagship" else f"siblings/{model}"


def run(context: Context, key: str) -> Outcome:
    """Run 'sft/MODEL'."""
    name = key.split("/")[1]
    path = context.run / "corpus/dialogs.jsonl"
    if not path.exists():
        return Outcome({"skipped": "this corpus has no dialogs; dialogs=FILE adds some"})
    examples = dialog_examples(context.codec, map(parse_dialog, read_jsonl(path)))
    start = trained_weights(context, f"{folder_of(name)}/base")
    plan = example_plan(context, key, examples, context.recipe.sft, start.config)
    return train(context, key, start, plan, output=f"{folder_of(name)}/sft")


def example_plan(
    context: Context, key: str, examples: list[Example], section: EpochConfig, config: ModelConfig
) -> Plan:
    """Plan next-token training over examples in memory: as many steps as `epochs` passes take."""
    batches = example_batches(section)
    mesh = context.mesh(key, config, batches)
    feed = PackedFeed(
        ExampleSource(examples, row_length=section.context),
        rows=batches.rows,
        row_length=section.context,
        pad_id=context.tokenizer.pad_id,
        seed=named_seed(context.recipe.seed, f"feed/{key}"),
        part=part_of(mesh),
        shorter_rows=mesh.pp == 1,
    )
    steps = max(1, math.ceil(section.epochs * feed.batches_per_epoch / section.accumulate))
    about = {
        "examples": len(examples),
        "epochs": section.epochs,
        "batch_tokens": section.batch_tokens,
        "seed": context.recipe.seed,
    }
    chat = key != "guard"
    return Plan(NextToken(), feed, section.optim, steps, mesh, section.accumulate, about, section.watch, chat)
