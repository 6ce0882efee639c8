"""Packing and feeds: every document once, no row overfull, and a place that resumes to the very next batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_examples, toy_model, toy_shards

from herd.base.errors import DataError
from herd.distill.objective import Distill
from herd.train.batch import Batch, Example, Part, collate, pack
from herd.train.feed import ExampleSource, PackedFeed, ShardSource
from herd.train.objective import NextToken


@given(st.integers(1, 40).flatmap(lambda row: st.tuples(st.just(row), st.lists(st.integers(1, row + 1), max_size=60))))
@settings(deadline=None, max_examples=200)
def test_packing_takes_every_document_once_and_overfills_no_row(case: tuple[int, list[int]]) -> None:
    row_length, lengths = case
    rows = pack(np.array(lengths, np.int64), row_length)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    used = [sum(lengths[document] - 1 for document in row) for row in rows]
    assert all(row for row in rows)
    assert max(used, default=0) <= row_length
    # two rows at most half full would have become one, so at most one is; the sum bounds the number of rows
    assert sum(2 * places <= row_length for places in used) <= 1
    assert len(rows) <= 2 * sum(used) / row_length + 1


def reference_best_fit(lengths: list[int], row_length: int) -> int:
    """Count rows by trying every open row."""
    free: list[int] = []
    for length in lengths:
        fitting = [(left, row) for row, left in enumerate(free) if left >= length - 1]
        if fitting:
            free[min(fitting)[1]] -= length - 1
        else:
            free.append(row_length - length + 1)
    return len(free)


@given(st.lists(st.integers(2, 31), max_size=50))
@settings(deadline=None, max_examples=100)
def test_packing_is_best_fit(lengths: list[int]) -> None:
    assert len(pack(np.array(lengths, np.int64), 30)) == reference_best_fit(lengths, 30)


def test_rows_of_many_short_documents_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(2, 100, 2000)
    rows = pack(lengths, 256)
    assert (lengths - 1).sum() / (len(rows) * 256) > 0.97


def test_collate_lays_documents_out_as_drawn() -> None:
    # the drawing in herd/train/batch.py with bos 1, end 2, a..f 10..15 and pad 0
    rows = [
        [Example(np.array([1, 10, 11, 12, 2])), Example(np.array([1, 13, 2]), np.array([9, 0, 0.5], np.float32))],
        [Example(np.array([1, 14, 15, 2]))],
    ]
    batch = collate(rows, row_length=7, pad_id=0)
    assert batch.tokens.tolist() == [[1, 10, 11, 12, 1, 13, 0], [1, 14, 15, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[10, 11, 12, 2, 13, 2, 0], [14, 15, 2, 0, 0, 0, 0]]
    assert batch.weights.tolist() == [[1, 1, 1, 1, 0, 0.5, 0], [1, 1, 1, 0, 0, 0, 0]]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1, 1, -1], [0, 0, 0, -1, -1, -1, -1]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 0], [0, 1, 2, 0, 0, 0, 0]]
    assert batch.teacher is None


def test_a_teacher_lies_beside_the_token_it_was_computed_after() -> None:
    ids, logprobs = np.arange(10).reshape(5, 2), -np.arange(10, dtype=np.float32).reshape(5, 2)
    example = Example(np.array([1, 10, 11, 12, 2]), teacher=(ids, logprobs))
    batch = collate([[example]], row_length=6, pad_id=0)
    assert batch.teacher is not None
    assert batch.teacher[0][0, :4].tolist() == ids[:4].tolist()
    assert batch.teacher[1][0, :4].tolist() == logprobs[:4].tolist()
    assert batch.teacher[1][0, 4:].eq(float("-inf")).all()


def same(a: Batch, b: Batch) -> bool:
    """Say whether two batches are the same tensors."""
    return all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


def parts(batch: Batch) -> list[torch.Tensor]:
    """Return a batch's tensors."""
    return [batch.tokens, batch.targets, batch.weights, batch.documents, batch.positions, *(batch.teacher or ())]


@pytest.fixture
def source(tmp_path: Path) -> ShardSource:
    shards = toy_shards(tmp_path, documents=30, longest=60)
    top = np.random.default_rng(0).integers(0, 9, (shards.n_tokens, 3))
    return ShardSource(shards, row_length=24, repeats={"en": 1.5}, teacher=(top, -top.astype(np.float16)))


def feed_of(source: ShardSource, seed: int = 0) -> PackedFeed:
    """Return a feed of three rows of 24."""
    return PackedFeed(source, rows=3, row_length=24, pad_id=0, seed=seed)


@pytest.mark.parametrize("taken", [0, 1, 7, 40])
def test_a_feed_goes_on_with_the_very_next_batch(source: ShardSource, taken: int) -> None:
    feed = feed_of(source)
    for _ in range(taken):
        next(feed)
    again = feed_of(source)
    again.restore(feed.state())
    for _ in range(20):
        assert same(next(feed), next(again))
    assert feed.state() == again.state()
    assert feed.state()["epoch"] > 0


