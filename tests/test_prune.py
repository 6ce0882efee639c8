"""Pruning: what adds nothing is cut away without a trace, what stays keeps its order, and a recipe can ask for it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TOY as TOY_RECIPE
from torch import Tensor
from toys import TOY, optim, toy_documents, toy_examples, toy_model

from herd.base.errors import ConfigError, DataError
from herd.base.progress import Silent
from herd.base.run import RunFolder
from herd.distill.prune import Importance, choose, measure, prune
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.stages.raising import steps
from herd.stages.recipe import Recipe, load_recipe
from herd.stages.step import Context, Step, execute
from herd.train.batch import Batch, collate
from herd.train.feed import ExampleSource, PackedFeed
from herd.train.loop import fit
from herd.train.objective import NextToken
from herd.train.optim import Optimizer

SIZE = TOY.head_size
PRUNED = ["siblings.small.init=pruned", f"siblings.small.head_dim={SIZE}"]


def toy_batches(*, count: int = 2, seed: int = 0) -> list[Batch]:
    """Return packed batches with several documents a row and padding."""
    examples = toy_examples([30, 9, 25, 14, 40, 5], seed=seed)
    rows = [[examples[0], examples[1]], [examples[2], examples[3]], [examples[4], examples[5]]]
    return [collate(rows, row_length=48, pad_id=0) for _ in range(count)]


def cut_config(**changes: float) -> ModelConfig:
    """Return TOY with other widths or depths and its own head size."""
    return TOY.model_copy(update={"head_dim": SIZE, **changes})


@torch.no_grad()
def logits(model: Transformer, *, seed: int = 3) -> Tensor:
    """Return the scores of a few tokens."""
    tokens = torch.tensor(toy_documents([20], seed=seed))
    return model.logits(model(tokens))


def rising(config: ModelConfig = TOY) -> Importance:
    """Return an importance by which later parts are always better."""
    c = config
    return Importance(
        layers_l=torch.arange(c.n_layers).double(),
        channels_e=torch.arange(c.dim).double(),
        heads_lh=torch.arange(c.n_heads).double().expand(c.n_layers, -1),
        neurons_lf=torch.arange(c.ffn_hidden).double().expand(c.n_layers, -1),
        energy_se=torch.ones(2 * c.n_layers + 1, c.dim).double(),
    )


@pytest.mark.parametrize("tied", [False, True])
def test_pruning_to_the_same_shape_changes_no_bit(tied: bool) -> None:
    flagship = toy_model(TOY.model_copy(update={"tie_embeddings": tied}))
    sibling, cut = prune(flagship, flagship.config, measure(flagship, toy_batches()))
    assert torch.equal(logits(sibling), logits(flagship))
    assert cut.layers == (0, 1)
    assert (sibling.output.weight is sibling.tok_embeddings.weight) is tied


def test_a_tied_flagship_gives_an_untied_sibling_both_matrices() -> None:
    flagship = toy_model(TOY.model_copy(update={"tie_embeddings": True}))
    sibling, _ = prune(flagship, TOY, measure(flagship, toy_batches()))
    assert torch.equal(logits(sibling), logits(flagship))
    assert sibling.output.weight is not sibling.tok_embeddings.weight


IDLE_CHANNELS, IDLE_NEURONS = [0, 3, 5, 17, 30], [1, 2, 11, 40]


@torch.no_grad()
def idle(part: str) -> tuple[Transformer, ModelConfig]:
    """Return a flagship in which some parts add nothing to the stream, and the shape without them."""
    # the norm's epsilon is the one thing that a change of width can't be told of
    model = toy_model(cut_config(n_layers=3, norm_eps=1e-9))
    if part in ("channels", "all"):
        model.tok_embeddings.weight[:, IDLE_CHANNELS] = 0
        for layer in model.layers:
            layer.attention.wo.weight[IDLE_CHANNELS] = 0
            layer.feed_forward.w2.weight[IDLE_CHANNELS] = 0
    if part in ("neurons", "all"):
        for layer in model.layers:
            layer.feed_forward.w2.weight[:, IDLE_NEURONS] = 0
    if part in ("layers", "all"):
        model.layers[1].attention.wo.weight.zero_()
        model.layers[1].feed_forward.w2.weight.zero_()
    # one query head of each group, or a whole group with its keys and values
    for head in {"heads": (1, 2), "groups": (0, 1), "all": (2, 3)}.get(part, ()):
        for layer in model.layers:
            layer.attention.wo.weight[:, head * SIZE : (head + 1) * SIZE] = 0
    smaller = {
        "channels": {"dim": TOY.dim - len(IDLE_CHANNELS)},
        "neurons": {"ffn_hidden": TOY.ffn_hidden - len(IDLE_NEURONS)},
        "layers": {"n_layers": 2},
        "heads": {"n_heads": 2},
        "groups": {"n_heads": 2, "n_kv_heads": 1},
    }
    smaller["all"] = smaller["channels"] | smaller["neurons"] | smaller["layers"] | smaller["groups"]
    return model, cut_config(**({"n_layers": 3, "norm_eps": 1e-9} | smaller[part]))


@pytest.mark.parametrize("part", ["channels", "neurons", "layers", "heads", "groups", "all"])
def test_what_adds_nothing_is_cut_away_without_a_trace(part: str) -> None:
    flagship, config = idle(part)
    sibling, cut = prune(flagship, config, measure(flagship, toy_batches()))
    assert sum(p.numel() for p in sibling.parameters()) == config.parameters() < flagship.config.parameters()
    torch.testing.assert_close(logits(sibling), logits(flagship), rtol=1e-4, atol=1e-4)
    if part in ("channels", "all"):
        assert not set(IDLE_CHANNELS) & set(cut.channels.tolist())
    if part in ("layers", "all"):
        assert cut.layers == (0, 2)


def test_what_stays_keeps_its_order_and_its_weights() -> None:
    whole = cut_config(n_layers=5)
    flagship = toy_model(whole)
    scores = replace(rising(whole), layers_l=torch.tensor([3.0, 0.5, 2.0, 1.0, 4.0]))
    config = cut_config(n_layers=3, n_heads=1, n_kv_heads=1, ffn_hidden=7, dim=20)
    sibling, cut = prune(flagship, config, scores)
    assert cut.layers == (0, 2, 4)
    assert [heads.tolist() for heads in cut.heads] == [[3]] * 3
    assert [heads.tolist() for heads in cut.kv_heads] == [[1]] * 3
    for new, old in enumerate(cut.layers):
        mine, theirs = sibling.layers[new], flagship.layers[old]
        assert torch.equal(mine.attention.wq.weight, theirs.attention.wq.weight[3 * SIZE :, 12:])
        assert torch.equal(mine.attention.wv.weight, theirs.attention.wv.weight[SIZE:, 12:])
        assert torch.equal(mine.attention.wo.weight, theirs.attention.wo.weight[12:, 3 * SIZE :])
        assert torch.equal(mine.feed_forward.w1.weight, theirs.feed_forward.w1.weight[41:, 12:])
        assert torch.equal(mine.feed_forward.w2.weight, theirs.feed_forward.w2.weight[12:, 41:])


def test_a_group_is_chosen_by_the_heads_it_would_keep() -> None:
    scores = torch.tensor([[9.0, 0.0, 5.0, 6.0]]).expand(2, -1)
    importance = replace(rising(), heads_lh=scores)
    one = choose(importance, TOY, cut_config(n_heads=1, n_kv_heads=1))
    two = choose(importance, TOY, cut_config(n_heads=2, n_kv_heads=1))
    assert (one.heads[0].tolist(), two.heads[0].tolist()) == ([0], [2, 3])
    spread = choose(importance, TOY, cut_config(n_heads=2, n_kv_heads=2))
    assert spread.heads[0].tolist() == [0, 3]


def test_padding_is_not_measured_and_no_hook_stays() -> None:
    flagship = toy_model()
    example = toy_examples([20])
    tight, padded = (measure(flagship, [collate([example], row_length=n, pad_id=0)]) for n in (19, 64))
    for name in ("layers_l", "channels_e", "heads_lh", "neurons_lf", "energy_se"):
        torch.testing.assert_close(getattr(padded, name), getattr(tight, name), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tight.energy_se.mean(1), torch.ones(5).double(), rtol=1e-5, atol=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in flagship.modules())
    with pytest.raises(DataError, match="there is none"):
        measure(flagship, [])


def test_a_cut_of_a_trained_model_knows_more_than_a_random_one() -> None:
    torch.manual_seed(0)
    flagship = Transformer(cut_config(dim=48, ffn_hidden=96))
    flagship.initialise(torch.Generator().manual_seed(0))
    source = ExampleSource(toy_examples([40] * 60, share=1.0), row_length=40)
    feed = PackedFeed(source, rows=8, row_length=40, pad_id=0, seed=0)
    steps_taken = 250
    optimizer = Optimizer(flagship.named_parameters(), optim(), steps=steps_taken, dtype=torch.float32)
    fit(flagship, NextToken(), feed, optimizer, steps=steps_taken)
    config = cut_config(dim=40, ffn_hidden=72)
    sibling, _ = prune(flagship, config, measure(flagship, [next(feed) for _ in range(4)]))
    fresh = Transformer(config)
    fresh.initialise(torch.Generator().manual_seed(1))
    batch = next(feed)
    with torch.no_grad():
        losses = [NextToken().loss(m, batch) for m in (flagship, sibling, fresh)]
    whole, cut, random = (float(loss.total / loss.weight) for loss in losses)
    assert whole < cut < 0.7 * random


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 4}, "its heads have size 4 and the flagship's 8; give it `head_dim: 8`"),
        ({"rope_theta": 1e4}, "give it `rope_theta: 500000.0`"),
        ({"dim": 33}, "dim 33 is above the flagship's; give at most 32"),
        ({"n_layers": 3}, "n_layers 3 is above the flagship's; give at most 2"),
        ({"n_heads": 3, "n_kv_heads": 3}, "n_kv_heads 3 is above the flagship's; give at most 2"),
        ({"ffn_hidden": 49}, "ffn_hidden 49 is above the flagship's; give at most 48"),
        ({"n_kv_heads": 1}, "4 query heads share a key/value head, 2 in the flagship; give at most `n_heads: 2`"),
        ({"tie_embeddings": True}, "two matrices; give it `tie_embeddings: false`"),
        ({"vocab_size": 60}, "its vocabulary has 60 ids and the flagship's 61; give both one tokenizer"),
    ],
)
def test_a_sibling_that_is_no_cut_is_refused_with_the_remedy(changes: dict, message: str) -> None:
    flagship = toy_model()
    with pytest.raises(ConfigError) as caught:
        prune(flagship, cut_config(**changes), rising())
    assert message in str(caught.value)


def test_a_recipe_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(TOY_RECIPE), ["siblings.small.init=pruned"])
    assert "siblings.small can't be cut from the flagship (init: pruned)" in str(caught.value)
    assert "`head_dim: 8`" in str(caught.value)


def test_only_the_pruned_sibling_reads_the_flagship_and_its_control_does_not_change() -> None:
    random = load_recipe(str(TOY_RECIPE), [PRUNED[1]])
    pruned = load_recipe(str(TOY_RECIPE), PRUNED)

    def by_key(recipe: Recipe, key: str) -> Step:
        return next(step for step in steps(recipe) if step.key == key)

    assert by_key(pruned, "distil/small").after == ("tokenizer", "anneal", "teacher")
    assert by_key(random, "distil/small").after == ("tokenizer", "teacher")
    assert by_key(random, "distil/small").config(random) != by_key(pruned, "distil/small").config(pruned)
    for key in ("alone/small", "distil/tiny", "alone/tiny"):
        assert by_key(random, key).config(random) == by_key(pruned, key).config(pruned)
        assert by_key(random, key).after == by_key(pruned, key).after


def test_the_stage_starts_from_the_cut_and_says_so(toy_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(toy_run, folder)
    recipe = load_recipe(str(TOY_RECIPE), PRUNED)
    context = Context(recipe, RunFolder(folder), Silent())
    found = {step.key: step for step in steps(recipe)}
    for way in ("distil", "alone"):
        execute(found[f"{way}/small"], context)
    distilled, alone = (context.run.ledger.latest(f"{way}/small") for way in ("distil", "alone"))
    assert distilled is not None
    assert alone is not None
    assert "flagship/base" in distilled.reads
    facts = distilled.facts
    assert (facts["init"], facts["pruned_from"]) == ("pruned", "flagship/base")
    assert len(facts["layers_kept"]) == 1
    assert facts["share_kept"] == {"dim": 0.75, "n_layers": 0.5, "n_heads": 0.5, "n_kv_heads": 0.5, "ffn_hidden": 0.75}
    assert alone.facts["init"] == "random"
    before = RunFolder(toy_run).ledger.latest("distil/small")
    assert before is not None
    assert before.facts["init"] == "random"
    assert facts["loss_first"] < before.facts["loss_first"]
