"""Stage `guard`: a sibling fine-tuned to judge prompts and answers over the fourteen hazards."""

from herd.align.dialogs import dialog_examples
from herd.base.files import read_jsonl
from herd.base.messages import Dialog, Message, parse_messages
from herd.stages.sft import example_plan
from herd.stages.step import Context, Outcome
from herd.stages.training import train, trained_weights
from herd.tokenizer.guard_dialect import Answer, guard_dialog, write_answer


def run(context: Context, key: str) -> Outcome:
    """Make the folder guard/."""
    path = context.run / "corpus/guard.jsonl"
    if not path.exists():
        return Outcome({"skipped": "this corpus has no labelled prompts and answers to train a guard on"})
    dialogs = []
    for row in read_jsonl(path):
        answer = Answer(row["label"] == "safe", tuple(row["hazards"]))
        asked = guard_dialog(parse_messages(row["messages"]), form="compact")
        dialogs.append(Dialog((*asked.messages, Message("assistant", write_answer(answer)))))
    section = context.recipe.guard
    start = trained_weights(context, f"siblings/{section.sibling}/base")
    plan = example_plan(context, key, dialog_examples(context.codec, dialogs), section, start.config)
    return train(context, key, start, plan, output="guard")
