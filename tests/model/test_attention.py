"""One transformer, three ways to run it: packed, apart, and through the cache, all with the same numbers."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import TOY, toy_documents, toy_model

from herd.model import attention, long_rows
from herd.model import cache as cache_module
from herd.model.attention import attend, document_mask
from herd.model.cache import PagedCache, Row, bytes_per_token
from herd.model.norm import RMSNorm
from herd.model.pieces import additive, cut
from herd.model.published import PUBLISHED, published
from herd.model.transformer import Transformer
from herd.model.varlen import Varlen

LENGTHS = [7, 1, 12, 5, 9]
CLOSE = {"rtol": 0, "atol": 1e-5}


def rows_of(lengths: list[int]) -> list[torch.Tensor]:
    """Draw documents as tensors [length]."""
    return [torch.tensor(ids) for ids in toy_documents(lengths, seed=3)]


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 6])
def test_a_packed_row_equals_its_documents_apart(padding: int) -> None:
    model = toy_model()
    rows = rows_of(LENGTHS)
    pad = torch.zeros(padding, dtype=torch.long)
    tokens = torch.cat([*rows, pad]).unsqueeze(0)
    documents = torch.cat([*(torch.full((len(r),), i) for i, r in enumerate(rows)), pad - 1]).unsqueeze(0)
    positions = torch.cat([*(torch.arange(len(r)) for r in rows), pad]).unsqueeze(0)
    packed = model.logits(model(tokens, positions=positions, documents=documents))[0]
    assert packed.isfinite().all()
    start = 0
    for row in rows:
        apart = model.logits(model(row.unsqueeze(0)))[0]
        torch.testing.assert_close(packed[start : start + len(row)], apart, **CLOSE)
        start += len(row)


def test_no_gradient_crosses_documents() -> None:
    model = toy_model()
    rows = rows_of([6, 8])
    documents = torch.tensor([[0] * 6 + [1] * 8])
    hidden = []
    handle = model.tok_embeddings.register_forward_hook(lambda *call: hidden.append(call[2]) or call[2].retain_grad())
    out = model(torch.cat(rows).unsqueeze(0), documents=documents)
    handle.remove()
    out[0, 9].sum().backward()
    gradient = hidden[0].grad[0].abs().sum(1)
    assert gradient[:6].eq(0).all()
    assert gradient[6:10].gt(0).all()
    assert gradient[10:].eq(0).all()


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 9, 23])
@pytest.mark.parametrize("table", [(2, 3, 4), (5, 0, 3)], ids=["neighbours", "scattered"])
def test_prefill_and_decode_equal_the_full_forward(prompt: int, table: tuple[int, ...]) -> None:
    model = toy_model()
    tokens = rows_of([24])[0].unsqueeze(0)
    full = model.logits(model(tokens))
    cache = PagedCache(TOY, blocks=6, block_size=8, dtype=torch.float32)
    out, start = [], 0
    for new in (tokens[:, :prompt], *tokens[:, prompt:].split(1, dim=1)):
        out.append(model.logits(model(new, cache=cache.view([Row(table, start, new.shape[1])]))))
        start += new.shape[1]
    torch.testing.assert_close(torch.cat(out, dim=1), full, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("waste", [0, 1 << 18], ids=["each row alone", "together"])
def test_rows_of_any_size_in_one_pass_equal_the_full_forward(waste: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, pieces of prompts and single tokens side by side, in blocks in no order, beside blocks of others."""
    monkeypatch.setattr(cache_module, "_WASTE", waste)
    model = toy_model()
    rows = rows_of([12, 12, 8])
    cache = PagedCache(TOY, blocks=9, block_size=4, dtype=torch.float32)
    cache.keys.normal_()
    cache.values.normal_()
    others = cache.keys.view(TOY.n_layers, TOY.n_kv_heads, 9, 4, -1)[:, :, 3].clone()
    tables, done = [(8, 1, 6), (2, 5, 7), (4, 0)], [0, 0, 0]
    seen: list[list[torch.Tensor]] = [[], [], []]
    for counts in ([5, 4, 1], [1, 1, 1], [2, 3, 4], [1, 1, 1], [3, 3, 1]):
        view = cache.view([Row(t, d, c) for t, d, c in zip(tables, done, counts, strict=True)])
        new = torch.cat([row[d : d + c] for row, d, c in zip(rows, done, counts, strict=True)])
        scores = model.logits(model(new.unsqueeze(0), cache=view))[0]
        for i, piece in enumerate(scores.split(counts)):
            seen[i].append(piece)
        done = [d + c for d, c in zip(done, counts, strict=True)]
    for row, pieces in zip(rows, seen, strict=True):
        full = model.logits(model(row.unsqueeze(0)))[0]
        torch.testing.assert_close(torch.cat(pieces), full, **CLOSE)
    assert torch.equal(cache.keys.view(TOY.n_layers, TOY.n_kv_heads, 9, 4, -1)[:, :, 3], others)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("length", [33, 64, 150])
