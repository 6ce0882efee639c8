"""Recorded losses of 50 steps for each objective: a change of numbers that no one meant is seen at once.

`python tests/test_trajectories.py --record` writes tests/trajectories/*.json anew; do so only for a change that is
meant to change numbers, and say in the commit why the new curve is right.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import TOY, optim, toy_documents, toy_shards

from herd.align.dialogs import Pair
from herd.align.preference import PairFeed, Preference
from herd.distill.objective import Distill
from herd.distill.teacher import teacher_cache
from herd.model.transformer import Transformer
from herd.train.batch import Example
from herd.train.feed import Feed, PackedFeed, ShardSource
from herd.train.loop import State, fit
from herd.train.objective import NextToken, Objective
from herd.train.optim import Optimizer

RECORDED = Path(__file__).with_name("trajectories")
STEPS = 50
# what machines' own sums differ by grows with the steps; a wrong gradient shows within ten
TOLERANCE = 1e-4
# the clock's, and a count of signs that starts at margins of exactly 0
LEFT_OUT = {"tokens_per_s", "accuracy"}


def seeded_model(seed: int, std: float) -> Transformer:
    """Draw weights with NumPy: torch's generator rounds differently from one processor to another."""
    model, rng = Transformer(TOY), np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                drawn = rng.standard_normal(tuple(parameter.shape), dtype=np.float32)
                parameter.copy_(torch.from_numpy(drawn * np.float32(std)))
    return model


def next_token(folder: Path) -> tuple[Transformer, Objective, Feed]:
    """Pretraining on packed documents."""
    source = ShardSource(toy_shards(folder, documents=60), row_length=32, repeats={"de": 1.5})
    return seeded_model(0, 0.05), NextToken(), PackedFeed(source, rows=4, row_length=32, pad_id=0, seed=0)


def distill(folder: Path) -> tuple[Transformer, Objective, Feed]:
    """A student of a drawn teacher."""
    shards = toy_shards(folder / "shards", documents=60)
    pair = teacher_cache(folder / "teacher", seeded_model(1, 0.2), shards, k=8, row_length=32, key="x")
    source = ShardSource(shards, row_length=32, teacher=pair)
    return seeded_model(0, 0.05), Distill(0.7), PackedFeed(source, rows=4, row_length=32, pad_id=0, seed=0)


def preference(folder: Path) -> tuple[Transformer, Objective, Feed]:
    """Pairs of drawn answers against the model's own start."""
    pairs = []
    for i in range(24):
        prompt = toy_documents([3 + i % 5], seed=i)[0]
        sides = []
        for side in range(2):
            ids = prompt + toy_documents([4 + (i + 3 * side) % 7], seed=100 + 2 * i + side)[0]
            weights = np.array([0] * len(prompt) + [1] * (len(ids) - len(prompt)), np.float32)
            content = weights.copy()
            content[-1] = 0
            sides.append((Example(np.array(ids), weights), content))
        pairs.append(Pair(sides[0][0], sides[1][0], sides[0][1], sides[1][1]))
    feed = PairFeed(pairs, batch_pairs=6, row_length=32, pad_id=0, seed=0)
    feed.set_reference(seeded_model(0, 0.05))
    return seeded_model(0, 0.05), Preference(), feed


OBJECTIVES: dict[str, Callable[[Path], tuple[Transformer, Objective, Feed]]] = {
    "next_token": next_token,
    "distill": distill,
    "preference": preference,
}


def trajectory(name: str, folder: Path) -> dict[str, list[float]]:
    """Return the figures of every step."""
    model, objective, feed = OBJECTIVES[name](folder)
    rows: list[State] = []
    optimizer = Optimizer(model.named_parameters(), optim(learning_rate=3e-3, warmup_steps=5), steps=STEPS)
    fit(model, objective, feed, optimizer, steps=STEPS, hooks=[rows.append])
    return {key: [float(f"{s.figures[key]:.7g}") for s in rows] for key in rows[0].figures if key not in LEFT_OUT}


def record() -> None:
    """Write all trajectories anew."""
    torch.set_num_threads(1)
    RECORDED.mkdir(exist_ok=True)
    for name in OBJECTIVES:
        with tempfile.TemporaryDirectory() as folder:
            lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in trajectory(name, Path(folder)).items()]
        (RECORDED / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_recorded_trajectory_is_followed(name: str, tmp_path: Path) -> None:
    recorded = json.loads((RECORDED / f"{name}.json").read_text())
    now = trajectory(name, tmp_path)
    assert list(now) == list(recorded)
    for key, wanted in recorded.items():
        assert len(wanted) == STEPS
        # figures around zero, such as a margin, are held to the size of the curve
        size = TOLERANCE * max(abs(np.array(wanted)))
        np.testing.assert_allclose(now[key], wanted, rtol=TOLERANCE, atol=size, err_msg=f"{name}: {key}")
    assert np.mean(recorded["loss"][-5:]) < 0.98 * np.mean(recorded["loss"][:5])


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit("usage: python tests/test_trajectories.py --record")
    record()
