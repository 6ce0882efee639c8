"""Checkpoints, faults and resuming on ranks: the same bits on the same mesh, the same run on any other."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lasting import Run, meshes
from ranks import command, launch, returned, start, surroundings

from herd.base.goodput import KINDS
from herd.parallel.config import ParallelConfig
from herd.runtime.signals import EXIT_HUNG

FOUR: list[dict[str, Any]] = [{"dp_shard": 4}, {"dp_shard": 2, "tp": 2}, {"pp": 2, "dp_shard": 2}]
TWO: list[dict[str, Any]] = [{"dp_shard": 2}, {"pp": 2}]
CLOSE = 2e-5  # of the loss: sums over ranks run in another order, for six steps


def names(found: list[dict[str, Any]]) -> list[str]:
    return [ParallelConfig(**axes).describe() for axes in found]


def close(mine: list[float], theirs: list[float]) -> bool:
    return all(abs(a - b) <= CLOSE * abs(b) for a, b in zip(mine, theirs, strict=True))


def test_a_checkpoint_of_any_mesh_goes_on_on_any_other(tmp_path: Path) -> None:
    whole = Run(tmp_path / "alone", ParallelConfig()).go().losses
    folder = str(tmp_path)
    # each mesh's own goes on to the bit, and each reads another's
    own = [[origin, axes] for origin, axes in zip(names(FOUR), FOUR, strict=True)]
    others = [[origin, axes] for origin, axes in zip(names(FOUR), FOUR[1:] + FOUR[:1], strict=True)]
    four = launch(4, "lasting:meshes", folder, FOUR, own + others)
    two = launch(2, "lasting:meshes", folder, TWO, [[names(FOUR)[0], TWO[1]], [names(FOUR)[1], TWO[0]]])
    for ranks in (four, two):
        for found in ranks:
            assert all(close(losses, whole) for losses, _ in found["whole"].values())
            assert all(close(losses, whole[3:]) for losses, _ in found["again"].values())
    # the same mesh: the same bits on every rank
    for found in four:
        for name in names(FOUR):
            assert found["again"][f"{name} -> {name}"] == [found["whole"][name][0][3:], found["whole"][name][1]]
    alone = meshes(folder, [], [[origin, {}] for origin in names(FOUR) + names(TWO)])
    assert all(close(losses, whole[3:]) for losses, _ in alone["again"].values())


def test_spikes_signals_and_slow_ranks_are_met_by_all_ranks_together(tmp_path: Path) -> None:
    first, second = launch(2, "lasting:faults", str(tmp_path))
    for found in (first, second):
        assert [event["did"] for event in found["spike"]["told"]] == [
            "went back to step 4 and left out the batches of 2 steps"
        ]
        assert found["spike"]["same"], "as on a feed that never had them"
        assert "at step 4 of 6 and stopped" in found["stopped"] or "at step 5 of 6 and stopped" in found["stopped"]
    assert second["stopped"].startswith("SIGTERM")
    assert first["stopped"].startswith("a signal to another rank")
    assert first["saved"] == second["saved"] == int(first["stopped"].split("step ")[1][0])
    assert first["slow"][0]["event"] == "slow rank"
    assert first["slow"][0]["why"].startswith("rank 1 of 2 takes ")
    assert not second["slow"], "the first rank speaks"


def test_a_hang_ends_with_one_message_that_names_the_rank(tmp_path: Path) -> None:
    ranks = start(2, "lasting:hang", str(tmp_path), timeout=90)
    assert [rank.code for rank in ranks] == [EXIT_HUNG, EXIT_HUNG], [rank.log for rank in ranks]
    said = [line for rank in ranks for line in rank.log.splitlines() if line.startswith("herd:")]
    assert len(said) == 1
    assert said[0].startswith("herd: step 3 took longer than 2 s: rank 1 (at ")
    assert "lasting.py" in said[0]
    assert "of 2 didn't arrive; the same command goes on from the last checkpoint" in said[0]
    assert "Traceback" not in "".join(rank.log for rank in ranks)
    beats = [json.loads(path.read_text()) for path in sorted((tmp_path / "attempts").glob("*.json"))]
    assert [beat["why"] != "" for beat in beats] == [True, False]
    assert all(beat["attempt"]["spent"]["idle"] > 1.0 for beat in beats), "what hung is idle"
    assert all(set(beat["attempt"]["spent"]) <= set(KINDS) for beat in beats)


def job(folder: Path, deaths: dict[str, str]) -> tuple[int, list[Any]]:
    """Run a job of two ranks under torchrun, which starts all again when one dies; return how it ended."""
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    done = subprocess.run(
        [sys.executable, *torchrun, "--monitor-interval=0.1", *command(str(out), "lasting:lives", str(folder), deaths)],
        env=surroundings(),
        capture_output=True,
        start_new_session=True,
        check=False,
        timeout=240,
    )
    return done.returncode, [returned(str(out), rank) for rank in range(2)]


@pytest.mark.slow
def test_killed_at_random_moments_and_started_again_ends_in_the_same_bits(tmp_path: Path) -> None:
    code, never = job(tmp_path / "never", {})
    assert code == 0
    rng = random.Random(20261129)
    one, two, three = (rng.randint(low, low + 1) for low in (2, 3, 4))
    # a worker dies, all are started again; then the whole job dies; the same command, and the other worker dies
    deaths = {"0": f"1 at {one}", "1": f"0 and the launcher at {two}"}
    code, _ = job(tmp_path / "killed", deaths)
    assert code != 0
    code, last = job(tmp_path / "killed", {"0": f"0 at {three}"})
    assert code == 0
    assert [rank["bits"] for rank in last] == [rank["bits"] for rank in never]
    assert [rank["attempt"] for rank in last] == [1, 1]
    assert all(rank["began"] >= two // 2 * 2 - 2 for rank in last), "not from the beginning"
