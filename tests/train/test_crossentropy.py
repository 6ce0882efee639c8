"""The in-place cross-entropy against autograd over the written-out formula, with and without a teacher."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from herd.train import crossentropy
from herd.train.crossentropy import cross_entropy

N, VOCAB = 23, 37


def drawn(spread: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores [n, vocab], targets [n] and weights [n], some of them 0."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(N, VOCAB, generator=generator) * spread
    targets = torch.randint(0, VOCAB, (N,), generator=generator)
    weights = torch.tensor([0.0, 1.0, 0.5, 2.0]).repeat(6)[:N]
    return scores, targets, weights


def teacher_top(k: int, *, spread: float = 1.5) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k likeliest ids and log-probabilities of a drawn teacher, and all its log-probabilities."""
    logprobs = (torch.randn(N, VOCAB, generator=torch.Generator().manual_seed(5)) * spread).log_softmax(-1)
    top = logprobs.topk(k)
    return top.indices, top.values, logprobs


def gradient(value: Tensor, scores: Tensor) -> Tensor:
    """Return d value / d scores."""
    return torch.autograd.grad(value, scores)[0]


@pytest.fixture(params=[4, 23, 512])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Work in pieces of so many rows."""
    monkeypatch.setattr(crossentropy, "_ROWS", request.param)
    return request.param


def test_value_and_gradient_are_pytorchs(piece: int) -> None:
    scores, targets, weights = drawn()
    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    total, divergence = cross_entropy(ours, targets, weights)
    wanted = (F.cross_entropy(theirs, targets, reduction="none") * weights).sum()
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(gradient(3 * total, ours), gradient(3 * wanted, theirs))
    assert divergence == 0
    assert torch.equal(ours, scores), "a leaf is the caller's own and stays as it is"


def test_in_bfloat16_the_value_is_float32_and_the_gradient_is_rounded_once(piece: int) -> None:
    scores, targets, weights = drawn()
    ours = scores.bfloat16().requires_grad_()
    theirs = scores.bfloat16().float().requires_grad_()
    total, _ = cross_entropy(ours, targets, weights)
    wanted = (F.cross_entropy(theirs, targets, reduction="none") * weights).sum()
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(gradient(total, ours), gradient(wanted, theirs).bfloat16())


def test_without_a_gradient_the_scores_stay() -> None:
    scores, targets, weights = drawn()
    before = scores.clone()
    total, _ = cross_entropy(scores, targets, weights)
    torch.testing.assert_close(total, (F.cross_entropy(scores, targets, reduction="none") * weights).sum())
    assert torch.equal(scores, before)


def test_large_scores_stay_finite_and_exact() -> None:
    scores = torch.tensor([[80.0, 0.0, -1e4], [0.0, 80.0, 1e4]]).requires_grad_()
    total, _ = cross_entropy(scores, torch.tensor([1, 2]), torch.ones(2))
    assert total.item() == pytest.approx(80.0)
    torch.testing.assert_close(gradient(total, scores), torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]))


def top_and_tail(scores: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
    """Return KL [n] between distributions known as their values on `ids` and the mass of the rest, written out."""
    own = scores.log_softmax(-1)
    off = torch.ones_like(own, dtype=torch.bool).scatter(1, ids, False)
    tail = own.masked_fill(~off, float("-inf")).logsumexp(1)
    p = logprobs.exp()
    p_tail = (1 - p.sum(1)).clamp_min(1e-12)
    return (p * (logprobs - own.gather(1, ids))).sum(1) + p_tail * (p_tail.log() - tail)


@pytest.mark.parametrize("k", [1, 4, 16, VOCAB - 1])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_teacher_known_by_its_top_tokens(piece: int, k: int, share: float) -> None:
    scores, targets, weights = drawn(1.0)
    ids, logprobs, _ = teacher_top(k)
    ours, theirs = scores.clone().requires_grad_(), scores.double().requires_grad_()
    total, divergence = cross_entropy(ours, targets, weights, teacher=(ids, logprobs), share=share)
    kl = (top_and_tail(theirs, ids, logprobs.double()) * weights).sum()
    nll = (F.cross_entropy(theirs, targets, reduction="none") * weights).sum()
    wanted = (1 - share) * nll + share * kl
    torch.testing.assert_close(divergence, kl.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(total, wanted.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient(total, ours), gradient(wanted, theirs).float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_a_teacher_known_whole_is_the_dense_divergence(piece: int, share: float) -> None:
    scores, targets, weights = drawn(1.0)
    ids, logprobs, dense = teacher_top(VOCAB)
    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    total, divergence = cross_entropy(ours, targets, weights, teacher=(ids, logprobs), share=share)
    kl = F.kl_div(theirs.log_softmax(-1), dense, log_target=True, reduction="none").sum(1)
    nll = F.cross_entropy(theirs, targets, reduction="none")
    wanted = (((1 - share) * nll + share * kl) * weights).sum()
    torch.testing.assert_close(divergence, (kl * weights).sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(total, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient(total, ours), gradient(wanted, theirs), rtol=1e-4, atol=1e-5)


def test_a_student_equal_to_its_teacher_has_no_divergence() -> None:
    ids, logprobs, dense = teacher_top(8)
    scores = dense.clone().requires_grad_()
    _, targets, weights = drawn()
    total, divergence = cross_entropy(scores, targets, weights, teacher=(ids, logprobs), share=1.0)
    assert divergence.item() == pytest.approx(0.0, abs=1e-4)
    torch.testing.assert_close(gradient(total, scores), torch.zeros(N, VOCAB), rtol=0, atol=1e-5)
