"""Preference optimisation: hand-worked values, formatting tokens left out, and the direction it pushes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import TOY, byte_tokenizer, optim, toy_documents, toy_model

from herd.align.dialogs import Pair, dialog_examples, preference_pair
from herd.align.preference import PairBatch, PairFeed, Preference, answer_logprobs
from herd.base.errors import DataError
from herd.base.messages import Dialog, Message
from herd.model.transformer import Transformer
from herd.tokenizer.codec import DialogCodec
from herd.train.batch import Example, Part
from herd.train.loop import fit
from herd.train.optim import Optimizer


def toy_pairs(count: int = 10, *, seed: int = 0) -> list[Pair]:
    """Draw pairs with a common prompt, answers of different lengths, and two formatting tokens at each end."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(count):
        prompt = toy_documents([int(rng.integers(2, 8))], seed=seed + i)[0]
        sides = []
        for side in range(2):
            answer = toy_documents([int(rng.integers(3, 9))], seed=1000 + 2 * i + side)[0]
            weights = np.array([0] * len(prompt) + [1] * len(answer), np.float32)
            content = weights.copy()
            content[[len(prompt), -1]] = 0
            sides.append((Example(np.array(prompt + answer), weights), content))
        pairs.append(Pair(sides[0][0], sides[1][0], sides[0][1], sides[1][1]))
    return pairs


def feed_of(pairs: list[Pair], model: Transformer | None = None, *, batch_pairs: int = 4) -> PairFeed:
    """Return a feed, with the reference of `model`."""
    feed = PairFeed(pairs, batch_pairs=batch_pairs, row_length=32, pad_id=0, seed=0)
    if model is not None:
        feed.set_reference(model)
    return feed


class Stated(Transformer):
    """A model that gives the target a stated log-probability wherever it is asked: hidden states carry the place."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__(TOY)
        self.table = table  # [rows, t, vocab] log-probabilities

    def forward(self, tokens_bt: torch.Tensor, **_: object) -> torch.Tensor:
        return self.table

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_a_hand_worked_loss() -> None:
    """Two pairs of three answer tokens over a vocabulary of two; the third token is a terminator."""
    p_target = torch.tensor([[0.5, 0.25, 0.5], [0.8, 0.5, 0.9], [0.25, 0.5, 0.1], [0.5, 0.4, 0.2]])
    table = torch.stack((p_target, 1 - p_target), dim=-1).log()
    zeros = torch.zeros(4, 3, dtype=torch.long)
    weights = torch.ones(4, 3)
    content = torch.tensor([[1.0, 1.0, 0.0]]).expand(4, 3)
    reference = torch.tensor([0.25, 0.5, 0.5, 0.1]).log()
    batch = PairBatch(zeros, zeros, weights, zeros, zeros, content=content, reference=reference)
    loss = Preference(beta=0.5, nll=0.2).loss(Stated(table), batch)
    # content of the four answers: 0.125, 0.4, 0.125, 0.2; against the reference: 1/2, 4/5, 1/4, 2
    margins = [0.5 * math.log((1 / 2) / (1 / 4)), 0.5 * math.log((4 / 5) / 2)]
    preference = sum(math.log(1 + math.exp(-m)) for m in margins)
    nll = -(math.log(0.5 * 0.25 * 0.5) + math.log(0.8 * 0.5 * 0.9)) / 3
    assert loss.total.item() == pytest.approx(preference + 0.2 * nll, rel=1e-6)
    assert loss.weight.item() == 2
    assert loss.metrics["margin"].item() == pytest.approx(sum(margins), rel=1e-5)
    assert loss.metrics["accuracy"].item() == 1
    assert loss.metrics["nll"].item() == pytest.approx(nll, rel=1e-6)


def test_a_model_equal_to_its_reference_has_no_margin() -> None:
    model = toy_model()
    batch = next(feed_of(toy_pairs(), model))
    loss = Preference(nll=0.0).loss(model, batch)
    assert loss.metrics["margin"].item() == pytest.approx(0.0, abs=1e-5)
    assert (loss.total / loss.weight).item() == pytest.approx(math.log(2), rel=1e-5)


def test_references_dont_depend_on_how_pairs_are_batched() -> None:
    pairs, model = toy_pairs(), toy_model()
    for batch_pairs in (1, 3, 10):
        feed = feed_of(pairs, model, batch_pairs=batch_pairs)
        batch = next(feed)
        with torch.no_grad():
            wanted = (answer_logprobs(model, batch) * batch.content).sum(1)
        torch.testing.assert_close(batch.reference, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("of", [2, 3, 8])
def test_parts_of_a_batch_of_pairs_have_the_whole_batchs_loss(of: int) -> None:
    """Chosen and rejected stay together; a part that pairs don't reach is empty and counts nothing."""
    pairs, model, reference = toy_pairs(), toy_model(seed=3), toy_model()
    feeds = [
        PairFeed(pairs, batch_pairs=4, row_length=32, pad_id=0, seed=0, part=Part(i, n))
        for n in (1, of)
        for i in range(n)
    ]
    for feed in feeds:
        feed.set_reference(reference)
    for _ in range(5):
        whole, *pieces = (next(feed) for feed in feeds)
        assert len({piece.tokens.shape for piece in pieces}) == 1
        losses = [Preference().loss(model, batch) for batch in (whole, *pieces)]
        for figure in ("total", "weight"):
            wanted, *found = (float(getattr(loss, figure).detach()) for loss in losses)
            assert sum(found) == pytest.approx(wanted, rel=1e-5)
        for name, wanted in losses[0].metrics.items():
            found = [float(loss.metrics[name].detach()) for loss in losses[1:]]
            assert sum(found) == pytest.approx(float(wanted.detach()), abs=1e-4)


