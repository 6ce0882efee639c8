"""A whole herd at toy width, from one command: every stage, every file of the run folder, and what may follow."""

import json
from pathlib import Path

import pytest

from herd.base.ledger import Ledger
from herd.model.weights import load_config
from tests.conftest import TOY, herd

STAGES = [
    "curate",
    "tokenizer",
    "pretrain",
    "long-context/512",
    "long-context/1024",
    "anneal",
    "teacher",
    "distil/small",
    "alone/small",
    "distil/tiny",
    "alone/tiny",
    "sft/flagship",
    "sft/small",
    "sft/tiny",
    "dpo/flagship",
    "dpo/small",
    "dpo/tiny",
    "guard",
]


def test_every_stage_is_in_the_ledger_in_order(toy_run: Path) -> None:
    done = [record.step for record in Ledger(toy_run / "ledger.jsonl").records if record.kind == "stage"]
    assert done[: len(STAGES)] == STAGES
    assert done[-1] == "card"
    assert not [r for r in Ledger(toy_run / "ledger.jsonl").records if "skipped" in r.facts]


def test_the_run_folder_is_as_the_design_says(toy_run: Path) -> None:
    for model in ("flagship/base", "flagship/instruct", "siblings/small/base", "siblings/small/instruct", "guard"):
        files = {path.name for path in (toy_run / model).iterdir()}
        assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.model"} <= files
    for name in ("recipe.yaml", "MODEL_CARD.md", "card.html", "corpus/documents.jsonl", "shards/tokens-00000.bin"):
        assert (toy_run / name).stat().st_size > 0
    assert list((toy_run / "checkpoints").iterdir()) == []


def test_losses_fall_and_tokens_are_counted(toy_run: Path) -> None:
    ledger = Ledger(toy_run / "ledger.jsonl")
    for step in ("pretrain", "distil/small", "alone/tiny"):
        record = ledger.latest(step)
        assert record is not None
        assert record.facts["loss_last"] < record.facts["loss_first"]
        assert record.facts["tokens"] > 10_000
        assert record.cost["device_hours"] == pytest.approx(record.cost["seconds"] / 3600, rel=1e-2)


def test_held_out_text_is_scored_while_the_flagship_trains(toy_run: Path) -> None:
    record = Ledger(toy_run / "ledger.jsonl").latest("pretrain")
    assert record is not None
    rows = list(record.facts["watch"].values())
    assert len(rows) == 4
    for lang in ("en", "hi", "th"):
        assert rows[-1]["bits_per_byte"][lang] < rows[0]["bits_per_byte"][lang]
    assert "Held-out bits per byte while training" in (toy_run / "MODEL_CARD.md").read_text()


def test_long_context_changes_the_shape_as_the_recipe_says(toy_run: Path) -> None:
    before, after = load_config(toy_run / "flagship/pretrain"), load_config(toy_run / "flagship/base")
    assert (before.max_positions, before.rope_scaling) == (128, None)
    assert after.max_positions == 1024
    assert after.rope_scaling is not None
    assert after.rope_scaling.factor == 8.0


def test_every_score_has_an_error_and_its_items(toy_run: Path) -> None:
    scores = Ledger(toy_run / "ledger.jsonl").scores()
    tasks = {record.facts["task"] for record in scores}
    assert {"knowledge", "arithmetic", "code", "needle", "tools", "bits_per_byte", "violation_rate"} <= tasks
    for record in scores:
        assert record.facts["stderr"] > 0
        (name,) = record.writes
        items = [json.loads(line) for line in (toy_run / name).read_text().splitlines()]
        assert len(items) == record.facts["n"]
    guarded = {r.facts["model"] for r in scores if r.facts["task"] == "violation_rate"}
    assert {"flagship/instruct", "flagship/instruct+guard"} <= guarded
    bits = next(r for r in scores if r.step == "eval/bits_per_byte/flagship/base")
    assert len(bits.facts["by"]["lang"]) == 8


def test_raising_again_keeps_everything(toy_run: Path) -> None:
    before = (toy_run / "ledger.jsonl").read_bytes()
    again = herd("raise", str(TOY), "--run", str(toy_run))
    assert again.returncode == 0, again.stderr
    assert (toy_run / "ledger.jsonl").read_bytes() == before
    assert "pretrain: kept" in again.stdout
    assert "running" not in again.stdout


def test_the_end_shows_table_conversation_and_cards(toy_run: Path) -> None:
    said = (toy_run / "stdout.txt").read_text()
    assert "Benchmarks (± standard error)" in said
    assert "A short conversation" in said
    assert str(toy_run / "MODEL_CARD.md") in said
    assert str(toy_run / "card.html") in said


@pytest.mark.parametrize("options", [[], ["--sibling", "small"], ["--base"], ["--no-guard"]])
def test_chat_answers_several_turns(toy_run: Path, options: list[str]) -> None:
    done = herd("chat", str(toy_run), "--max-tokens", "5", *options, stdin="Where does Nora live?\nAnd Leo?\n\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("herd  ") == 2


def test_chat_names_the_siblings_when_asked_for_another(toy_run: Path) -> None:
    done = herd("chat", str(toy_run), "--sibling", "huge")
    assert done.returncode == 2
    assert "small, tiny" in done.stderr


def test_stage_verbs_work_on_a_run_folder(toy_run: Path) -> None:
    card = herd("card", str(toy_run))
    assert card.returncode == 0, card.stderr
    assert "card.html" in card.stdout
    scores = herd("eval", str(toy_run))
    assert scores.returncode == 0, scores.stderr
    assert "knowledge" in scores.stdout