def test_pieces_equal_the_fused_kernel(heads: int, kv_heads: int, length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, h, length, 8, generator=generator, requires_grad=True) for h in (heads, kv_heads, kv_heads)
    )
    above = torch.randn(2, heads, length, 8, generator=generator)
    packed = torch.tensor([0] * 10 + [1] * (length - 13) + [-1] * 3)
    interleaved = torch.arange(length) % 3
    mask = document_mask(torch.stack((packed, interleaved)))
    results = []
    for bias in (cut(mask, torch.float32), additive(mask, torch.float32)):
        out = attend(q, k, v, bias)
        results.append((out, *torch.autograd.grad(out, (q, k, v), above)))
    for pieces, kernel in zip(*results, strict=True):
        torch.testing.assert_close(pieces, kernel, **CLOSE)
    causal = cut(torch.ones(length, length, dtype=torch.bool).tril()[None, None].expand(2, -1, -1, -1), torch.float32)
    torch.testing.assert_close(attend(q, k, v, None), attend(q, k, v, causal), **CLOSE)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("length", [5, 33, 150])
def test_long_rows_equal_the_fused_kernel(
    heads: int, kv_heads: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_rows, "_QUERIES", 32)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(3, h, length, 8, generator=generator, requires_grad=True) for h in (heads, kv_heads, kv_heads)
    )
    above = torch.randn(3, heads, length, 8, generator=generator)
    packed = torch.tensor([0] * (length // 3) + [1] * (length - length // 3 - 2) + [-1] * 2)
    for documents in (packed, torch.arange(length) % 3, torch.full((length,), 4)):
        rows = torch.stack((packed, documents, documents))
        results = []
        for bias in (long_rows.spans_of(rows), additive(document_mask(rows), torch.float32)):
            out = attend(q, k, v, bias)
            results.append((out, *torch.autograd.grad(out, (q, k, v), above)))
        for long, kernel in zip(*results, strict=True):
            torch.testing.assert_close(long, kernel, **CLOSE)


def test_a_span_knows_where_its_documents_begin_and_whether_they_are_alone() -> None:
    documents = torch.tensor([[0] * 200 + [1] * 300, [3] * 200 + [7] * 300])
    found = [(s.queries.start, s.keys.start, s.keys.stop, s.alone) for s in long_rows.spans_of(documents).spans]
    assert found == [(0, 0, 128, True), (128, 0, 256, False), (256, 200, 384, True), (384, 200, 500, True)]


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that an operator makes."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [part.numel() for part in tree_leaves(out) if isinstance(part, torch.Tensor)]
        self.most = max(self.most, *sizes, 0)
        return out


def test_nothing_of_a_long_row_grows_with_its_square() -> None:
    """131,072 positions forward and backward, by shapes alone: the largest tensor is twice that of half the row."""
    config = TOY.model_copy(update={"n_layers": 1, "max_positions": 131_072})
    with torch.device("meta"):
        model = Transformer(config)
    most = []
    for length in (65_536, 131_072):
        documents = torch.arange(2).repeat_interleave(length // 2).unsqueeze(0)  # their places are known, though
        with Largest() as largest:
            hidden = model(torch.empty(1, length, dtype=torch.long, device="meta"), documents=documents)
            hidden.sum().backward()
        most.append(largest.most)
    assert most[1] == 2 * most[0]
    assert most[1] < 131_072 * 1024


def test_a_piece_holds_only_the_keys_its_queries_see() -> None:
    documents = torch.tensor([[0] * 100 + [1] * 100, [0] * 70 + [1] * 130])
    found = [
        (piece.queries.start, piece.keys.start, piece.keys.stop)
        for piece in cut(document_mask(documents), torch.float32)
    ]
    assert found == [(0, 0, 64), (64, 0, 128), (128, 70, 192), (192, 70, 200)]


def test_a_bias_begins_with_the_first_keys_that_a_query_may_not_see() -> None:
    causal = document_mask(torch.zeros(1, 256, dtype=torch.long))
    assert [piece.bias_b11ts.shape[-1] for piece in cut(causal, torch.float32)] == [64] * 4
    everyone = torch.ones(1, 1, 100, 30, dtype=torch.bool)  # nothing is hidden
    assert [piece.bias_b11ts.numel() for piece in cut(everyone, torch.float32)] == [0, 0]
    q, kv = torch.randn(1, 2, 100, 8), torch.randn(1, 1, 30, 8)
    together = attend(q, kv, kv, additive(everyone, torch.float32))
    torch.testing.assert_close(attend(q, kv, kv, cut(everyone, torch.float32)), together, **CLOSE)


@pytest.mark.parametrize("rows", [1, 511, 1300])
def test_the_norm_equals_pytorchs(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(24, eps=1e-5)
    norm.weight.data.uniform_(0.5, 1.5, generator=generator)
    x = torch.randn(rows, 24, generator=generator, requires_grad=True)
    above = torch.randn(rows, 24, generator=generator)
    ours, theirs = norm(x), torch.nn.functional.rms_norm(x, (24,), norm.weight, 1e-5)
    assert torch.equal(ours, theirs)
    inputs = (x, norm.weight)
    for mine, reference in zip(
        torch.autograd.grad(ours, inputs, above), torch.autograd.grad(theirs, inputs, above), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


def test_both_paths_have_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, documents = toy_model(), torch.tensor([[0] * 12 + [1] * 9 + [-1] * 3])
    tokens = rows_of([24])[0].unsqueeze(0)
    gradients = []
    for most in (attention._MOST_PLAIN, 0):
        monkeypatch.setattr(attention, "_MOST_PLAIN", most)
        model.zero_grad()
        model.logits(model(tokens, documents=documents))[0, :21].log_softmax(-1)[:, 0].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_later_tokens_change_nothing_before_them() -> None:
    model = toy_model()
    first, second = rows_of([20, 20])
    second[:11] = first[:11]
    outs = [model(row.unsqueeze(0), documents=torch.zeros(1, 20, dtype=torch.long))[0] for row in (first, second)]
    assert torch.equal(outs[0][:11], outs[1][:11])
    assert not torch.allclose(outs[0][11:], outs[1][11:])


def test_fresh_weights_have_the_stated_spread() -> None:
    config = TOY.model_copy(update={"dim": 128, "n_layers": 8, "ffn_hidden": 256})
    model = type(toy_model())(config)
    model.initialise(torch.Generator().manual_seed(0))
    spread = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.dim() == 2}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for name, std in spread.items():
        wanted = shapes[name][1] ** -0.5
        if name.endswith(("wo.weight", "w2.weight")):
            wanted /= 4  # sqrt(2 x 8 layers)
        if name.startswith("tok_embeddings"):
            wanted = 1.0
        assert std == pytest.approx(wanted, rel=0.05), name
    assert all(p.eq(1).all() for p in model.parameters() if p.dim() == 1)


def test_the_bytes_a_token_takes_are_those_of_the_storage() -> None:
    cache = PagedCache(TOY, blocks=5, block_size=4, dtype=torch.bfloat16)
    assert cache.keys.nbytes + cache.values.nbytes == 20 * bytes_per_token(TOY, torch.bfloat16)
    sizes = {"llama3.2-1b": 32, "llama3.2-3b": 112, "llama3.1-8b": 128, "llama3.1-70b": 320, "llama3.1-405b": 504}
    assert {name: bytes_per_token(published(name), torch.bfloat16) / 1024 for name in sizes} == sizes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", PUBLISHED)
def test_bytes_a_token_of_published_shapes_are_those_of_a_whole_context(name: str, dtype: torch.dtype) -> None:
    config = published(name)
    cache = PagedCache(config, blocks=config.max_positions // 16, dtype=dtype, device="meta")
    assert cache.keys.nbytes + cache.values.nbytes == config.max_positions * bytes_per_token(config, dtype)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read the way Linux gives it")
def test_positions_that_nothing_was_written_to_take_no_memory() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    shape = {"dim": 64, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 64}
    config = published("llama3.1-8b").model_copy(update=shape)
    total, step = config.max_positions, 4096
    cache = PagedCache(config, blocks=total // 16, dtype=torch.float32)
    new = torch.ones(1, 1, step, 64)
    table = range(total // 16)
    cache.view([Row(table, 0, step)]).store(0, new, new)
    before = resident()
    for start in range(step, total // 2, step):
        cache.view([Row(table, start, step)]).store(0, new, new)
    grown = resident() - before
    formula = (total // 2 - step) * bytes_per_token(config, torch.float32)
    assert abs(grown - formula) < 6 << 20  # half a context is 32 MiB; pages may be of 2 MiB each


def by_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, edges: torch.Tensor, longest: int) -> torch.Tensor:
    """Attend as a kernel over documents of any lengths does, one after the other."""
    assert edges.dtype == torch.int32
    assert int(edges.diff().max()) <= longest <= 8
    parts = []
    for start, end in pairwise(edges.tolist()):
        rows = (x[start:end].transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        parts.append(attend(*rows, None)[0].transpose(0, 1))
    return torch.cat(parts)


def test_documents_one_after_the_other_equal_the_mask() -> None:
    """What a GPU's kernel is told of packed rows, padding and rows that go on with the same number included."""
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, -1, -1], [2, 2, 2, 2, 2, 2, 2, 2], [2, 0, 1, 1, 1, 1, 3, 3]])
    model, results = toy_model(), []
    tokens = torch.randint(0, TOY.vocab_size, documents.shape, generator=torch.Generator().manual_seed(0))
    for reach in (documents, Varlen(documents, by_document)):
        model.zero_grad()
        hidden = model(tokens, documents=reach)
        hidden.square().sum().backward()
        results.append((hidden.detach(), *(p.grad for p in model.layers.parameters())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
