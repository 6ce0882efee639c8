"""`herd raise`: the steps of a recipe in order, each skipped when the ledger shows that it was made already."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from herd.base.config import validate
from herd.base.errors import RunError
from herd.base.files import check_disk
from herd.base.progress import Progress
from herd.base.run import RunFolder
from herd.stages.recipe import Recipe
from herd.stages.step import Context, Outcome, Step, execute

VERBS = ("curate", "tokenizer", "pretrain", "distil", "sft", "dpo", "guard", "eval", "card")
_TOGETHER = ("pretrain", "distil", "sft", "dpo", "guard")  # what all processes of a run do together
_MODULES = {verb: f"herd.stages.{verb}" for verb in VERBS} | {"eval": "herd.stages.evaluate"}


@dataclass(frozen=True)
class _Lazy:
    """A stage's `run`, imported when it is first needed: listing the steps of a recipe needs no torch."""

    verb: str

    def __call__(self, context: Context, key: str) -> Outcome:
        return import_module(_MODULES[self.verb]).run(context, key)


def steps(recipe: Recipe) -> list[Step]:
    """Return all steps of a recipe, each after the ones it reads."""

    def step(key: str, verb: str, *fields: str, after: Sequence[str] = (), more: Any = None) -> Step:
        names = ("seed", *fields)
        return Step(
            key,
            verb,
            _Lazy(verb),
            lambda r: {name: r.model_dump(mode="json")[name] for name in names} | {"more": more},
            tuple(after),
            reads=_outside if key in ("curate", "tokenizer", "pretrain") else lambda r: (),
            together=verb in _TOGETHER,
        )

    train, flagship, texts = ("runtime",), ("flagship", "flagship_path"), ("curate", "tokenizer")
    found = [
        step("curate", "curate", "corpus", "dialogs", "preferences", "meadow", "curate"),
        step("tokenizer", "tokenizer", "tokenizer", after=["curate"]),
        step("pretrain", "pretrain", *flagship, "pretrain", *train, after=texts),
    ]
    for number, stage in enumerate(recipe.long_context.stages, 1):
        more = {"stage": stage.model_dump(mode="json"), "reach": recipe.reach(number)}
        found.append(step(stage.key, "pretrain", *flagship, *train, after=[*texts, found[-1].key], more=more))
    reach = recipe.reach()
    found += [
        step("anneal", "pretrain", *flagship, "anneal", *train, after=[*texts, found[-1].key], more={"reach": reach}),
        step("teacher", "distil", "distil", *train, after=["tokenizer", "anneal"]),
    ]
    for name, sibling in recipe.siblings.items():
        shape = sibling.shape() | {"reach": reach}
        fields = ("distil", *train)
        # the flagship itself is read only where a sibling is cut from it; the control never is
        read, more = (["anneal"], shape | {"init": "pruned"}) if sibling.init == "pruned" else ([], shape)
        found.append(step(f"distil/{name}", "distil", *fields, after=["tokenizer", *read, "teacher"], more=more))
        found.append(step(f"alone/{name}", "distil", *fields, after=["tokenizer"], more=shape))
    bases = {"flagship": "anneal"} | {name: f"distil/{name}" for name in recipe.siblings}
    found += [step(f"sft/{m}", "sft", "sft", *train, after=["curate", "tokenizer", b]) for m, b in bases.items()]
    found += [step(f"dpo/{m}", "dpo", "dpo", *train, after=["curate", "tokenizer", f"sft/{m}"]) for m in bases]
    guarded = bases[recipe.guard.sibling]
    found.append(step("guard", "guard", "guard", *train, after=["curate", "tokenizer", guarded]))
    made_by = {"flagship/base": "anneal", "flagship/instruct": "dpo/flagship"}
    for name in recipe.siblings:
        made_by |= {
            f"siblings/{name}/alone": f"alone/{name}",
            f"siblings/{name}/base": f"distil/{name}",
            f"siblings/{name}/instruct": f"dpo/{name}",
        }
    for folder, maker in made_by.items():
        after = ["curate", "tokenizer", maker, *(["guard"] if folder.endswith("instruct") else [])]
        found.append(step(f"eval/{folder}", "eval", "eval", *train, after=after))
    found.append(step("card", "card", "energy", "name", after=[s.key for s in found]))
    return found


