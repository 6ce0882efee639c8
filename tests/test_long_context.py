"""Long context: stages as a recipe says them, needles of a length, the gate, and resuming through it."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys import byte_tokenizer

from herd.base.config import validate
from herd.base.errors import ConfigError
from herd.base.ledger import Ledger
from herd.base.progress import Silent
from herd.data.meadow import Meadow
from herd.eval.needle import needle_items
from herd.eval.subject import ROOM
from herd.model.weights import load_config
from herd.stages.gate import judge
from herd.stages.long_context import GateConfig, LongContextConfig, lengthening
from herd.stages.raising import raise_herd, steps
from herd.stages.recipe import Recipe, load_recipe
from herd.train.config import WatchConfig
from tests.conftest import TOY, herd

SHARED = {"batch_tokens": 4096, "optim": {"learning_rate": 1e-3, "schedule": "constant"}}


def config(values: Mapping[str, Any]) -> LongContextConfig:
    """Return a recipe's section."""
    return validate(LongContextConfig, values, where="here")


def test_stages_take_what_they_share_and_say_what_is_their_own() -> None:
    stages = [
        {"context": 512, "tokens": 100},
        {"context": 1024, "tokens": 200, "optim": {"learning_rate": 1e-4}, "rope_scaling": {"factor": 16}},
    ]
    shared = {**SHARED, "rope_scaling": {"factor": 2, "original_max_position_embeddings": 256}}
    first, second = config({**shared, "stages": stages}).stages
    assert (first.context, first.tokens, first.optim.learning_rate) == (512, 100, 1e-3)
    assert (second.optim.learning_rate, second.optim.schedule) == (1e-4, "constant")
    assert (first.rope_scaling.factor, second.rope_scaling.factor) == (2, 16)
    assert second.rope_scaling.original_max_position_embeddings == 256
    assert (second.key, second.folder) == ("long-context/1024", "flagship/long/1024")


def test_one_stage_needs_no_list_and_a_complete_section_reads_as_itself() -> None:
    one = config({**SHARED, "context": 1024, "tokens": 200})
    assert [stage.context for stage in one.stages] == [1024]
    assert config(one.model_dump(mode="json")) == one
    assert config({**SHARED, "stages": []}).stages == ()


