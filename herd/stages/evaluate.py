"""Stage `eval`: every task on every model that it makes sense of; one record a score, every item kept in scores/."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from herd.base.errors import ConfigError, RunError
from herd.base.files import hash_file, hash_tree, read_jsonl, write_jsonl
from herd.base.ledger import Ledger
from herd.base.progress import Progress
from herd.engine.backend import Backend, BackendName
from herd.eval.runner import Score, bits_per_byte, run_task
from herd.eval.subject import Subject
from herd.guard.shield import Shield
from herd.model.quant import NumberFormat
from herd.runtime.config import RuntimeConfig
from herd.runtime.device import set_up
from herd.stages.models import open_engine, open_folder, open_shield, open_vllm
from herd.stages.recipe import EvalConfig
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

    def shield() -> Shield | None:
        if not (context.run / "guard/config.json").exists():
            return None
        return open_shield(context.run.path, engine, context.codec, context.machine)

    corpus = context.run / "corpus"
    for score in run_tasks(subject, corpus, context.progress, chosen=recipe.eval.tasks, shield=shield):
        _keep(context, score)
        count += 1
    return Outcome({"model": folder, "scores": count}, (f"scores/{folder}",))


def score_elsewhere(
    path: Path,
    items: Path,
    target: Path,
    progress: Progress,
    *,
    chat: bool,
    quant: NumberFormat | None = None,
    draft: str | None = None,
    backend: BackendName = "herd",
) -> Ledger:
    """Score any model on the items of a run: a ledger of scores in `target`, every item beside it.

    `chat` says whether dialogs are asked or text is continued, `quant` in which number format the weights are.
    draft: who drafts (see `open_draft`); how much of it was accepted is part of a score's cost, for it depends on the
    machine's speed. `backend` says what runs the model; vLLM reads quantised weights as they are stored, and knows
    neither `quant` nor `draft`. Raises RunError where the run has no items, or `target` is there already.
    """
    corpus = items / "corpus"
    if not (corpus / "bench").is_dir() and not (corpus / "heldout.jsonl").is_file():
        raise RunError(f"{items}: no items to score on; give a run folder made by `herd raise`")
    if target.exists():
        raise RunError(f"{target}: is there already; remove it or choose another --to")
    model, machine = open_folder(path), set_up(RuntimeConfig())
    slots = EvalConfig().slots
    engine: Backend
    if backend == "vllm":
        engine = open_vllm(model, machine, slots=slots)
    else:
        engine = open_engine(model.path, machine, slots=slots, quant=quant, draft=draft)
    name = "-".join([model.slug, *([quant] if quant else []), *([backend] if backend != "herd" else [])])
    subject = Subject(name, engine, model.codec, chat, advance=progress.advance)
    ledger = Ledger(target / "ledger.jsonl")
    progress.stage("eval", "running", subject.name)
    for score in run_tasks(subject, corpus, progress):
        name = f"{score.facts['task']}.jsonl"
        write_jsonl(target / name, score.items)
        writes, reads = {name: hash_file(target / name)}, {str(model.path): hash_tree(model.path)}
        step = f"eval/{score.facts['task']}"
        ledger.append("score", step, facts=score.facts, cost=score.cost, reads=reads, writes=writes)
    progress.stage("eval", "done", f"{len(ledger.records)} scores")
    return ledger


def task_items(corpus: Path, task: str) -> list[Mapping[str, Any]]:
    """Return the items of a task, by its name on the card. Raises ConfigError when the corpus has none."""
    files = {SAFETY.get(path.stem, path.stem): path for path in sorted((corpus / "bench").glob("*.jsonl"))}
    if task not in files:
        raise ConfigError(f"task {task!r}: the corpus has no items for it; there are {', '.join(files) or 'none'}")
    return list(read_jsonl(files[task]))


def run_tasks(
    subject: Subject,
    corpus: Path,
    progress: Progress,
    *,
    chosen: tuple[str, ...] | None = None,
    shield: Callable[[], Shield | None] = lambda: None,
) -> Iterator[Score]:
    """Score a subject on held-out text and every task of a corpus folder (or the chosen ones).

    Safety tasks of a chat model run again behind the guard, where `shield` gives one.
    """
    if not subject.chat and _wanted("bits_per_byte", chosen):
        progress.note(f"{subject.name}: bits per byte")
        yield bits_per_byte(subject, read_jsonl(corpus / "heldout.jsonl"))
    for path in sorted((corpus / "bench").glob("*.jsonl")):
        task = SAFETY.get(path.stem, path.stem)
        if not _wanted(task, chosen):
            continue
        progress.note(f"{subject.name}: {task}")
        items = list(read_jsonl(path))
        score = run_task(subject, task, items)
        if score is not None:
            yield score
        if path.stem in SAFETY and subject.chat and (guard := shield()) is not None:
            guarded = run_task(replace(subject, name=f"{subject.name}+guard", shield=guard), task, items)
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
