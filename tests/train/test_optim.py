"""AdamW, its schedule, float32 masters and the averaged weights, against hand-worked values and PyTorch's own."""

import math

import pytest
import torch
from toys import optim, toy_model

from herd.train.config import OptimConfig, TrainConfig
from herd.train.optim import Optimizer, learning_rate


def test_the_schedule_at_hand_worked_steps() -> None:
    cosine = OptimConfig(learning_rate=1.0, warmup_steps=4, final_share=0.2)
    assert [learning_rate(cosine, step, 104) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(cosine, 54, 104) == pytest.approx(0.6)  # half-way: the mean of 1 and 0.2
    assert learning_rate(cosine, 29, 104) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5)))
    assert learning_rate(cosine, 104, 104) == pytest.approx(0.2)
    linear = cosine.model_copy(update={"schedule": "linear", "final_share": 0.0})
    assert [learning_rate(linear, step, 104) for step in (4, 29, 54, 103)] == pytest.approx([1.0, 0.75, 0.5, 0.01])
    constant = cosine.model_copy(update={"schedule": "constant"})
    assert [learning_rate(constant, step, 104) for step in (3, 4, 103)] == [1.0, 1.0, 1.0]
    assert learning_rate(cosine.model_copy(update={"warmup_steps": 0}), 0, 1) == 1.0
    # a stage that its gate sends on trains at the last rate
    assert [learning_rate(cosine, 300, 104), learning_rate(linear, 300, 104)] == pytest.approx([0.2, 0.0])


def test_the_rate_falls_after_the_warm_up_and_never_below_its_last_share() -> None:
    config = OptimConfig(learning_rate=3e-4, warmup_steps=10, final_share=0.1)
    rates = [learning_rate(config, step, 200) for step in range(200)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 3e-4
    assert min(rates[10:]) > 3e-5


def test_batches_and_steps_follow_from_tokens() -> None:
    config = TrainConfig(context=128, batch_tokens=4096, tokens=100_000, accumulate=4, optim=optim())
    assert (config.rows, config.steps) == (8, 25)
    with pytest.raises(ValueError, match="batch_tokens 100 is less than one row of context 128"):
        TrainConfig(context=128, batch_tokens=100, tokens=1000, optim=optim())


def gradients(model: torch.nn.Module, seed: int, scale: float) -> None:
    """Give every parameter a drawn gradient."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * scale).to(parameter.dtype)


@pytest.mark.parametrize("scale", [1e-4, 10.0])
def test_updates_are_adamw_on_clipped_means_with_decay_on_matrices_only(scale: float) -> None:
    config, weight = optim(warmup_steps=2, clip_norm=0.5), 7.0
    ours, theirs = toy_model(), toy_model()
    optimizer = Optimizer(ours.named_parameters(), config, steps=6)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() == 2], "weight_decay": config.weight_decay},
        {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), foreach=False)
    for step in range(6):
        gradients(ours, step, scale * weight)
        gradients(theirs, step, scale)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        for group in reference.param_groups:
            group["lr"] = learning_rate(config, step, 6)
        reference.step()
        figures = optimizer.step(step, weight)
        assert figures["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
        assert all(p.grad is None for p in ours.parameters())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_masters_keep_what_bfloat16_would_lose() -> None:
    model = toy_model()
    optimizer = Optimizer(
        model.named_parameters(),
        optim(learning_rate=1e-5, weight_decay=0.0, warmup_steps=0),
        steps=50,
        dtype=torch.bfloat16,
    )
    start = {name: master.detach().clone() for name, master in optimizer.masters.items()}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {m.dtype for m in optimizer.masters.values()} == {torch.float32}
    for step in range(20):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(step, 1.0)
    for name, parameter in model.named_parameters():
        master = optimizer.masters[name]
        assert torch.equal(parameter, master.bfloat16())
        moved = start[name] - master
        # twenty steps of up to 1e-5, each far below bfloat16's spacing of 0.008 at 1
        assert moved.min() > 1e-4, name
    assert {w.dtype for w in optimizer.weights().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("steps", "every", "share", "taken"),
    [(10, 2, 0.5, [6, 8, 10]), (10, 3, 0.5, [7, 10]), (7, 1, 1.0, list(range(1, 8))), (5, 100, 0.5, [5])],
)
def test_the_average_is_the_mean_over_stated_steps(steps: int, every: int, share: float, taken: list[int]) -> None:
    model = toy_model()
    optimizer = Optimizer(model.named_parameters(), optim(average_every=every, average_share=share), steps=steps)
    seen: dict[int, list[torch.Tensor]] = {}
    for step in range(steps):
        gradients(model, step, 1.0)
        optimizer.step(step, 1.0)
        seen[step + 1] = [p.detach().clone() for p in model.parameters()]
    for i, average in enumerate(optimizer.weights().values()):
        torch.testing.assert_close(average, torch.stack([seen[s][i] for s in taken]).mean(0), rtol=1e-5, atol=1e-7)


def test_without_averaging_the_weights_are_the_last() -> None:
    model = toy_model()
    optimizer = Optimizer(model.named_parameters(), optim(), steps=2)
    gradients(model, 0, 1.0)
    optimizer.step(0, 1.0)
    assert all(torch.equal(w, p) for w, p in zip(optimizer.weights().values(), model.parameters(), strict=True))
