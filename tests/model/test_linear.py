"""Linear layers with packed weights against the layers themselves, and who is left to compute in his own way."""

import pytest
import torch
from torch import Tensor, nn

from herd.model import linear
from herd.model.linear import project

SIZES = (24, 8, 40)


def layers(width: int = 32) -> list[nn.Linear]:
    """Draw layers of one input."""
    torch.manual_seed(0)
    return [nn.Linear(width, size, bias=False).bfloat16() for size in SIZES]


def gradients(outs: tuple[Tensor, ...], x: Tensor, parts: list[nn.Linear]) -> list[Tensor]:
    """Return d sum(outs x drawn) / d x and weights."""
    generator = torch.Generator().manual_seed(1)
    above = [torch.randn(out.shape, generator=generator).to(out.dtype) for out in outs]
    return list(torch.autograd.grad(outs, (x, *(part.weight for part in parts)), above))


@pytest.mark.parametrize("dense", [True, False])
def test_packed_layers_are_the_layers(dense: bool) -> None:
    parts = layers()
    x = torch.randn(3, 200, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    x = (x if dense else x.transpose(0, 1).contiguous().transpose(0, 1)).requires_grad_()
    outs = project(x, *parts)
    assert type(outs[0].grad_fn).__name__ == "_PackedBackward"
    exact = [nn.Linear(*part.weight.shape[::-1], bias=False) for part in parts]
    for one, part in zip(exact, parts, strict=True):
        one.weight.data = part.weight.data.float()
    wide = x.detach().float().requires_grad_()
    wanted = tuple(one(wide) for one in exact)
    for ours, theirs in zip(outs, wanted, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-2, atol=1e-2)
    for ours, theirs in zip(gradients(outs, x, parts), gradients(wanted, wide, exact), strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours.float() - theirs).norm() / theirs.norm()) < 5e-3


def test_a_changed_weight_is_seen() -> None:
    (part, *_) = layers()
    x = torch.randn(600, 32).bfloat16().requires_grad_()
    before = project(x, part)[0].detach()
    with torch.no_grad():
        part.weight.mul_(2)
    torch.testing.assert_close(project(x, part)[0].detach(), 2 * before)


def test_layers_that_are_more_than_a_product_are_called() -> None:
    first, second, third = layers()
    x = torch.randn(600, 32).bfloat16()
    called = []
    second.register_forward_hook(lambda *call: called.append(1))
    project(x, first, second)
    assert called == [1]
    third.bias = nn.Parameter(torch.ones(40).bfloat16())
    torch.testing.assert_close(project(x, third)[0], third(x))
    few, whole = x[:8], x.float()
    assert type(project(few, first)[0].grad_fn).__name__ != "_PackedBackward"
    assert type(project(whole, nn.Linear(32, 4, bias=False))[0].grad_fn).__name__ != "_PackedBackward"
    with torch.no_grad():
        assert torch.equal(project(x, first)[0], first(x))


def test_a_frozen_weight_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_FEWEST", 1)
    first, second, _ = layers()
    first.weight.requires_grad_(False)
    x = torch.randn(4, 32).bfloat16().requires_grad_()
    sum(out.sum() for out in project(x, first, second)).backward()
    assert first.weight.grad is None
    assert second.weight.grad is not None
    torch.testing.assert_close(x.grad, (first.weight.sum(0) + second.weight.sum(0)).expand(4, -1), rtol=2e-2, atol=2e-2)