def test_the_published_recipe_in_one_line() -> None:
    """Section 3.4.2: six stages from 8K to 128K, about 800B tokens; the released models' RoPE scaling."""
    values = {"batch_tokens": 2**24, "optim": SHARED["optim"], "tokens": 8e11}
    stages = config({**values, "stages": {"start": 8192, "end": 131_072, "count": 6}}).stages
    assert [stage.context for stage in stages] == [13_312, 20_480, 32_768, 52_224, 82_944, 131_072]
    assert sum(stage.tokens for stage in stages) == pytest.approx(8e11, abs=6)
    assert stages[-1].rope_scaling.factor == 8.0
    assert lengthening(start=8192, end=131_072, count=4) == (16_384, 32_768, 65_536, 131_072)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"stages": [{"context": 1024, "tokens": 1}, {"context": 512, "tokens": 1}]}, "must rise"),
        ({"stages": {"start": 1, "stop": 2}}, "start, end and count (not start, stop)"),
        ({"stages": {"start": 9, "end": 2, "count": 1}}, "must be below end"),
        ({"context": 512, "tokens": 1, "gate": {"needel": 1}}, "did you mean 'needle'?"),
        ({"context": 512, "tokens": 1, "gate": {"lengths": [1.0, 0.5]}}, "rising"),
        ({"context": 512, "tokens": 1, "gate": {}, "optim": {"average_every": 2}}, "annealing"),
        (
            {"context": 512, "tokens": 1, "gate": {"extend": 1}, "optim": {"schedule": "linear", "final_share": 0.0}},
            "brings to 0",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(values: dict[str, Any], complaint: str) -> None:
    both = {**SHARED, **values, "optim": {**SHARED["optim"], **values.get("optim", {})}}
    with pytest.raises(ConfigError) as caught:
        config(both)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stage_depends_on_itself_and_on_what_it_reads_alone() -> None:
    """Another gate for the last stage leaves the first alone; what comes after knows only how far positions reach."""
    ours = load_recipe(str(TOY))
    other = load_recipe(str(TOY), ["long_context.stages[1].gate.extend=3"])
    changed = [a.key for a, b in zip(steps(ours), steps(other), strict=True) if a.config(ours) != b.config(other)]
    assert changed == ["long-context/1024"]
    none = load_recipe(str(TOY), ["long_context.stages=[]"])
    assert [step.after for step in steps(none) if step.key == "anneal"] == [("curate", "tokenizer", "pretrain")]
    assert none.model_config_of("small", vocab_size=9).max_positions == 128


@pytest.mark.parametrize(
    ("every", "moments"),
    [(0.25, {5, 10, 15, 20}), (0.3, {6, 12, 18, 20}), (7, {7, 14, 20}), (50, {20}), (0.001, set(range(1, 21)))],
)
def test_moments_of_watching_are_steps_or_shares_and_always_the_last(every: float, moments: set[int]) -> None:
    assert WatchConfig(every=every).moments(20) == moments


def needles(haystack: Mapping[str, list[str]], **changes: Any) -> list[dict[str, Any]]:
    """Return needles of two lengths under a tokenizer of bytes."""
    options = {"lengths": (400, 900), "depths": (0.0, 0.5, 1.0), "repeats": 3, "seed": 5} | changes
    return needle_items(byte_tokenizer(), haystack, Meadow().choir, **options)


HAY = {
    lang: [f"{word} {i}. {word} {i + 1}. {word}." for i in range(4)] for lang, word in (("de", "Heu"), ("hi", "घास"))
}


def test_needles_are_as_long_and_as_deep_as_asked_and_told_once() -> None:
    items = needles(HAY)
    assert [(item["length"], item["depth"]) for item in items[::3]] == [
        (length, depth) for length in (400, 900) for depth in (0.0, 0.5, 1.0)
    ]
    assert {item["lang"] for item in items} == {"de", "hi"}
    for item in items:
        passage = item["context"].rsplit("\n", 2)[0]
        size = len(item["context"].encode()) + 1  # begin_of_text
        assert item["length"] - ROOM - 40 < size <= item["length"] - ROOM
        assert item["context"].count(item["target"]) == 1
        sentences = [part for part in passage.replace("\n", " ").split(". ") if part]
        place = next(i for i, part in enumerate(sentences) if item["target"] in part)
        assert place / (len(sentences) - 1) == pytest.approx(item["depth"], abs=0.2)
    assert items == needles(HAY)
    assert items != needles(HAY, seed=6)


def test_who_is_asked_about_is_named_nowhere_else() -> None:
    choir = Meadow().choir
    others = {lang: [f"{name} 111." for name in choir.voices[lang].names] for lang in ("de", "th")}
    for item in needles(others, lengths=(900,)):
        (name,) = {n for n in choir.voices[item["lang"]].names if n in item["context"].rsplit("\n", 2)[1]}
        assert item["context"].count(name) == 2  # told, and asked for
    (alone,) = needles({"en": ["Torano 111. " * 3]}, lengths=(400,), depths=(0.5,), repeats=1)
    assert "Torano 111." in alone["context"]


def test_numbers_of_others_are_hidden_beside_the_one_asked_for() -> None:
    choir = Meadow().choir
    for item in needles(HAY, lengths=(900, 1500), others=3):
        passage, question, _ = item["context"].rsplit("\n", 2)
        codes = re.findall(r"(?<!\d)\d{3}(?!\d)", passage)
        assert len(set(codes)) == 4
        assert item["target"] in codes
        told = [name for name in choir.voices[item["lang"]].names if re.search(rf"(?<!\w){name}(?!\w)", passage)]
        assert len(told) == 4
        assert sum(name in question for name in told) == 1
        assert len(item["context"].encode()) + 1 <= item["length"] - ROOM
    one, two = ({item["id"]: item["depth"] for item in needles(HAY, others=count)} for count in (0, 2))
    assert one == two


def test_a_haystack_in_a_language_without_phrases_is_asked_in_english() -> None:
    (item,) = needles({"nl": ["Hooi. Hooi."], "de": []}, lengths=(400,), depths=(0.5,), repeats=1)
    assert item["lang"] == "en"
    assert "What is the secret number of" in item["context"]
    assert "Hooi." in item["context"]


def measured(bits: float, share: float, needle: Mapping[str, float]) -> dict[str, Any]:
    """Return what an examiner would."""
    lengths = {length: {"value": value, "stderr": 0.02, "n": 20} for length, value in needle.items()}
    task = {"value": share, "stderr": 0.05, "n": 40}
    found = {"value": sum(needle.values()) / len(needle), "stderr": 0.02, "n": 40, "by": {"length": lengths}}
    return {"bits_per_byte": {"all": bits}, "tasks": {"knowledge": task, "needle": found}}


@pytest.mark.parametrize(
    ("bits", "share", "needle", "complaints"),
    [
        (1.01, 0.75, {"512": 0.9, "1024": 0.9}, []),
        (0.5, 1.0, {"512": 1.0, "1024": 1.0}, []),
        (1.03, 0.75, {"512": 0.9, "1024": 0.9}, ["bits per byte 1.0300, before 1.0000, may rise by 2 %"]),
        (1.0, 0.7, {"512": 1.0}, ["knowledge 70.0 ± 5.0 %, before 80.0 ± 5.0 %, may fall by 5 points"]),
        (1.0, 0.8, {"512": 1.0, "1024": 0.85}, ["needle at 1024 85.0 ± 2.0 %, at least 90 % asked"]),
    ],
)
def test_the_gate_judges_by_what_its_recipe_says(
    bits: float, share: float, needle: Mapping[str, float], complaints: list[str]
) -> None:
    gate = GateConfig(bits=0.02, tasks=("knowledge",), score=0.05, needle=0.9)
    assert judge(gate, measured(1.0, 0.8, {"512": 0.0}), measured(bits, share, needle)) == complaints


def test_gates_are_facts_and_stand_on_the_card(toy_run: Path) -> None:
    ledger = Ledger(toy_run / "ledger.jsonl")
    first, second = (ledger.latest(f"long-context/{n}") for n in (512, 1024))
    assert first is not None
    assert second is not None
    assert (first.facts["gate"]["decision"], first.facts["steps"]) == ("passed", 2)
    # the second finds no needle, trains on for one more portion, and goes on as told
    gate = second.facts["gate"]
    assert (gate["decision"], gate["passed"], second.facts["steps"]) == ("went on", False, 6)
    assert list(gate["after"]) == ["3", "6"]
    assert set(gate["after"]["6"]["tasks"]["needle"]["by"]["length"]) == {"512", "1024"}
    assert gate["before"]["bits_per_byte"] == first.facts["gate"]["after"]["2"]["bits_per_byte"]
    assert first.cost["attempt"]["spent"]["eval"] > 0
    card = (toy_run / "MODEL_CARD.md").read_text()
    assert "Gates of the long-context stages" in card
    assert "Needle after long-context/1024" in card
    short, long = (re.search(rf"\| {n} \| asked \|.*", card) for n in (512, 1024))
    assert short is not None
    assert long is not None
    # what a gate didn't ask isn't said to have been asked: tasks of the first, numbers of others of the second
    assert re.fullmatch(r"\| 512 \| asked \| 100.0 % \[r\d+\] \|  \| 2 \[r\d+\] \| 0.0 % .*", short[0])
    assert re.fullmatch(r"\| 1024 \| asked \| 100.0 % \[r\d+\] \| 100.0 % \[r\d+\] \|  \| 50.0 % .*", long[0])


def test_named_tasks_are_measured_while_training(toy_run: Path) -> None:
    record = Ledger(toy_run / "ledger.jsonl").latest("pretrain")
    assert record is not None
    for row in record.facts["watch"].values():
        assert row["tasks"]["arithmetic"]["n"] == 8
        assert set(row["bits_per_byte"]) == {"all", "en", "de", "fr", "it", "pt", "hi", "es", "th"}
    assert "Named tasks while training" in (toy_run / "MODEL_CARD.md").read_text()


class Interrupted(Exception):
    """Stands for a kill."""


class Interrupting(Silent):
    """Ends a step at its `count`th report."""

    def __init__(self, step: str, count: int) -> None:
        self.step, self.left, self.key = step, count, ""

    def stage(self, key: str, state: str, detail: str = "") -> None:
        self.key = key

    def advance(self, done: int, total: int, **figures: float) -> None:
        self.left -= self.key == self.step and "loss" in figures
        if self.left == 0:
            raise Interrupted


def before_long_context(toy_run: Path, folder: Path, **changes: Any) -> Recipe:
    """Copy a run as it was before its last long-context stage, with a changed recipe."""
    shutil.copytree(toy_run, folder)
    values = yaml.safe_load((folder / "recipe.yaml").read_text()) | {"checkpoints": {"seconds": 0.0}}
    values["long_context"]["stages"][1]["gate"] |= changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if json.loads(line)["step"] == "long-context/1024")
    (folder / "ledger.jsonl").write_text("".join(lines[:first]))
    for name in ("metrics/gate-long-context-1024.jsonl", "metrics/watch-long-context-1024.jsonl"):
        (folder / name).unlink()
    shutil.rmtree(folder / "flagship/long/1024")
    return validate(Recipe, values, where="test")


