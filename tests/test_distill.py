"""The teacher's cache: what the teacher would say live, computed once, and never believed when stale or torn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import TOY, optim, toy_model, toy_shards

from herd.distill.objective import Distill
from herd.distill.teacher import teacher_cache
from herd.model.transformer import Transformer
from herd.tokenizer.shards import TokenShards
from herd.train.feed import PackedFeed, ShardSource
from herd.train.loop import fit
from herd.train.objective import NextToken
from herd.train.optim import Optimizer

ROW, K = 24, 6


@pytest.fixture(scope="module")
def teacher() -> Transformer:
    return toy_model()


@pytest.fixture
def shards(tmp_path: Path) -> TokenShards:
    shards = toy_shards(tmp_path / "shards", documents=20, longest=60, file_tokens=200)
    assert len(shards.files) > 2
    return shards


class Counted:
    """Counts how often it is told of progress."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 32])
def test_the_cache_is_what_the_teacher_says_live(
    tmp_path: Path, teacher: Transformer, shards: TokenShards, rows: int
) -> None:
    ids, logprobs = teacher_cache(tmp_path / "cache", teacher, shards, k=K, row_length=ROW, key="x", rows=rows)
    assert (ids.dtype, logprobs.dtype) == (np.uint16, np.float16)
    assert ids.shape == logprobs.shape == (shards.n_tokens, K)
    source = ShardSource(shards, row_length=ROW)
    assert max(len(shards.document(i)) for i in range(20)) > ROW + 1
    for start, length in zip(source.starts.tolist(), source.lengths.tolist(), strict=True):
        piece = torch.from_numpy(np.asarray(shards.read(start, length - 1), np.int64))
        live = teacher.logits(teacher(piece.unsqueeze(0)))[0].log_softmax(-1)
        cached = torch.from_numpy(logprobs[start : start + length - 1].astype(np.float32))
        chosen = torch.from_numpy(ids[start : start + length - 1].astype(np.int64))
        # half precision rounds, so two ids that are nearly alike may change places
        torch.testing.assert_close(cached, live.topk(K).values, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(cached, live.gather(1, chosen), rtol=1e-3, atol=1e-3)
        assert all(len(set(row)) == K for row in chosen.tolist())


def test_a_whole_cache_is_read_and_a_stale_or_torn_one_made_again(
    tmp_path: Path, teacher: Transformer, shards: TokenShards
) -> None:
    folder, seen = tmp_path / "cache", Counted()

    def made(model: Transformer, *, k: int = K, key: str = "x") -> np.ndarray:
        seen.calls.clear()
        return np.array(teacher_cache(folder, model, shards, k=k, row_length=ROW, key=key, advance=seen)[1])

    first = made(teacher)
    assert seen.calls[-1][0] == seen.calls[-1][1] > 0
    assert np.array_equal(made(toy_model(seed=9)), first)  # the key says that it is the same teacher
    assert not seen.calls
    other = made(toy_model(seed=9), key="y")
    assert seen.calls
    assert not np.array_equal(other, first)
    assert made(teacher, k=3, key="y").shape[1] == 3
    assert seen.calls
    # killed while writing: arrays are there, the index isn't yet
    made(teacher)
    (folder / "index.json").unlink()
    (folder / "top_ids.npy").write_bytes(b"\x93NUMPY torn")
    assert np.array_equal(made(teacher), first)
    assert seen.calls
    assert json.loads((folder / "index.json").read_text()) == {"key": "x", "k": K, "row_length": ROW}


def test_a_kill_while_computing_leaves_no_index(tmp_path: Path, teacher: Transformer, shards: TokenShards) -> None:
    def die(done: int, total: int) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "cache"
    teacher_cache(folder, teacher, shards, k=K, row_length=ROW, key="old")
    with pytest.raises(KeyboardInterrupt):
        teacher_cache(folder, teacher, shards, k=K, row_length=ROW, key="new", advance=die, rows=2)
    assert not (folder / "index.json").exists()


def feed_of(shards: TokenShards, teacher: tuple[np.ndarray, np.ndarray]) -> PackedFeed:
    """Return a feed with the teacher's tokens."""
    return PackedFeed(ShardSource(shards, row_length=ROW, teacher=teacher), rows=3, row_length=ROW, pad_id=0, seed=0)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(
    tmp_path: Path, teacher: Transformer, shards: TokenShards
) -> None:
    for k in (K, TOY.vocab_size):
        pair = teacher_cache(tmp_path / f"cache{k}", teacher, shards, k=k, row_length=ROW, key="x")
        batch = next(feed_of(shards, pair))
        loss = Distill(share=1.0).loss(teacher, batch)
        assert (loss.metrics["kl"] / loss.weight).item() == pytest.approx(0.0, abs=2e-3)
        other = Distill(share=1.0).loss(toy_model(seed=4), batch)
        assert (other.metrics["kl"] / other.weight).item() > 0.3


def test_a_share_of_nothing_is_plain_next_token_training(
    tmp_path: Path, teacher: Transformer, shards: TokenShards
) -> None:
    pair = teacher_cache(tmp_path / "cache", teacher, shards, k=K, row_length=ROW, key="x")
    batch = next(feed_of(shards, pair))
    student = toy_model(seed=4)
    plain = NextToken().loss(student, batch)
    assert Distill(share=0.0).loss(student, batch).total.item() == pytest.approx(plain.total.item(), rel=1e-5)


def test_distilling_brings_the_student_to_the_teacher(
    tmp_path: Path, teacher: Transformer, shards: TokenShards
) -> None:
    pair = teacher_cache(tmp_path / "cache", teacher, shards, k=K, row_length=ROW, key="x")
    student = toy_model(TOY.model_copy(update={"n_layers": 1}), seed=1, std=0.05)
    optimizer = Optimizer(student.named_parameters(), optim(learning_rate=5e-3), steps=60)
    kl: list[float] = []
    fit(
        student,
        Distill(share=1.0),
        feed_of(shards, pair),
        optimizer,
        steps=60,
        hooks=[lambda state: kl.append(state.figures["kl"])],
    )
    assert np.mean(kl[-5:]) < 0.7 * np.mean(kl[:5])
