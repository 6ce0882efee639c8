"""Held-out bits per byte while a model trains: through the engine, with the trainer's own weights, a few times a step.

metrics/heldout-STEP.jsonl   {"step", "tokens", "bits_per_byte": {"en": ..., ...}} a line
"""

from pathlib import Path
from typing import Any

from herd.base.files import read_jsonl, write_jsonl
from herd.engine.engine import Engine
from herd.eval.runner import bits_per_byte
from herd.eval.subject import Subject
from herd.model.transformer import Transformer
from herd.stages.step import Context
from herd.train.loop import State

_DOCUMENTS = 12  # of each language: a few thousand bytes tell how a curve goes


class HeldOut:
    """A hook that scores held-out text `times` times over `steps` steps; on resuming, later rows are cut."""

    def __init__(self, context: Context, key: str, model: Transformer, *, steps: int, times: int = 4) -> None:
        self.path: Path = context.run / f"metrics/heldout-{key}.jsonl"
        self._at = {steps * (n + 1) // times for n in range(times)}
        self._engine = Engine(model)
        self._subject = Subject(key, self._engine, context.codec, chat=False)
        taken: dict[str, int] = {}
        self._documents = []
        for row in read_jsonl(context.run / "corpus/heldout.jsonl"):
            taken[row["lang"]] = taken.get(row["lang"], 0) + 1
            if taken[row["lang"]] <= _DOCUMENTS:
                self._documents.append(row)

    def due(self, step: int) -> bool:
        """Say whether this step is one to measure at."""
        return step in self._at

    def __call__(self, state: State) -> None:
        self._engine.refresh()
        by_language = bits_per_byte(self._subject, self._documents).facts["by"]["lang"]
        values = {lang: round(row["value"], 4) for lang, row in by_language.items()}
        earlier = [row for row in self._rows() if row["step"] < state.step]
        write_jsonl(self.path, [*earlier, {"step": state.step, "tokens": state.tokens, "bits_per_byte": values}])

    def facts(self) -> dict[str, Any]:
        """Return what was measured, by step."""
        return {str(row["step"]): {key: row[key] for key in ("tokens", "bits_per_byte")} for row in self._rows()}

    def _rows(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.path)) if self.path.exists() else []
