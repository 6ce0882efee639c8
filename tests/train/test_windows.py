"""Windows, mixtures and ramps: every token as often as asked, shapes at the exact step, and resuming anywhere.

The ids of these corpora are their places, so that a batch tells which tokens of the corpus it shows.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import ConfigError, DataError
from herd.stages.pretrain import shard_feed
from herd.tokenizer.shard_writer import write_shards
from herd.tokenizer.shards import TokenShards
from herd.train.batch import Batch, Part
from herd.train.blocks import Permutation, key_blocks
from herd.train.config import MixturePoint, Phase, TrainConfig
from herd.train.feed import PackedFeed, pieces
from herd.train.mixture import Mixture
from herd.train.prefetch import Prefetched
from herd.train.windows import WindowFeed, windows_of

KEYS = [("en", "story"), ("en", "math"), ("de", "story"), ("th", "code")]


def numbered(folder: Path, *, documents: int, longest: int, file_tokens: int, seed: int = 0) -> TokenShards:
    """Write documents of random lengths and keys, rarer ones later in the list; ids count through the corpus."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, documents)
    keys = rng.choice(len(KEYS), documents, p=[0.5, 0.25, 0.2, 0.05])
    starts = lengths.cumsum() - lengths
    rows = [(range(s, s + n), KEYS[k]) for s, n, k in zip(starts.tolist(), lengths.tolist(), keys, strict=True)]
    return write_shards(folder, rows, vocab_size=1 << 31, file_tokens=file_tokens)


def section(**changes: Any) -> TrainConfig:
    """Return a training section of rows of 32."""
    usual = {"context": 32, "batch_tokens": 128, "tokens": 20_000, "optim": {"learning_rate": 1}}
    return TrainConfig(**usual | changes)


def feed_of(shards: TokenShards, config: TrainConfig, *, seed: int = 0, **options: Any) -> WindowFeed:
    """Return the feed that a section asks for."""
    return WindowFeed(windows_of(shards, config, seed=seed), config.phases, pad_id=0, **options)


def shown(batch: Batch) -> list[int]:
    """Return the places of the tokens that a batch predicts, having checked that each follows its own input."""
    there = batch.weights > 0
    assert torch.equal(batch.targets[there], batch.tokens[there] + 1)
    return batch.targets[there].tolist()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    found = numbered(tmp_path_factory.mktemp("shards"), documents=700, longest=60, file_tokens=3000)
    assert len(found.files) > 5
    return found


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return numbered(tmp_path_factory.mktemp("few"), documents=120, longest=50, file_tokens=900)


@given(st.integers(1, 3000), st.integers(0, 1 << 62))
@settings(deadline=None, max_examples=100)
def test_a_permutation_has_every_number_once(size: int, seed: int) -> None:
    order = Permutation(size, seed)(np.arange(size))
    assert sorted(order.tolist()) == list(range(size))
    assert np.array_equal(Permutation(size, seed)(np.arange(size)[::-1]), order[::-1])


@pytest.mark.parametrize("size", [10, 17])
def test_every_number_comes_to_every_place_alike(size: int) -> None:
    """Over seeds, the table of places against numbers is flat: its chi-square is what chance gives."""
    seeds = 1000
    table = np.zeros((size, size))
    for seed in range(seeds):
        table[np.arange(size), Permutation(size, seed)(np.arange(size))] += 1
    expected = seeds / size
    freedom = (size - 1) ** 2
    chi2 = float(((table - expected) ** 2 / expected).sum())
    assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("block_tokens", [1, 100, 1000, 10**9])
def test_an_epoch_of_blocks_has_every_document_of_a_key_once(shards: TokenShards, block_tokens: int) -> None:
    offsets = shards.offsets
    for key, blocks in key_blocks(shards, block_tokens=block_tokens, seed=3).items():
        mine = [i for i in range(len(shards)) if shards.keys[shards.key_of[i]] == key]
        wanted = sorted((int(offsets[i]), int(offsets[i + 1] - offsets[i])) for i in mine)
        orders = []
        for epoch in range(2):
            tables = [blocks.documents(epoch * blocks.count + n) for n in range(blocks.count)]
            orders.append([pair for table in tables for pair in zip(*(x.tolist() for x in table), strict=True)])
            assert sorted(orders[-1]) == wanted
        assert blocks.count < 4 or orders[0] != orders[1]
        assert blocks.targets == sum(max(0, n - 1) for _, n in wanted)
        assert block_tokens > 1 or blocks.count == len(mine)


