"""Steps: what `herd raise` runs one after another, and how one is skipped, run and written down."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd import __version__
from herd.base.files import hash_json, hash_tree
from herd.base.progress import Progress
from herd.base.run import RunFolder
from herd.runtime.world import world
from herd.stages.attempts import Attempts
from herd.stages.ranks import Ranks
from herd.stages.recipe import Recipe

if TYPE_CHECKING:
    from herd.model.config import ModelConfig
    from herd.parallel.config import ParallelConfig
    from herd.runtime.device import Machine
    from herd.stages.meshes import Batches
    from herd.tokenizer.bpe import Tokenizer
    from herd.tokenizer.codec import DialogCodec


@dataclass(frozen=True)
class Outcome:
    """What a step made: facts for the ledger, the paths it wrote, and costs beyond its time."""

    facts: Mapping[str, Any]
    writes: tuple[str, ...] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What every step is given. The machine and the tokenizer are set up when first asked for."""

    recipe: Recipe
    run: RunFolder
    progress: Progress

    @cached_property
    def attempts(self) -> Attempts:
        """The attempts at steps, and the signals that they obey."""
        return Attempts(self.run, self.progress, grace=self.recipe.faults.grace_seconds, ranks=self.ranks)

    @cached_property
    def machine(self) -> "Machine":
        """The device that the run computes on."""
        from herd.runtime.device import set_up

        return set_up(self.recipe.runtime)

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The run's tokenizer."""
        from herd.tokenizer.bpe import Tokenizer

        return Tokenizer.load(self.run / "tokenizer")

    @cached_property
    def codec(self) -> "DialogCodec":
        """The run's dialog codec."""
        from herd.tokenizer.codec import DialogCodec
        from herd.tokenizer.layout import layout_from_json

        return DialogCodec(self.tokenizer, layout_from_json(self.recipe.layout, where="layout"))

    @cached_property
    def ranks(self) -> "Ranks":
        """The processes of this run."""
        return Ranks(world())

    @property
    def leads(self) -> bool:
        """Whether this process owns the ledger and the progress."""
        return self.ranks.leads

    def told(self, value: Any = None) -> Any:
        """Return what the first process says, on all; others wait for it, however long it works."""
        return self.ranks.told(value)

    def mesh(self, key: str, config: "ModelConfig", batches: "Batches") -> "ParallelConfig":
        """Return the mesh that a training step runs on. Raises ConfigError when it can't."""
        from herd.stages.meshes import mesh_of

        found, why = mesh_of(self.recipe, key, config, batches, device=self.machine.name)
        if why:
            self.progress.note(f"{key}: {why}")
        return found

    def facts(self, step: str) -> Mapping[str, Any]:
        """Return the facts of an earlier step."""
        record = self.run.ledger.latest(step)
        assert record is not None, f"{step} runs before the steps that read it"
        return record.facts


@dataclass(frozen=True)
class Step:
    """One step: `key` in the ledger, the verb it belongs to, what it reads, and the part of the recipe it obeys.

    together: whether all processes of a run take part in it; the first one alone runs all others.
    """

    key: str
    verb: str
    run: Callable[[Context, str], Outcome]
    config: Callable[[Recipe], Any]
    after: tuple[str, ...] = ()
    together: bool = False
    reads: Callable[[Recipe], tuple[Path, ...]] = lambda recipe: ()

    def depends(self, context: Context) -> dict[str, Any]:
        """Return what the result depends on: code version, this step's config and the hashes of everything it reads."""
        inputs = {key: dict(record.writes) for key in self.after if (record := context.run.ledger.latest(key))}
        outside = {str(path): hash_tree(path) for path in self.reads(context.recipe) if path.exists()}
        config = self.config(context.recipe)
        return {"step": self.key, "version": __version__, "config": config, "inputs": inputs, "outside": outside}


def execute(step: Step, context: Context) -> None:
    """Run a step, or keep what the ledger says it made already. Raises Stopped after a signal.

    Of several processes the first one decides, and runs alone what isn't training; the others wait for it.
    """
    context.run.ledger.reload()
    depends = step.depends(context) if context.leads else {}
    if context.told(_kept(step, depends, context) if context.leads else None):
        return
    if not (step.together or context.leads):
        context.told()  # it is done
        return
    begun = {"fingerprint": hash_json(depends), "depends": depends, "together": step.together}
    with context.attempts.one(step.key, **begun) as attempt:
        outcome = step.run(context, step.key)
        spent = context.attempts.cost(attempt)
        if context.leads:
            _write_down(step, depends, outcome, spent, context)
    if not step.together:
        context.told()


def _kept(step: Step, depends: Mapping[str, Any], context: Context) -> bool:
    """Say whether the ledger has a step's result, and that it is kept."""
    kept = context.run.ledger.done(step.key, hash_json(depends))
    if kept is None or not all((context.run / name).exists() for name in kept.writes):
        context.progress.stage(step.key, "running")
        return False
    context.progress.stage(step.key, "skipped" if "skipped" in kept.facts else "kept", kept.facts.get("skipped", ""))
    return True


def _write_down(
    step: Step, depends: Mapping[str, Any], outcome: Outcome, spent: Mapping[str, Any], context: Context
) -> None:
    ledger = context.run.ledger
    reads = {
        name: digest for key in step.after if (record := ledger.latest(key)) for name, digest in record.writes.items()
    }
    ledger.append(
        "stage",
        step.key,
        facts=dict(outcome.facts),
        cost={**spent, "herd_version": __version__, **outcome.cost},
        reads=reads,
        writes={name: hash_tree(context.run / name) for name in outcome.writes},
        fingerprint=hash_json(depends),
    )
    skipped = outcome.facts.get("skipped")
    context.progress.stage(step.key, "skipped" if skipped else "done", skipped or f"{spent['seconds']:.0f} s")