def _outside(recipe: Recipe) -> tuple[Path, ...]:
    """Return the user's own files that the first two steps read."""
    names = [recipe.corpus, recipe.dialogs, recipe.preferences, recipe.tokenizer.path]
    files = [Path(name) for name in names if name and name != "meadow" and not name.startswith("hf:")]
    if recipe.flagship_path is not None:
        from herd.stages.models import find_model

        files.append(find_model(Path(recipe.flagship_path)))
    return tuple(files)


def raise_herd(recipe: Recipe, folder: Path, progress: Progress, *, only: str | None = None) -> Context:
    """Run every step of a recipe in a run folder (or those of one verb), and return the context.

    Raises RunError when the folder is in use, was made by another recipe, or the disk is too small; Stopped after a
    signal.
    """
    context = Context(recipe, RunFolder(folder), progress)
    if context.ranks.world.size > 1:
        from herd.runtime.process import begin

        begin(context.machine.device)
    with context.run.locked() if context.leads else nullcontext():
        if context.leads:
            context.run.ledger.reload()  # it is read under the lock
            _claim(context)
        context.told()  # the folder is ours
        with context.attempts.stop:
            for step in steps(recipe):
                if only is None or step.verb == only:
                    if context.leads:
                        _need(step, context)
                    execute(step, context)
        context.ranks.meet()
    return context


def _claim(context: Context) -> None:
    recipe, run = context.recipe, context.run
    where = str(run.recipe_path)
    run.claim(
        recipe.model_dump(mode="json"),
        lambda old: validate(Recipe, old, where=where).model_dump(mode="json"),
        free=("checkpoints", "faults", "parallel", "meshes"),
    )
    remedy = "free some, choose another --run, or take less text (curate.share, curate.max_megabytes)"
    check_disk(run.path, disk_need(recipe), remedy=remedy)


def _need(step: Step, context: Context) -> None:
    missing = [key for key in step.after if context.run.ledger.latest(key) is None]
    if missing:
        by_key = {s.key: s.verb for s in steps(context.recipe)}
        verbs = list(dict.fromkeys(by_key[key] for key in missing))
        raise RunError(f"{step.key} reads what {', '.join(verbs)} makes; run `herd {verbs[0]}` or `herd raise` first")


def disk_need(recipe: Recipe) -> int:
    """Estimate, from above, the bytes that a run writes: text three times over, shards, teacher cache, models."""
    text = _corpus_bytes(recipe) * recipe.curate.share
    if recipe.curate.max_megabytes:
        text = min(text, recipe.curate.max_megabytes * 1.2e6)
    tokens = text / 2
    teacher = tokens * recipe.distil.top_k * (2 + 2 if recipe.tokenizer.vocab_size < 65_536 else 4 + 2)
    vocab = recipe.tokenizer.vocab_size
    sizes = {m: recipe.model_config_of(m, vocab_size=vocab).parameters() for m in ("flagship", *recipe.siblings)}
    # each model folder in float32, and checkpoints with two moments and an average, one more while it is written
    models = 4 * (5 * sizes["flagship"] + sum(4 * size for size in sizes.values()))
    checkpoint = (recipe.checkpoints.keep + 1) * 16 * max(sizes.values())
    return int(3 * text + 4 * tokens + teacher + models + checkpoint)


def _corpus_bytes(recipe: Recipe) -> float:
    if recipe.corpus == "meadow":
        return recipe.meadow.megabytes * 1e6
    path = Path(recipe.corpus)
    files = [path] if path.is_file() else path.rglob("*") if path.is_dir() else []
    # compressed text grows about fourfold
    return sum(f.stat().st_size * (4 if f.suffix in (".gz", ".zst", ".parquet") else 1) for f in files if f.is_file())
