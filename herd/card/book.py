"""The ledger to look things up in: the newest record of each step, and figures taken from it by path."""

from collections.abc import Mapping, Sequence
from typing import Any

from herd.base.files import hash_json
from herd.base.goodput import attempts
from herd.base.ledger import Record
from herd.card.figures import Figure

RECIPE = "recipe"
BASE = ("pretrain", "long-context", "anneal")  # heads of the steps that make the flagship's base
TRAINING = (*BASE, "distil", "alone", "sft", "dpo", "guard")
_NUMBERS = {"bits_per_byte": "bits"}


class Book:
    """Records, recipe and curves of one run. Later records of a step replace earlier ones."""

    def __init__(
        self,
        records: Sequence[Record],
        *,
        recipe: Mapping[str, Any],
        curves: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        # A card can't hold the cost of writing itself, and must come out the same when it is written again.
        records = tuple(r for r in records if r.kind in ("stage", "score", "end", "event") and r.step != "card")
        self.records = records
        self.recipe = recipe
        self.curves = curves
        self.recipe_hash = hash_json(recipe)
        self.by_id: dict[str, Record] = {r.id: r for r in records}
        self.stages: dict[str, Record] = {r.step: r for r in records if r.kind == "stage"}
        self.score_records: dict[str, Record] = {r.step: r for r in records if r.kind == "score"}
        newest = {r.id for r in (*self.stages.values(), *self.score_records.values())}
        self.replaced: tuple[Record, ...] = tuple(
            r for r in records if r.kind in ("stage", "score") and r.id not in newest
        )
        self.ends: tuple[Record, ...] = tuple(r for r in records if r.kind == "end")
        self.events: tuple[Record, ...] = tuple(r for r in records if r.kind == "event")
        self._scores = {(str(r.facts.get("task")), str(r.facts.get("model"))): r for r in self.score_records.values()}

    def figure(self, record: Record | None, *path: str, unit: str = "number", note: str = "") -> Figure:
        """Return the figure at `path` ('facts' or 'cost' first) of a record; its value is None if absent."""
        if record is None:
            return Figure(None, unit, note=note)
        skipped = record.facts.get("skipped")
        value = look_up(record, path)
        if value is None or isinstance(value, (Mapping, list)):
            return Figure(None, unit, sources=(record.id,), note=str(skipped or note))
        return Figure(value, unit, sources=(record.id,), path=path)

    def first(self, record: Record | None, *paths: tuple[str, ...], unit: str = "number", note: str = "") -> Figure:
        """Return the figure at the first of several paths that holds one."""
        figures = [self.figure(record, *path, unit=unit, note=note) for path in paths]
        return next((figure for figure in figures if figure.value is not None), figures[0])

    def setting(self, *path: str, unit: str = "text") -> Figure:
        """Return the figure at `path` of the recipe."""
        value: Any = self.recipe
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None or isinstance(value, (Mapping, list)):
            return Figure(None, unit, note="the recipe does not state it")
        return Figure(value, unit, sources=(RECIPE,), path=path)

    def score(self, task: str, model: str, *by: str) -> Figure:
        """Return a score with its standard error; `by` are keys into its breakdowns, such as 'lang', 'th'."""
        record = self._scores.get((task, model))
        if record is None and (stage := self.stages.get(f"eval/{model}")) and "skipped" in stage.facts:
            record = stage
        unit = _NUMBERS.get(task, "share")
        path = ("facts", "by", *by) if by else ("facts",)
        figure = self.figure(record, *path, "value", unit=unit)
        if record is None or figure.value is None:
            return figure
        return Figure(
            figure.value,
            unit,
            look_up(record, (*path, "stderr")),
            figure.sources,
            figure.path,
            how=_size(record, path),
        )

    def score_record(self, task: str, model: str) -> Record | None:
        """Return the newest record of one task and model."""
        return self._scores.get((task, model))

    def tasks(self) -> tuple[str, ...]:
        """Return every task with a score record, in order of first appearance."""
        return tuple(dict.fromkeys(task for task, _ in self._scores))

    def scored_models(self, *tasks: str) -> tuple[str, ...]:
        """Return the models with a record for one of these tasks (or for any), in card order."""
        found = {model for task, model in self._scores if not tasks or task in tasks}
        return tuple(sorted(found, key=self.order))

    def breakdown(self, task: str, model: str, kind: str) -> Mapping[str, Any]:
        """Return a score's breakdown by 'lang', 'hazard', 'length_depth' and so on; may be empty."""
        record = self._scores.get((task, model))
        found = (record.facts.get("by") or {}).get(kind) if record else None
        return found or {}

    def training(self) -> tuple[Record, ...]:
        """Return the newest records of the training steps, skipped ones too, in ledger order."""
        return tuple(r for step, r in self.stages.items() if step.partition("/")[0] in TRAINING)

    def base_steps(self) -> tuple[str, ...]:
        """Return the steps that made the flagship's base, in ledger order; of long context there may be several."""
        return tuple(step for step in self.stages if step.partition("/")[0] in BASE)

    def made(self, *steps: str) -> list[Record]:
        """Return the newest records of these steps, without those that are absent or were skipped."""
        return [r for step in steps if (r := self.stages.get(step)) and "skipped" not in r.facts]

    def ends_before(self, record: Record) -> list[Record]:
        """Return the attempts that came to nothing before a step's result."""
        return next(found[:-1] for found, _ in attempts(self.records) if record in found)

    def siblings(self) -> tuple[str, ...]:
        """Return the siblings' names, in the recipe's order, then in order of first appearance."""
        stated = self.recipe.get("siblings")
        names = [str(name) for name in stated] if isinstance(stated, Mapping) else []
        names += [s.split("/", 1)[1] for s in self.stages if s.startswith(("distil/", "alone/"))]
        names += [m.split("/")[1] for _, m in self._scores if m.startswith("siblings/")]
        return tuple(dict.fromkeys(names))

    def order(self, model: str) -> tuple[int, int, int, str]:
        """Return a sort key: flagship, siblings in turn, guard; within each base, alone, instruct."""
        name, guarded = model.removesuffix("+guard"), model.endswith("+guard")
        kind = {"base": 0, "alone": 1, "instruct": 2}.get(name.rsplit("/", 1)[-1], 3)
        if name.startswith("flagship"):
            return (0, kind, guarded, model)
        names = self.siblings()
        if name.startswith("siblings/") and name.split("/")[1] in names:
            return (1 + names.index(name.split("/")[1]), kind, guarded, model)
        return (1 + len(names), kind, guarded, model)


def look_up(record: Record, path: tuple[str, ...]) -> Any:
    """Return the value at `path` of a record, or None."""
    value: Any = {"facts": record.facts, "cost": record.cost}
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def model_label(model: str) -> str:
    """Return how the card calls a model: 'siblings/small/base' is 'small, distilled'."""
    name, guarded = model.removesuffix("+guard"), model.endswith("+guard")
    parts = name.split("/")
    if parts[0] == "siblings" and len(parts) == 3:
        label = f"{parts[1]}, {'distilled' if parts[2] == 'base' else parts[2]}"
    else:
        label = " ".join(parts)
    return f"{label} + guard" if guarded else label


def _size(record: Record, path: tuple[str, ...]) -> str:
    n = look_up(record, (*path, "n"))
    return f"{n} items" if isinstance(n, int) else ""
