"""The head with its loss: each way of working it against scores, loss and autograd written out."""

from functools import partial

import pytest
import torch
from torch import Tensor
from toys import TOY, toy_model

from herd.model.transformer import Transformer
from herd.train import head
from herd.train.crossentropy import cross_entropy
from herd.train.head import head_loss, over_rows

ROWS = 40


class Bare:
    """A model of which only the scores are known, as on the last stage of a pipeline."""

    def __init__(self, model: Transformer) -> None:
        self.config, self.logits = model.config, model.logits


def drawn() -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return hidden states, targets, weights (some 0) and a teacher's likeliest ids."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(ROWS, TOY.dim, generator=generator)
    targets = torch.randint(0, TOY.vocab_size, (ROWS,), generator=generator)
    weights = torch.tensor([0.0, 1.0, 0.5, 2.0]).repeat(ROWS // 4)
    top = torch.randn(ROWS, TOY.vocab_size, generator=generator).log_softmax(-1).topk(5)
    return hidden, targets, weights, (top.indices, top.values)


@pytest.mark.parametrize("most", [1, 7, 39, 10_000])
@pytest.mark.parametrize("bare", [False, True], ids=["at once", "recomputed"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_pieces_give_the_loss_and_gradients_of_all_scores(
    monkeypatch: pytest.MonkeyPatch, most: int, bare: bool, share: float
) -> None:
    monkeypatch.setattr(head, "_MOST_SCORES", most * TOY.vocab_size)
    model = toy_model()
    hidden, targets, weights, teacher = drawn()
    more = {"teacher": teacher, "share": share} if share else {}
    found = []
    for way in (
        partial(head_loss, Bare(model) if bare else model),
        lambda h, *rest, **more: cross_entropy(model.logits(h), *rest, **more),
    ):
        model.zero_grad()
        own = hidden.clone().requires_grad_()
        total, divergence = way(own, targets, weights, **more)
        (3 * total).backward()
        assert own.grad is not None
        assert model.output.weight.grad is not None
        found.append((total.detach(), divergence, own.grad, model.output.weight.grad.clone()))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_gradients_of_many_pieces_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model().bfloat16()
    hidden, targets, weights, _ = drawn()
    exact = toy_model()
    with torch.no_grad():
        exact.output.weight.copy_(model.output.weight)
    wanted, _ = cross_entropy(exact.logits(hidden.bfloat16().float()), targets, weights)
    wanted.backward()
    assert exact.output.weight.grad is not None
    errors = []
    for most in (1, ROWS):
        monkeypatch.setattr(head, "_MOST_SCORES", most * TOY.vocab_size)
        model.zero_grad()
        total, _ = head_loss(model, hidden.bfloat16(), targets, weights)
        total.backward()
        torch.testing.assert_close(total, wanted, rtol=1e-2, atol=0)
        assert model.output.weight.grad is not None
        off = model.output.weight.grad.float() - exact.output.weight.grad
        errors.append(float(off.norm() / exact.output.weight.grad.norm()))
    assert errors[0] < 1.5 * errors[1] < 0.02


def test_what_trains_is_asked_for_alone() -> None:
    """Of a frozen head there is no gradient, of frozen hidden states none of theirs, and nothing is written over."""
    model = toy_model()
    hidden, targets, weights, _ = drawn()
    before = hidden.clone()
    with torch.no_grad():
        value, _ = head_loss(model, hidden, targets, weights)
    assert torch.equal(hidden, before)
    model.output.weight.requires_grad_(False)
    own = hidden.clone().requires_grad_()
    total, _ = head_loss(model, own, targets, weights)
    total.backward()
    assert torch.equal(total.detach(), value)
    assert own.grad is not None
    assert model.output.weight.grad is None
    model.output.weight.requires_grad_(True)
    head_loss(model, hidden, targets, weights)[0].backward()
    assert model.output.weight.grad is not None


@pytest.mark.parametrize("most", [1, 5, 40, 10_000])
def test_any_sum_over_rows_can_be_worked_in_pieces(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(head, "_MOST_SCORES", most * TOY.vocab_size)
    model = toy_model()
    hidden, _, weights, _ = drawn()
    own, whole = (hidden.clone().requires_grad_() for _ in range(2))

    def squares(h: Tensor, w: Tensor) -> Tensor:
        return (model.logits(h).square().sum(1) * w).sum()

    over_rows(squares, (own, weights), width=TOY.vocab_size).backward()
    squares(whole, weights).backward()
    torch.testing.assert_close(own.grad, whole.grad, rtol=1e-5, atol=1e-4)