@pytest.mark.parametrize("of", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shorter_rows", [True, False])
def test_the_parts_of_a_batch_are_the_whole(source: ShardSource, of: int, shorter_rows: bool) -> None:
    """Row r of a batch is row r // of of part r % of; what is left over is empty, and all parts have one shape."""
    options: dict[str, Any] = {"rows": 5, "row_length": 24, "pad_id": 0, "seed": 3, "shorter_rows": shorter_rows}
    whole = PackedFeed(source, **options)
    feeds = [PackedFeed(source, part=Part(i, of), **options) for i in range(of)]
    for _ in range(2 * whole.batches_per_epoch):
        batch, pieces = next(whole), [next(feed) for feed in feeds]
        assert len({tuple(x.shape) for piece in pieces for x in (piece.tokens,)}) == 1
        assert all(feed.state() == whole.state() for feed in feeds)
        rows = batch.tokens.shape[0]
        for x, *found in zip(parts(batch), *map(parts, pieces), strict=True):
            laid = torch.stack(found, 1).flatten(0, 1)
            assert torch.equal(laid[:rows], x)
        assert laid.shape[0] < rows + of
        assert all((piece.documents >= 0).eq(piece.weights > 0).all() for piece in pieces)
        assert sum(float(piece.weights.sum()) for piece in pieces) == float(batch.weights.sum())
        if not shorter_rows:
            assert batch.tokens.shape == (5, 24)


def test_a_part_without_rows_has_no_loss_and_a_gradient_of_0(source: ShardSource) -> None:
    feed = PackedFeed(source, rows=1, row_length=24, pad_id=0, seed=0, part=Part(1, 2))
    model = toy_model()
    batch = next(feed)
    for objective in (NextToken(), Distill(0.5)):
        model.zero_grad()
        loss = objective.loss(model, batch)
        loss.total.backward()
        assert float(loss.total.detach()) == float(loss.weight) == 0
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_feeds_differ_by_seed_and_epochs_by_order(source: ShardSource) -> None:
    assert not same(next(feed_of(source, 0)), next(feed_of(source, 1)))
    feed = feed_of(source)
    first = next(feed)
    feed.restore({"epoch": 1, "batch": 0})
    assert not same(first, next(feed))


def test_an_epoch_shows_each_token_as_often_as_its_repeat(tmp_path: Path) -> None:
    shards = toy_shards(tmp_path, documents=24, longest=80)
    source = ShardSource(shards, row_length=16, repeats={"en": 2.0, "code": 0.0})
    drawn = source.draw(np.random.default_rng(0))
    targets = sum(int(source.lengths[i]) - 1 for i in drawn)
    wanted = sum(len(shards.document(i)) - 1 for i in range(24) if shards.key(i)["kind"] == "story")
    assert targets == 2 * wanted
    half = ShardSource(shards, row_length=16, repeats={"en": 0.5, "de": 0.5})
    counts = [len(half.draw(np.random.default_rng(seed))) for seed in range(200)]
    assert np.mean(counts) == pytest.approx(len(half.lengths) / 2, rel=0.03)


def test_short_documents_go_into_short_rows_and_each_is_shown_once() -> None:
    rng = np.random.default_rng(0)
    lengths = [int(n) for n in rng.integers(20, 200, 300)] + [300] * 20 + [900] * 10
    examples = [Example(np.full(n, i, np.int64)) for i, n in enumerate(lengths)]
    feed = PackedFeed(ExampleSource(examples, row_length=1024), rows=4, row_length=1024, pad_id=0, seed=0)
    seen: dict[int, int] = {}
    row_lengths = []
    for _ in range(feed.batches_per_epoch):
        batch = next(feed)
        row_lengths.append(batch.tokens.shape[1])
        assert batch.tokens.numel() <= 4 * 1024
        carried = batch.targets[batch.weights > 0]
        for document, count in zip(*np.unique(carried.numpy(), return_counts=True), strict=True):
            seen[int(document)] = seen.get(int(document), 0) + int(count)
    assert {256, 1024} <= set(row_lengths)
    assert all(count == lengths[document] - 1 for document, count in seen.items())
    # at most the last batch, when it is less than half full, waits for the next epoch
    assert sum(seen.values()) > sum(lengths) - len(lengths) - 2 * 1024


@given(st.lists(st.integers(0, 70), min_size=1, max_size=12), st.integers(1, 30))
@settings(deadline=None, max_examples=40)
def test_cut_documents_predict_every_token_but_their_first_once(lengths: list[int], row_length: int) -> None:
    import tempfile

    from herd.tokenizer.shard_writer import write_shards

    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), [(list(range(n)), ("en", "x")) for n in lengths], vocab_size=100)
        source = ShardSource(shards, row_length=row_length)
        predicted = [
            int(start) + i for start, n in zip(source.starts, source.lengths, strict=True) for i in range(1, n)
        ]
        offsets = shards.offsets
        wanted = [i for d in range(len(lengths)) for i in range(int(offsets[d]) + 1, int(offsets[d + 1]))]
        assert sorted(predicted) == wanted
        assert (source.lengths <= row_length + 1).all()


def test_examples_longer_than_a_row_lose_their_tail() -> None:
    source = ExampleSource(toy_examples([5, 40]), row_length=16)
    assert source.lengths.tolist() == [5, 17]
    assert len(source.example(1).ids) == 17
    assert source.example(1).weights is not None
    assert len(source.example(1).weights) == 17  # type: ignore[arg-type]


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    shards = toy_shards(tmp_path, documents=4, longest=8)
    with pytest.raises(DataError, match="there is no document to train on"):
        feed_of(ShardSource(shards, row_length=24, repeats={"en": 0.0, "de": 0.0}))


def test_epochs_that_draw_nothing_are_passed_over(tmp_path: Path) -> None:
    shards = toy_shards(tmp_path, documents=2, longest=8)
    feed = PackedFeed(ShardSource(shards, row_length=24), rows=1, row_length=24, pad_id=0, seed=0)
    feed.source = ShardSource(shards, row_length=24, repeats={"en": 0.2, "de": 0.2})
    for _ in range(20):
        assert next(feed).weights.sum() > 0
    assert feed.state()["epoch"] > 20
