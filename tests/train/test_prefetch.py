"""A feed prepared ahead is that feed: same batches, state of the next one to be taken, errors where they belong."""

import threading
from pathlib import Path

import pytest
import torch
from toys import toy_shards

from herd.base.errors import DataError
from herd.train.batch import Batch
from herd.train.feed import PackedFeed, ShardSource
from herd.train.prefetch import Prefetched


class Failing(PackedFeed):
    """A feed whose batch number `at` can't be read."""

    at = 3

    def __next__(self) -> Batch:
        if self._batch == self.at:
            raise DataError("tokens-00007.bin is missing")
        return super().__next__()


def feed_of(folder: Path, kind: type[PackedFeed] = PackedFeed) -> PackedFeed:
    """Return a feed of three rows of 24."""
    return kind(ShardSource(toy_shards(folder), row_length=24), rows=3, row_length=24, pad_id=0, seed=0)


@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_and_states_are_those_of_the_feed(tmp_path: Path, ahead: int) -> None:
    plain = feed_of(tmp_path)
    with Prefetched(feed_of(tmp_path), ahead=ahead) as feed:
        for _ in range(3 * plain.batches_per_epoch):
            assert feed.state() == plain.state()
            assert torch.equal(next(feed).targets, next(plain).targets)
        assert feed.state() == plain.state()
        assert feed.waited > 0
        plain.restore({"epoch": 1, "batch": 2})
        feed.restore({"epoch": 1, "batch": 2})
        assert feed.state() == plain.state()
        assert torch.equal(next(feed).targets, next(plain).targets)


def test_what_was_prepared_is_not_skipped_after_closing(tmp_path: Path) -> None:
    plain, feed = feed_of(tmp_path), Prefetched(feed_of(tmp_path))
    for _ in range(4):
        with feed:
            assert torch.equal(next(feed).targets, next(plain).targets)
        assert not [thread for thread in threading.enumerate() if thread.name == "feed"]
        assert feed.facts() == plain.facts()
    assert feed.feed.state() == plain.state()


def test_an_error_comes_where_its_batch_would_have(tmp_path: Path) -> None:
    with Prefetched(feed_of(tmp_path, Failing)) as feed:
        for _ in range(3):
            next(feed)
        for _ in range(2):  # who asks again is told again
            with pytest.raises(DataError, match="tokens-00007"):
                next(feed)
        assert feed.state() == {"epoch": 0, "batch": 3}


def test_closing_passes_an_error_on_as_it_is(tmp_path: Path) -> None:
    def loop(feed: Prefetched) -> None:
        with feed:
            next(feed)
            raise RuntimeError("the loop's own")

    with pytest.raises(RuntimeError, match="the loop's own"):
        loop(Prefetched(feed_of(tmp_path, Failing)))


def test_nothing_runs_before_the_first_batch_is_asked_for(tmp_path: Path) -> None:
    feed = Prefetched(feed_of(tmp_path))
    assert feed.feed.state() == feed.state() == {"epoch": 0, "batch": 0}
    assert feed.waited == 0
    feed.close()
