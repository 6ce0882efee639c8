"""The gate of a long-context stage: has the short context recovered, and is the needle found up to the new length?

"Successful adaptation" is measured so in arXiv:2407.21783, section 3.4.2, by looking; here by code, through the engine
and with the trainer's own weights. What was measured and decided is a fact of the ledger.

metrics/gate-STEP.jsonl   step 0: the model before the stage; then a line for each portion of tokens trained on
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from herd.base.errors import HerdError
from herd.base.seeds import named_seed
from herd.data.meadow import Meadow
from herd.eval.needle import needle_items, read_haystack
from herd.model.transformer import Transformer
from herd.model.weights import load_model
from herd.stages.long_context import GateConfig, LongStageConfig
from herd.stages.step import Context
from herd.stages.watch import Examiner, Rows, by_step
from herd.train.loop import State


class GateClosed(HerdError):
    """A long-context stage did not succeed, and its recipe says to stop then."""


class Gate:
    """Measures at the end of each portion of a stage, and says how many more steps to train."""

    def __init__(self, context: Context, stage: LongStageConfig, model: Transformer, *, before: str) -> None:
        """Take the model that is trained, and the folder of the one before the stage."""
        assert stage.gate is not None
        self._context, self._stage, self._config = context, stage, stage.gate
        self._rows = Rows(context.run, "gate", stage.key)
        self._model, self._before = model, before

    def begin(self, step: int) -> None:
        """Take note that training begins at this step; measure the model before the stage, unless that was done."""
        self._rows.begin(step)
        if not self._rows.all():
            self._context.progress.note(f"{self._stage.key}: scoring the model before it")
            # with its own positions, and in the number format of the one that is trained
            model = load_model(self._context.run / self._before, device=self._context.machine.device)
            self._rows.add({"step": 0, **self._examiner(model.to(self._context.machine.dtype))()})

    def goal(self, step: int) -> int:
        """Return where the portion ends that the step after `step` lies in, or that `step` itself has ended."""
        portions = min(max(1, -(-step // self._stage.steps)), 1 + self._config.extend)
        return portions * self._stage.steps

    def __call__(self, state: State) -> dict[str, Any]:
        """Measure, judge and write down; return how many `more` steps to train, or why the gate is `closed`."""
        before, *portions = self._rows.all()
        if not portions or portions[-1]["step"] != state.step:
            self._context.progress.note(f"{self._stage.key}: scoring short texts, and needles at up to its length")
            after = self._examine({"needle": self._needles})
            failed = judge(self._config, before, after)
            row = {"step": state.step, "tokens": state.tokens, **after, "passed": not failed, "failed": failed}
            self._rows.add(row)
            portions.append(row)
        if portions[-1]["passed"]:
            return {"more": 0}
        said = "; ".join(portions[-1]["failed"])
        if len(portions) <= self._config.extend:
            self._context.progress.note(f"{self._stage.key}: trains on, for {said}")
            return {"more": self._stage.steps}
        if self._config.on_fail == "go_on":
            self._context.progress.note(f"{self._stage.key}: goes on all the same, though {said}")
            return {"more": 0}
        self._context.run.ledger.append("gate", self._stage.key, facts=self.facts())
        return {"closed": said}

    def obeyed(self, verdict: Mapping[str, Any]) -> int:
        """Return how many more steps to train. Raises GateClosed."""
        if "closed" in verdict:
            raise GateClosed(
                f"{self._stage.key}: {verdict['closed']}; give it more tokens (tokens, gate.extend), or set "
                f"gate.on_fail to go_on. Another run can start from the model before it (flagship=FOLDER)"
            )
        return verdict["more"]

    def facts(self) -> dict[str, Any]:
        """Return what was measured and decided, by step, and what was asked for."""
        before, *portions = self._rows.all()
        passed = bool(portions) and portions[-1]["passed"]
        decision = "passed" if passed else {"go_on": "went on", "stop": "stopped"}[self._config.on_fail]
        measured = {name: value for name, value in before.items() if name != "step"}
        return {
            "passed": passed,
            "decision": decision,
            "before": measured,
            "after": by_step(portions),
            "asked": self._config.model_dump(mode="json"),
        }

    def _examiner(self, model: Transformer) -> Examiner:
        config = self._config
        documents, tasks, items = config.documents, config.tasks, config.items
        return Examiner(self._context, model, self._stage.key, documents=documents, tasks=tasks, items=items)

    @cached_property
    def _examine(self) -> Examiner:
        return self._examiner(self._model)

    @cached_property
    def _needles(self) -> list[dict[str, Any]]:
        context, config = self._context, self._config
        return needle_items(
            context.tokenizer,
            read_haystack(context.run / "corpus"),
            Meadow(context.recipe.meadow).choir,
            lengths=[round(share * self._stage.context) for share in config.lengths],
            depths=config.depths,
            repeats=config.repeats,
            others=config.others,
            seed=named_seed(context.recipe.seed, self._stage.key),
        )


def judge(config: GateConfig, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what the gate finds amiss, one line each; nothing when the stage has succeeded.

    before, after: measurements as an Examiner returns them, the second with the task 'needle' by length.
    """
    found = []
    old, new = (row.get("bits_per_byte", {}).get("all") for row in (before, after))
    if old is not None and new > old * (1 + config.bits):
        found.append(f"bits per byte {new:.4f}, before {old:.4f}, may rise by {100 * config.bits:g} %")
    for task in config.tasks:
        old, new = (row.get("tasks", {}).get(task) for row in (before, after))
        if old is not None and new is not None and new["value"] < old["value"] - config.score:
            points = f"{_share(new)}, before {_share(old)}, may fall by {100 * config.score:g} points"
            found.append(f"{task} {points}")
    needle = after["tasks"]["needle"]
    for length, row in needle["by"].get("length", {"all lengths": needle}).items():
        if row["value"] < config.needle:
            found.append(f"needle at {length} {_share(row)}, at least {100 * config.needle:g} % asked")
    return found


def _share(row: Mapping[str, float]) -> str:
    return f"{100 * row['value']:.1f} ± {100 * row['stderr']:.1f} %"
