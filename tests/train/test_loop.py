"""The loop: micro-batches don't change the gradient, the loss falls, and a loss that is no number stops it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from toys import TOY, optim, toy_examples, toy_model

from herd.distill.objective import Distill
from herd.train.batch import Batch, Example, collate
from herd.train.loop import Diverged, State, fit
from herd.train.objective import NextToken, Objective
from herd.train.optim import Optimizer

LENGTHS = [30, 9, 22, 31, 5, 17, 12, 25]


class Listed:
    """A feed that gives the batches of a list over and over."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.at = batches, 0

    def __next__(self) -> Batch:
        self.at += 1
        return self.batches[(self.at - 1) % len(self.batches)]

    def state(self) -> dict[str, Any]:
        return {"at": self.at}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.at = state["at"]


class Caught(Optimizer):
    """An optimizer that keeps the gradients it was given, divided as it would divide them."""

    def step(self, step: int, weight: float) -> dict[str, float]:
        self.mean = {name: p.grad.clone() / weight for name, p in self._parameters.items() if p.grad is not None}
        return super().step(step, weight)


def with_teacher(example: Example, k: int = 5) -> Example:
    """Add a drawn teacher."""
    rng = np.random.default_rng(len(example.ids))
    dense = rng.normal(size=(len(example.ids), TOY.vocab_size))
    logprobs = dense - np.log(np.exp(dense).sum(1, keepdims=True))
    ids = np.argsort(-logprobs, 1)[:, :k]
    top = np.take_along_axis(logprobs, ids, 1).astype(np.float32)
    return Example(example.ids, example.weights, (ids, top))


@pytest.mark.parametrize("objective", [NextToken(), Distill(0.7)], ids=["next token", "distil"])
@pytest.mark.parametrize(("micro", "rows"), [(8, 1), (4, 2), (2, 4)])
def test_micro_batches_of_ragged_masks_give_the_gradient_of_the_whole(
    objective: Objective, micro: int, rows: int
) -> None:
    examples = [with_teacher(e) for e in toy_examples(LENGTHS, share=0.4)]
    assert len({float(e.weights[1:].sum()) for e in examples if e.weights is not None}) > 4
    found = []
    for n, size in ((1, 8), (micro, rows)):
        groups = [examples[i * size : (i + 1) * size] for i in range(n)]
        feed = Listed([collate([[e] for e in group], row_length=32, pad_id=0) for group in groups])
        model = toy_model()
        optimizer = Caught(model.named_parameters(), optim(), steps=3)
        figures = []
        fit(model, objective, feed, optimizer, steps=1, accumulate=n)
        first = optimizer.mean
        fit(
            model,
            objective,
            feed,
            optimizer,
            steps=3,
            state=State(1),
            accumulate=n,
            hooks=[lambda state, figures=figures: figures.append((state.figures["loss"], state.figures["grad_norm"]))],
        )
        found.append((first, np.array(figures)))
    for name, whole in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], whole, rtol=1e-4, atol=1e-6, msg=name)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-3)


def test_each_update_may_have_its_own_number_of_micro_batches() -> None:
    """A ramp of the batch: updates of 1, 2 and 4 micro-batches of one size take the batches in their order."""
    model, objective = toy_model(), NextToken()
    feed = Listed([collate([[e]], row_length=32, pad_id=0) for e in toy_examples(LENGTHS)])
    taken: list[int] = []
    optimizer = Optimizer(model.named_parameters(), optim(), steps=3)
    fit(
        model,
        objective,
        feed,
        optimizer,
        steps=3,
        accumulate=lambda step: 1 << step,
        hooks=[lambda _: taken.append(feed.at)],
    )
    assert taken == [1, 3, 7]


def test_how_documents_are_packed_doesnt_change_the_loss() -> None:
    examples = toy_examples(LENGTHS)
    model = toy_model()
    losses = []
    for rows in ([[e] for e in examples], [examples[:4], examples[4:]], [examples]):
        loss = NextToken().loss(model, collate(rows, row_length=160, pad_id=0))
        losses.append(float(loss.total.detach() / loss.weight))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_the_loss_is_the_weighted_mean_of_each_tokens() -> None:
    examples = toy_examples(LENGTHS)
    model = toy_model()
    loss = NextToken().loss(model, collate([examples[:4], examples[4:]], row_length=96, pad_id=0))
    total, weight = 0.0, 0.0
    with torch.no_grad():
        for example in examples:
            ids = torch.from_numpy(example.ids)
            logprobs = model.logits(model(ids[None, :-1]))[0].log_softmax(-1)
            assert example.weights is not None
            weights = torch.from_numpy(example.weights[1:])
            total -= float((logprobs.gather(1, ids[1:, None])[:, 0] * weights).sum())
            weight += float(weights.sum())
    assert float(loss.weight) == pytest.approx(weight)
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


def test_training_learns_and_counts_what_it_trained_on() -> None:
    batch = collate([[e] for e in toy_examples(LENGTHS)], row_length=32, pad_id=0)
    model = toy_model(std=0.02)
    lines: list[State] = []
    optimizer = Optimizer(model.named_parameters(), optim(), steps=40)
    final = fit(model, NextToken(), Listed([batch]), optimizer, steps=40, hooks=[lines.append])
    assert [state.step for state in lines] == list(range(1, 41))
    assert lines[0].figures["loss"] == pytest.approx(np.log(TOY.vocab_size), rel=0.02)
    assert final.figures["loss"] < 0.5 * lines[0].figures["loss"]
    assert final.tokens == 40 * int((batch.weights != 0).sum())
    assert all(later.seconds > earlier.seconds for earlier, later in pairwise(lines))


def test_a_batch_without_loss_changes_nothing() -> None:
    examples = [Example(e.ids, np.zeros(len(e.ids), np.float32)) for e in toy_examples(LENGTHS[:3])]
    model = toy_model()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = Optimizer(model.named_parameters(), optim(), steps=2)
    feed = Listed([collate([[e] for e in examples], row_length=32, pad_id=0)])
    final = fit(model, NextToken(), feed, optimizer, steps=2)
    assert final.tokens == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_loss_that_is_no_number_stops_the_loop() -> None:
    model = toy_model()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    batch = collate([toy_examples([20])], row_length=32, pad_id=0)
    optimizer = Optimizer(model.named_parameters(), optim(), steps=2)
    with pytest.raises(Diverged, match=r"step 1: the loss is nan; lower optim\.learning_rate"):
        fit(model, NextToken(), Listed([batch]), optimizer, steps=2)