def test_formatting_tokens_dont_enter_the_preference() -> None:
    """Their log-probability may be anything: the preference and its gradient stay, the next-token term sees them."""
    pairs, model = toy_pairs(), toy_model(seed=3)
    batch = next(feed_of(pairs, toy_model()))
    assert batch.content is not None
    silent = replace(batch, weights=batch.weights * batch.content)
    found = []
    for each in (batch, silent):
        model.zero_grad()
        loss = Preference(nll=0.0).loss(model, each)
        loss.total.backward()
        found.append((loss.total.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0][0], found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with_terminators, without = (Preference().loss(model, each).metrics["nll"].item() for each in (batch, silent))
    assert abs(with_terminators - without) > 1e-3


def test_a_step_raises_the_chosen_above_the_rejected() -> None:
    pairs, model = toy_pairs(), toy_model(std=0.05)
    feed = feed_of(pairs, model, batch_pairs=10)
    batch = next(feed)
    assert batch.content is not None
    with torch.no_grad():
        before = (answer_logprobs(model, batch) * batch.content).sum(1)
    optimizer = Optimizer(model.named_parameters(), optim(learning_rate=3e-3, warmup_steps=0), steps=30)
    lines = []
    fit(model, Preference(nll=0.0), feed, optimizer, steps=30, hooks=[lambda state: lines.append(state.figures)])
    with torch.no_grad():
        after = (answer_logprobs(model, batch) * batch.content).sum(1)
    rose = after - before
    assert (rose[:10] > rose[10:]).all()
    assert lines[-1]["accuracy"] == 1.0
    assert lines[-1]["margin"] > lines[1]["margin"] > 0


def test_the_next_token_term_raises_the_chosen_itself() -> None:
    pairs = toy_pairs()
    model = toy_model(std=0.05)
    feed = feed_of(pairs, model, batch_pairs=10)
    optimizer = Optimizer(model.named_parameters(), optim(learning_rate=3e-3, warmup_steps=0), steps=20)
    lines = []
    fit(model, Preference(beta=0.0), feed, optimizer, steps=20, hooks=[lambda state: lines.append(state.figures)])
    assert lines[-1]["nll"] < 0.9 * lines[0]["nll"]
    assert lines[-1]["preference"] == pytest.approx(math.log(2))


@pytest.mark.parametrize("taken", [0, 1, 2, 7])
def test_a_feed_goes_on_with_the_very_next_batch(taken: int) -> None:
    pairs, model = toy_pairs(), toy_model()
    feed, again = feed_of(pairs, model), feed_of(pairs, model)
    for _ in range(taken):
        next(feed)
    again.restore(feed.state())
    for _ in range(6):
        a, b = next(feed), next(again)
        for name, value in vars(a).items():
            other = getattr(b, name)
            assert value is other is None or torch.equal(value, other), name
    assert feed.state()["epoch"] >= 3


def test_an_epoch_shows_no_pair_twice() -> None:
    feed = feed_of(toy_pairs(8))
    rows = [tuple(map(tuple, next(feed).tokens.tolist())) for _ in range(2)]
    prompts = [row[:4] for batch in rows for row in batch[:4]]
    assert len(set(prompts)) == 8
    assert feed.state() == {"epoch": 1, "at": 0}


def test_pairs_longer_than_a_row_are_left_out_and_none_left_is_said() -> None:
    pairs = toy_pairs()
    longest = [max(len(p.chosen.ids), len(p.rejected.ids)) for p in pairs]
    feed = PairFeed(pairs, batch_pairs=4, row_length=max(longest) - 2, pad_id=0, seed=0)
    assert len(feed) == sum(n <= max(longest) - 1 for n in longest) < len(pairs)
    with pytest.raises(DataError, match="none of 10 preference pairs fits a row of 3 tokens"):
        PairFeed(pairs, batch_pairs=4, row_length=3, pad_id=0, seed=0)


def test_dialogs_become_examples_that_teach_only_the_assistant() -> None:
    tokenizer = byte_tokenizer()
    codec = DialogCodec(tokenizer)
    dialog = Dialog(
        (Message("user", "Hi"), Message("assistant", "Yo"), Message("user", "?"), Message("assistant", "!"))
    )
    silent = Dialog((Message("user", "Hi"), Message("assistant", "Yo", weight=0.0)))
    (example,) = dialog_examples(codec, [dialog, silent])
    taught = [int(i) for i, w in zip(example.ids, example.weights, strict=True) if w]  # type: ignore[arg-type]
    eot = tokenizer.special_ids["<|eot_id|>"]
    assert taught == [*b"Yo", eot, *b"!", eot]


def test_a_pair_is_the_answer_alone_and_its_content_without_the_terminator() -> None:
    tokenizer = byte_tokenizer()
    prompt = (Message("user", "a?"), Message("assistant", "b"), Message("user", "c?"))
    pair = preference_pair(DialogCodec(tokenizer), prompt, "good", "bad")
    eot = tokenizer.special_ids["<|eot_id|>"]
    for example, content, answer in (
        (pair.chosen, pair.chosen_content, b"good"),
        (pair.rejected, pair.rejected_content, b"bad"),
    ):
        assert example.weights is not None
        assert example.ids[example.weights > 0].tolist() == [*answer, eot]
        assert example.ids[content > 0].tolist() == [*answer]
    shared = len(pair.chosen.ids) - 5
    assert pair.chosen.ids[:shared].tolist() == pair.rejected.ids[:shared].tolist()