@pytest.mark.parametrize("row_length", [7, 32])
def test_windows_show_a_keys_tokens_once_an_epoch(shards: TokenShards, row_length: int) -> None:
    """Whatever the shares, the blocks of a key are drawn in whole epochs; each has each target of the key once."""
    config = section(mixture={"en": 0.3, "code": 0.4, "rest": 0.3}, context=row_length, batch_tokens=4 * row_length)
    windows = windows_of(shards, config, seed=1)
    place, seen = windows.first(), [Counter() for _ in windows.blocks]
    for _ in range(12):
        before = place.blocks
        drawn = windows.draw(place, row_length)
        assert drawn.lengths.max() <= row_length + 1
        for key, blocks in enumerate(windows.blocks):
            mine = drawn.keys == key
            expected = Counter()
            for number in range(before[key], drawn.blocks[key]):
                _, starts, lengths = pieces(*blocks.documents(number), row_length)
                expected.update(zip(starts.tolist(), lengths.tolist(), strict=True))
            found = Counter(zip(drawn.starts[mine].tolist(), drawn.lengths[mine].tolist(), strict=True))
            assert found == expected
            seen[key] += found
        place = type(place)(place.window + 1, 0.0, drawn.blocks, drawn.owed)
    for key, blocks in enumerate(windows.blocks):
        epochs = place.blocks[key] / blocks.count
        assert set(seen[key].values()) <= {int(epochs), -int(-epochs // 1)}
    assert place.blocks[windows.mixture.keys.index(("th", "code"))] > 3 * windows.blocks[3].count


@pytest.mark.parametrize("shorter_rows", [True, False])
@pytest.mark.parametrize("ramp", [False, True])
def test_no_token_is_lost_or_doubled(shards: TokenShards, *, ramp: bool, shorter_rows: bool) -> None:
    """What was shown and what is left in the feed's hands is what its windows drew, over phases and windows."""
    phases = [{"until": 3000, "context": 16, "batch_tokens": 96}, {"until": 7000, "context": 512, "batch_tokens": 1024}]
    config = section(context=1024, batch_tokens=3072, tokens=60_000, ramp=phases if ramp else (), window_tokens=20_000)
    feed = feed_of(shards, config, shorter_rows=shorter_rows)
    drawn, given, window = Counter(), Counter(), -1
    for _ in range(sum(phase.steps for phase in config.phases) + 30):
        batch = next(feed)
        given.update(shown(batch))
        while window < feed._at.place.window:  # count each window as it comes
            assert feed._at.place.window == window + 1
            window, d = window + 1, feed._at.drawn
            for start, length in zip(d.starts.tolist(), d.lengths.tolist(), strict=True):
                drawn.update(range(start + 1, start + length))
    left = Counter()
    for plan in (*feed._waiting, feed._at):
        for row in plan.rows[plan.row :]:
            for i in row:
                start, length = int(plan.drawn.starts[i]), int(plan.drawn.lengths[i])
                left.update(range(start + 1, start + length))
    assert window > 2
    assert given + left == drawn
    assert feed.state()["shown"] == [
        sum(n for place, n in given.items() if key_at(shards, place) == blocks.key) for blocks in feed.windows.blocks
    ]


def key_at(shards: TokenShards, place: int) -> tuple[str, ...]:
    """Return the key of the document that a place is in."""
    return shards.keys[int(shards.key_of[np.searchsorted(shards.offsets, place, side="right") - 1])]


def test_batches_are_full_and_rows_nearly_so(shards: TokenShards) -> None:
    feed = feed_of(shards, section(context=128, batch_tokens=512))
    weights = []
    for _ in range(200):
        batch = next(feed)
        assert batch.tokens.shape == (4, 128)
        weights.append(float(batch.weights.mean()))
    assert np.mean(weights) > 0.97


def test_a_ramp_changes_the_shape_at_the_exact_step(shards: TokenShards) -> None:
    """The paper's ramp in small: rows twice as long, then twice as many; the tokens of a step follow."""
    ramp = [{"until": 1000, "context": 16, "batch_tokens": 64}, {"until": 3000, "context": 32, "batch_tokens": 128}]
    config = section(context=32, batch_tokens=256, tokens=10_000, ramp=ramp, accumulate=2)
    assert config.phases == (Phase(16, 2, 16, 2), Phase(16, 2, 32, 2), Phase(28, 4, 32, 2))
    assert config.steps == 60
    feed = feed_of(shards, config)
    shapes = [next(feed).tokens.shape for _ in range(2 * config.steps)]
    assert shapes == [(2, 16)] * 32 + [(2, 32)] * 32 + [(4, 32)] * 56
    assert next(feed).tokens.shape == (4, 32)


def test_a_ramp_may_keep_the_size_of_its_micro_batches(shards: TokenShards) -> None:
    ramp = [{"until": 640, "context": 32, "batch_tokens": 64, "accumulate": 1}]
    config = section(context=32, batch_tokens=256, tokens=2432, ramp=ramp, accumulate=4)
    feed = feed_of(shards, config)
    updates = [[next(feed).tokens.shape for _ in range(config.micro_batches(step))] for step in range(config.steps)]
    assert updates == [[(2, 32)]] * 10 + [[(2, 32)] * 4] * 7


@st.composite
def sections(draw: st.DrawFn) -> TrainConfig:
    """Draw sections with ramps, mixtures, schedules and windows of all sizes."""
    shapes = sorted(draw(st.lists(st.tuples(st.integers(4, 600), st.integers(1, 4)), min_size=1, max_size=3)))
    ends = np.cumsum([c * r * draw(st.integers(1, 12)) for c, r in shapes]).tolist()
    ramp = [{"until": e, "context": c, "batch_tokens": c * r} for e, (c, r) in zip(ends, shapes, strict=True)][:-1]
    mixture: Any = draw(
        st.sampled_from(
            [
                (),
                {"en": 0.5, "rest": 0.5},
                [{"at": 0.2, "shares": {"en": 1}}, {"at": 0.9, "shares": {"en": 0.1, "code": 0.9}}],
            ]
        )
    )
    return section(
        context=shapes[-1][0],
        batch_tokens=shapes[-1][0] * shapes[-1][1],
        tokens=ends[-1],
        ramp=ramp,
        mixture=mixture,
        mixture_between=draw(st.sampled_from(["linear", "steps"])),
        window_tokens=draw(st.sampled_from([50, 2000, 1 << 26])),
    )


@given(sections(), st.integers(0, 40), st.integers(1, 3), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_resuming_at_any_batch_is_never_having_stopped(
    few: TokenShards, config: TrainConfig, taken: int, of: int, prefetch: bool, seed: int
) -> None:
    part = Part(seed % of, of)
    feed = feed_of(few, config, seed=seed, part=part, shorter_rows=bool(seed % 2))
    again = feed_of(few, config, seed=seed, part=part, shorter_rows=bool(seed % 2))
    for _ in range(taken):
        next(feed)
    saved = json.loads(json.dumps(feed.state()))
    resumed = Prefetched(again) if prefetch else again
    resumed.restore(saved)
    for _ in range(12):
        assert resumed.state() == feed.state()
        a, b = next(feed), next(resumed)
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
            assert x is y is None or torch.equal(x, y)
    assert resumed.facts() == feed.facts()
    if prefetch:
        resumed.close()


@given(sections(), st.integers(2, 5))
@settings(deadline=None, max_examples=12)
def test_parts_are_the_whole(few: TokenShards, config: TrainConfig, of: int) -> None:
    whole, *parts = (feed_of(few, config, part=p) for p in (Part(), *(Part(i, of) for i in range(of))))
    for _ in range(15):
        batch, found = next(whole), [next(part) for part in parts]
        laid = torch.stack([part.targets for part in found], 1).flatten(0, 1)
        assert torch.equal(laid[: len(batch.targets)], batch.targets)
        assert not torch.stack([part.weights for part in found], 1).flatten(0, 1)[len(batch.targets) :].any()
        assert all(part.state() == whole.state() for part in parts)


@pytest.mark.parametrize("shares", [{"en": 0.7, "story": 0.3}, {"en/math": 0.6, "rest": 0.4}])
def test_realised_shares_are_those_asked_to_within_a_block(shards: TokenShards, shares: dict[str, float]) -> None:
    windows = windows_of(shards, section(mixture=shares), seed=5)
    place, taken = windows.first(), np.zeros(len(windows.blocks))
    largest = [max(int((b.documents(n)[1] - 1).clip(0).sum()) for n in range(b.count)) for b in windows.blocks]
    for number in range(1, 20):
        drawn = windows.draw(place, 32)
        taken += np.bincount(drawn.keys, drawn.lengths - 1, len(taken))
        asked = windows.mixture.at(0.0) * windows.tokens * number
        assert (abs(taken - asked) <= largest).all()
        place = type(place)(place.window + 1, 0.0, drawn.blocks, drawn.owed)
    feed = feed_of(shards, section(mixture=shares))
    for _ in range(200):
        next(feed)
    facts = feed.facts()
    for blocks, asked in zip(feed.windows.blocks, feed.windows.mixture.at(0.0), strict=True):
        assert facts["shown"]["/".join(blocks.key)] == pytest.approx(float(asked), abs=0.03)
    assert sum(facts["mixture"].values()) == pytest.approx(1, abs=1e-3)
    total = sum(feed.state()["shown"])
    epochs = {name: share * total for name, share in facts["shown"].items()}
    assert facts["epochs"] == {
        name: pytest.approx(epochs[name] / blocks.targets, abs=0.01)
        for name, blocks in zip(epochs, feed.windows.blocks, strict=True)
    }


def test_names_take_what_more_exact_names_leave() -> None:
    targets = {("en", "story"): 30, ("en", "math"): 10, ("de", "story"): 60, ("th", "code"): 100}

    def shares(asked: dict[str, float], repeats: dict[str, float] | None = None) -> list[float]:
        return Mixture(targets, points=[MixturePoint(shares=asked)], repeats=repeats).at(0.3).tolist()

    assert shares({"en": 0.6, "rest": 0.4}) == pytest.approx([0.45, 0.15, 0.15, 0.25])
    assert shares({"en": 0.2, "math": 0.8}) == pytest.approx([0.2, 0.8, 0, 0])
    assert shares({"en/story": 0.5, "story": 0.5}) == pytest.approx([0.5, 0, 0.5, 0])
    assert shares({"en": 0.5, "rest": 0.5}, {"math": 3.0, "th": 0.0}) == pytest.approx([0.25, 0.25, 0.5, 0])
    absent = [MixturePoint(shares={"fr": 0.5, "story": 0.1, "rest": 0.4})]
    spread = [MixturePoint(shares={"story": 0.2, "rest": 0.8})]
    wanted = Mixture(targets, points=spread).at(0).tolist()
    assert Mixture(targets, points=absent, absent="spread").at(0).tolist() == pytest.approx(wanted)
    assert Mixture(targets).at(0).tolist() == pytest.approx([0.15, 0.05, 0.3, 0.5])
    weighed = Mixture(targets, repeats={"en": 2.0, "story": 2.0}).at(1)
    assert weighed.tolist() == pytest.approx([120 / 360, 20 / 360, 120 / 360, 100 / 360])


def test_shares_move_in_a_line_or_in_steps() -> None:
    targets = {("en", "x"): 1, ("de", "y"): 3}
    points = [
        MixturePoint(at=0.2, shares={"en": 1.0}),
        MixturePoint(at=0.6, shares={"en": 0.5, "de": 0.5}),
        MixturePoint(at=1.0, shares={"de": 1.0}),
    ]
    line = Mixture(targets, points=points)
    assert [float(line.at(p)[0]) for p in (0, 0.2, 0.3, 0.6, 0.9, 1.0)] == pytest.approx([1, 1, 0.875, 0.5, 0.125, 0])
    steps = Mixture(targets, points=points, between="steps")
    assert [float(steps.at(p)[0]) for p in (0, 0.2, 0.59, 0.6, 0.99, 1.0)] == [1, 1, 1, 0.5, 0.5, 0]


def test_a_schedule_is_followed_as_the_training_goes_on(shards: TokenShards) -> None:
    """From half-way on, code rises from 5 % to all of it, and what is shown follows, a window behind at most."""
    points = [{"at": 0.5, "shares": {"code": 0.05, "rest": 0.95}}, {"at": 1.0, "shares": {"code": 1.0}}]
    config = section(mixture=points, tokens=200_000)
    feed = feed_of(shards, config)
    per_window = feed.windows.tokens / config.tokens
    code, done = feed.windows.mixture.keys.index(("th", "code")), np.zeros(4)
    found = []
    for step in range(1, config.steps + 1):
        next(feed)
        if step % (config.steps // 20) == 0:
            now = np.array(feed.state()["shown"])
            found.append((now - done)[code] / (now - done).sum())
            done = now
    middles = (np.arange(len(found)) + 0.5) / len(found)
    asked = np.interp(middles, [0.5, 1.0], [0.05, 1.0])
    slope = 0.95 / 0.5
    assert per_window < 0.1
    assert abs(np.array(found) - asked).max() < slope * per_window + 0.02


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"fr": 1.0}, "x: the corpus has no 'fr'; it has de, en, th, story, math, code, rest"),
        ({"en/code": 1.0}, "x: the corpus has no 'en/code'; it has"),
        ({"code": 0.5, "th": 0.5}, "x: nothing is left for 'th' after what other names take"),
        ({"en": 0.5, "de": 0.25, "th": 0.0, "rest": 0.25}, "x: nothing is left for 'rest'"),
    ],
)
def test_a_mixture_that_cant_be_had_is_one_clear_line(
    shards: TokenShards, mixture: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        windows_of(shards, section(mixture=mixture), seed=0, where="x")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_nothing_to_train_on_is_said(shards: TokenShards, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every repeat is 0"):
        windows_of(shards, section(repeats={"en": 0, "de": 0, "th": 0}), seed=0)
    single = write_shards(tmp_path, [([1], ("en", "x"))] * 5, vocab_size=9)
    with pytest.raises(DataError, match="there is no document to train on"):
        windows_of(single, section(), seed=0)


def test_repeats_weigh_keys_as_in_whole_epochs(shards: TokenShards) -> None:
    """Half of a language, twice a kind: tokens are shown in that proportion."""
    feed = feed_of(shards, section(repeats={"de": 0.5, "code": 2.0}))
    for _ in range(600):
        next(feed)
    epochs = feed.facts()["epochs"]
    assert epochs["de/story"] / epochs["en/story"] == pytest.approx(0.5, rel=0.1)
    assert epochs["th/code"] / epochs["en/story"] == pytest.approx(2.0, rel=0.1)
    assert epochs["en/math"] / epochs["en/story"] == pytest.approx(1.0, rel=0.1)


def test_a_torn_table_is_named(tmp_path: Path) -> None:
    shards = numbered(tmp_path, documents=40, longest=20, file_tokens=1 << 20)
    table = tmp_path / "documents-00000.bin"
    numbers = np.frombuffer(table.read_bytes(), np.uint32).copy()
    numbers[1:40] = numbers[1:40][::-1]
    table.write_bytes(numbers.tobytes())
    with pytest.raises(DataError, match="offsets of documents fall in file 0"):
        feed_of(shards, section())


def same_stream(feeds: Sequence[WindowFeed], batches: int) -> bool:
    """Say whether feeds give the same batches."""
    return all(len({tuple(next(f).targets.flatten().tolist()) for f in feeds}) == 1 for _ in range(batches))


def test_seeds_give_streams_of_their_own(shards: TokenShards) -> None:
    assert same_stream([feed_of(shards, section(), seed=4) for _ in range(2)], 20)
    assert not same_stream([feed_of(shards, section(), seed=seed) for seed in (4, 5)], 1)


def test_rare_keys_are_seen_in_their_turn(tmp_path: Path) -> None:
    """Of 200 keys of one document each, a window of a quarter of the corpus shows about a quarter, not none."""
    rows = [(range(9), (f"l{i}", "x")) for i in range(200)]
    windows = windows_of(
        write_shards(tmp_path, rows, vocab_size=9), section(window_tokens=400, context=8, batch_tokens=8), seed=0
    )
    assert windows.tokens == 400
    place = windows.first()
    counts = []
    for _ in range(4):
        drawn = windows.draw(place, 8)
        counts.append(len(drawn.starts))
        place = type(place)(place.window + 1, 0.0, drawn.blocks, drawn.owed)
    assert all(35 < count < 65 for count in counts)
    assert sum(counts) == pytest.approx(200, abs=2)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, PackedFeed),
        ({"repeats": {"en": 2.0}}, PackedFeed),
        ({"window_tokens": 1000}, WindowFeed),
        ({"mixture": {"en": 1.0}}, WindowFeed),
        ({"ramp": [{"until": 1000, "context": 16, "batch_tokens": 64}]}, WindowFeed),
    ],
)
def test_small_corpora_without_wishes_are_shuffled_whole(tmp_path: Path, changes: dict[str, Any], kind: type) -> None:
    numbered(tmp_path / "shards", documents=100, longest=60, file_tokens=900)
    context: Any = SimpleNamespace(
        run=tmp_path, tokenizer=SimpleNamespace(fingerprint="", pad_id=0), recipe=SimpleNamespace(seed=1)
    )
    feed = shard_feed(context, section(**changes), "long-context")
    assert type(feed) is kind
    assert next(feed).weights.sum() > 0
    with pytest.raises(ConfigError, match=r"^long_context\.mixture: the corpus has no 'xx'"):
        shard_feed(context, section(mixture={"xx": 1.0}), "long-context")
    with pytest.raises(DataError, match="tokens, less than one batch of 1000000; give more text"):
        shard_feed(context, section(batch_tokens=1_000_000), "long-context")