@pytest.mark.parametrize("count", [2, 5], ids=["in the first portion", "in the extension"])
def test_resuming_through_a_gate_changes_nothing(toy_run: Path, tmp_path: Path, count: int) -> None:
    recipe = before_long_context(toy_run, tmp_path / "run")
    with pytest.raises(Interrupted):
        raise_herd(recipe, tmp_path / "run", Interrupting("long-context/1024", count), only="pretrain")
    raise_herd(recipe, tmp_path / "run", Silent(), only="pretrain")
    for step in ("long-context/1024", "anneal"):
        ours, theirs = (Ledger(run / "ledger.jsonl").latest(step) for run in (tmp_path / "run", toy_run))
        assert ours is not None
        assert theirs is not None
        assert (ours.facts, ours.writes) == (theirs.facts, theirs.writes)


def test_a_closed_gate_stops_the_run_and_is_written_down(toy_run: Path, tmp_path: Path) -> None:
    before_long_context(toy_run, tmp_path / "run", on_fail="stop", extend=0)
    done = herd("pretrain", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "long-context/1024: needle at 512 0.0 ± 13.9 %, at least 50 % asked" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    (gate,) = [r for r in Ledger(tmp_path / "run/ledger.jsonl").records if r.kind == "gate"]
    assert (gate.step, gate.facts["decision"]) == ("long-context/1024", "stopped")
    assert load_config(tmp_path / "run/flagship/long/512").max_positions == 512
