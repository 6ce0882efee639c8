"""The ledger and the run folder: facts survive a crash, one writer at a time, one recipe for life."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from herd.base.errors import RunError
from herd.base.files import hash_json, hash_tree, read_jsonl, write_atomic, write_jsonl
from herd.base.ledger import Ledger
from herd.base.run import RunFolder
from herd.base.seeds import named_rng, named_seed


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "run/ledger.jsonl")
    ledger.append("start", "curate", fingerprint="f1")
    ledger.append("stage", "curate", facts={"documents": 3}, fingerprint="f1")
    ledger.append("stage", "curate", facts={"documents": 4}, fingerprint="f2")
    return ledger


def test_records_come_back_as_they_were_appended(ledger: Ledger) -> None:
    again = Ledger(ledger.path)
    assert again.records == ledger.records
    assert [r.id for r in again.records] == ["r0001", "r0002", "r0003"]
    assert again.append("score", "knowledge").id == "r0004"


def test_the_newest_stage_record_counts(ledger: Ledger) -> None:
    newest = ledger.latest("curate")
    assert newest is not None
    assert newest.facts == {"documents": 4}
    assert ledger.done("curate", "f2") == newest
    assert ledger.done("curate", "f1") is None  # an older fingerprint is no longer what lies in the folder
    assert ledger.latest("tokenizer") is None
    ledger.append("start", "curate", fingerprint="f3")
    assert ledger.latest("curate") == newest


def test_the_newest_score_of_each_task_and_model_counts(ledger: Ledger) -> None:
    for step, value in (("a", 1), ("b", 2), ("a", 3)):
        ledger.append("score", step, facts={"value": value})
    assert [(r.step, r.facts["value"]) for r in ledger.scores()] == [("a", 3), ("b", 2)]


@pytest.mark.parametrize("cut", [1, 2, 10, 60])
def test_a_torn_tail_is_cut_and_nothing_else(ledger: Ledger, cut: int) -> None:
    before = ledger.path.read_bytes()
    ledger.append("stage", "pretrain", facts={"loss": 1.25})
    ledger.path.write_bytes(ledger.path.read_bytes()[:-cut])  # cut 1 leaves a whole object without its newline
    again = Ledger(ledger.path)
    assert again.records == ledger.records[:3]
    assert again.append("stage", "pretrain").id == "r0004"
    assert ledger.path.read_bytes().startswith(before)
    assert Ledger(ledger.path).records == again.records


def test_a_broken_line_in_the_middle_is_refused(ledger: Ledger) -> None:
    lines = ledger.path.read_text().splitlines(keepends=True)
    ledger.path.write_text(lines[0] + '{"id": \n' + lines[2])
    with pytest.raises(RunError, match="line 2 is not a ledger record"):
        Ledger(ledger.path)


def test_a_second_holder_is_told_who_the_first_is(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from herd.base.run import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked(): pass"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with RunFolder(tmp_path / "run").locked():
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        assert f"in use by process {os.getpid()} on " in done.stderr
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


RECIPE = {"name": "x", "seed": 0, "pretrain": {"tokens": 10, "rate": 1e-5}, "siblings": {"a": [1, 2]}, "path": None}


def test_a_folder_keeps_one_recipe_for_life(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.claim(RECIPE)
    run.claim(RECIPE)
    assert run.read_recipe() == RECIPE
    other = RECIPE | {"seed": 1, "pretrain": {"tokens": 10, "rate": 1e-4, "new": True}}
    with pytest.raises(RunError) as caught:
        run.claim(other)
    for words in ("seed was 0, now 1", "pretrain.rate was 1e-05, now 0.0001", "pretrain.new was None, now True"):
        assert words in str(caught.value)
    assert run.read_recipe() == RECIPE


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="not empty and not a run folder"):
        RunFolder(tmp_path).claim(RECIPE)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        RunFolder(tmp_path).read_recipe()


def test_sections_that_say_how_a_run_is_run_may_change_and_the_newest_are_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.claim(RECIPE | {"faults": {"on_spike": "stop"}}, free=("faults",))
    run.claim(RECIPE | {"faults": {"on_spike": "skip"}}, free=("faults",))
    assert run.read_recipe()["faults"] == {"on_spike": "skip"}
    with pytest.raises(RunError, match=r"\(faults\.on_spike was 'skip', now 'stop'\)"):
        run.claim(RECIPE | {"faults": {"on_spike": "stop"}})
    with pytest.raises(RunError, match=r"\(seed was .*\); choose"):
        run.claim(RECIPE | {"seed": 99, "faults": {"on_spike": "stop"}}, free=("faults",))


def test_fingerprints_depend_on_content_and_names_only(tmp_path: Path) -> None:
    assert hash_json({"a": 1, "b": [2, 3]}) == hash_json({"b": [2, 3], "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 2})
    for name in ("one", "two"):
        write_atomic(tmp_path / name / "sub/x.txt", "same")
        write_atomic(tmp_path / name / "y.txt", b"same")
    assert hash_tree(tmp_path / "one") == hash_tree(tmp_path / "two")
    (tmp_path / "two/y.txt").rename(tmp_path / "two/z.txt")
    assert hash_tree(tmp_path / "one") != hash_tree(tmp_path / "two")


def test_files_are_whole_and_leave_nothing_behind(tmp_path: Path) -> None:
    rows = [{"text": "ภาษาไทย\u2028 हिन्दी"}, {"text": "b"}]
    assert write_jsonl(tmp_path / "rows.jsonl", rows) == 2
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == rows
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
    write_atomic(tmp_path / "rows.jsonl", json.dumps({"new": 1}))
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {"new": 1}


def test_named_seeds_differ_by_name_and_stay_the_same_for_good() -> None:
    seeds = {named_seed(0, name) for name in ("a", "b", "epoch/0", "epoch/1")} | {named_seed(1, "a")}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert named_seed(0, "weights/flagship") == 538_134_317_834_984_596
    assert named_rng(3, "x").random() == named_rng(3, "x").random()
