"""Stage `eval`: every task on every model that it makes sense of; one record a score, every item kept in scores/."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from herd.base.files import hash_file, hash_tree, read_jsonl, write_jsonl
from herd.eval.runner import Score, bits_per_byte, run_task
from herd.eval.subject import Subject
from herd.stages.models import open_engine, open_shield
from herd.stages.step import Context, Outcome

# the meadow's file of items -> the task's name on the card
SAFETY = {"refusal": "violation_rate", "borderline": "false_refusal_rate"}


def run(context: Context, key: str) -> Outcome:
    """Run 'eval/FOLDER' for one model folder, such as 'eval/flagship/instruct'."""
    folder = key.removeprefix("eval/")
    if not (context.run / folder / "config.json").exists():
        return Outcome({"skipped": "this model was not made"})
    recipe = context.recipe
    engine = open_engine(context.run / folder, context.machine, slots=recipe.eval.slots)
    chat = folder.endswith("instruct")
    subject = Subject(folder, engine, context.codec, chat, advance=context.progress.advance)
    count = 0
    for score in _scores(context, subject):
        _keep(context, score)
        count += 1
    return Outcome({"model": folder, "scores": count}, (f"scores/{folder}",))


def _scores(context: Context, subject: Subject) -> Iterator[Score]:
    chosen = context.recipe.eval.tasks
    corpus = context.run / "corpus"
    if not subject.chat and _wanted("bits_per_byte", chosen):
        context.progress.note(f"{subject.name}: bits per byte")
        yield bits_per_byte(subject, read_jsonl(corpus / "heldout.jsonl"))
    for path in sorted((corpus / "bench").glob("*.jsonl")):
        task = SAFETY.get(path.stem, path.stem)
        if not _wanted(task, chosen):
            continue
        context.progress.note(f"{subject.name}: {task}")
        items = list(read_jsonl(path))
        score = run_task(subject, task, items)
        if score is not None:
            yield score
        if path.stem in SAFETY and subject.chat and (context.run / "guard/config.json").exists():
            shield = open_shield(context.run.path, subject.engine, subject.codec, context.machine)
            guarded = run_task(replace(subject, name=f"{subject.name}+guard", shield=shield), task, items)
            assert guarded is not None
            yield guarded


def _wanted(task: str, chosen: tuple[str, ...] | None) -> bool:
    return chosen is None or task in chosen


def _keep(context: Context, score: Score) -> None:
    """Write the items, and a record of the score unless the ledger holds the very same one already."""
    facts: Mapping[str, Any] = score.facts
    own, _, guard = str(facts["model"]).partition("+")
    name = f"scores/{own}/{facts['task']}{'+' + guard if guard else ''}.jsonl"
    write_jsonl(context.run / name, score.items)
    step = f"eval/{facts['task']}/{facts['model']}"
    writes = {name: hash_file(context.run / name)}
    same = any(
        r.kind == "score" and r.step == step and r.facts == facts and r.writes == writes
        for r in context.run.ledger.records
    )
    if not same:
        reads = {own: hash_tree(context.run / own)}
        if guard:
            reads["guard"] = hash_tree(context.run / "guard")
        context.run.ledger.append("score", step, facts=facts, reads=reads, writes=writes)
