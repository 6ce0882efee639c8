"""What a server offers: a run's models, or one model folder, and the guard that watches over them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from herd.base.config import validate
from herd.base.files import read_jsonl
from herd.base.messages import parse_messages
from herd.base.run import RunFolder
from herd.guard.classifier import Guard
from herd.model.quant import NumberFormat
from herd.model.weights import is_model
from herd.runtime.config import RuntimeConfig
from herd.runtime.device import Machine, set_up
from herd.serve.config import ServeConfig
from herd.serve.metrics import Metrics
from herd.serve.models import Models, Offer
from herd.serve.selftest import PLAIN, Known, check_guard
from herd.serve.sentry import Sentry
from herd.serve.service import Service
from herd.stages.models import ModelFolder, open_engine, open_folder, open_guard
from herd.stages.recipe import Recipe
from herd.tokenizer.codec import DialogCodec

_KNOWN = 16  # messages of each kind in a self-test


def open_service(
    path: Path,
    config: ServeConfig,
    *,
    guard: Path | None = None,
    guarded: bool = True,
    quant: NumberFormat | None = None,
    draft: str | None = None,
) -> Service:
    """Open a run (the flagship at once, its other models when first asked for), or one model folder.

    guard: a guard's folder; the run's own unless given. quant: the number format of the models' weights, not the
    guard's. draft: who drafts for the default model and its base model (see `open_draft`); "ngram" does for all.
    Raises HerdError where there is no model, or the guard fails its self-test.
    """
    default = open_folder(path)
    machine = set_up(_runtime(default.run))
    models = Models(
        [
            # the default model and its base model: a sibling that drafts for them serves as it is
            _offer(name, folder, machine, config, quant, draft if _drafted(folder, default, draft) else None)
            for name, folder in _models(path, default)
        ],
        most_open=config.most_open,
    )
    metrics = Metrics()
    guard = guard or _own_guard(default)
    sentry = None
    if guarded and guard is not None:
        sentry = Sentry(_checked(guard, machine), name=guard.name, metrics=metrics)
    models.open(models.default)
    return Service(models, config, sentry, metrics)


def _runtime(run: Path | None) -> RuntimeConfig:
    if run is None:
        return RuntimeConfig()
    return validate(Recipe, RunFolder(run).read_recipe(), where=str(run / "recipe.yaml")).runtime


def _models(path: Path, default: ModelFolder) -> Iterator[tuple[str, ModelFolder]]:
    """Yield ids and folders, the default first: `flagship` or a sibling's name, and `NAME/base` for its base model."""
    if not (path / "recipe.yaml").is_file():
        yield default.name, default
        return
    for place in (path / "flagship", *sorted((path / "siblings").glob("*"))):
        made = [place / part for part in ("instruct", "base") if is_model(place / part)]
        for folder in made:
            yield place.name if folder is made[0] else f"{place.name}/base", open_folder(folder)


def _offer(
    name: str,
    folder: ModelFolder,
    machine: Machine,
    config: ServeConfig,
    quant: NumberFormat | None,
    draft: str | None,
) -> Offer:
    # what was already shown in a stream can't be dropped, as the official reading would
    codec = DialogCodec(folder.tokenizer, replace(folder.layout, reading="exact"))
    return Offer(
        name,
        codec,
        base=folder.run is not None and folder.path.name == "base",
        context=folder.config.max_positions,
        created=int(folder.path.stat().st_mtime),
        open=partial(
            open_engine,
            folder.path,
            machine,
            slots=config.slots,
            tokenizer=folder.tokenizer,
            quant=quant,
            draft=draft,
        ),
    )


def _drafted(folder: ModelFolder, default: ModelFolder, draft: str | None) -> bool:
    return draft == "ngram" or folder.path.parent == default.path.parent


def _own_guard(model: ModelFolder) -> Path | None:
    return model.run / "guard" if model.run and is_model(model.run / "guard") else None


def _checked(folder: Path, machine: Machine) -> Guard:
    """Return a guard that passed its self-test. Raises RunError."""
    guard = open_guard(folder, machine, slots=32)
    check_guard(guard, _known(folder.parent / "corpus") or PLAIN, name=str(folder))
    return guard


def _known(corpus: Path) -> list[Known]:
    """Return messages of a run on which its guard wasn't trained; none where it has none."""
    known = []
    for name, safe in (("refusal", False), ("borderline", True)):
        file = corpus / f"bench/{name}.jsonl"
        if not file.is_file():
            return []
        rows = islice(read_jsonl(file), _KNOWN)
        known += [Known(parse_messages(row["messages"])[-1].content, safe) for row in rows]
    return known
