"""A model over two ranks answers as over one: the same tokens and log-probabilities, by every way of running it."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from toys import TOY, toy_documents, toy_model

from herd.base.errors import ConfigError
from herd.engine.engine import Engine
from herd.engine.graphs import GraphRunner
from herd.engine.request import Request, Sampling
from herd.engine.runners import follow
from herd.model.source import WeightsSource
from herd.model.transformer import Transformer
from herd.parallel.tensor import load_part, part_config, part_of

CONFIG = TOY.model_copy(update={"vocab_size": 62})
KINDS = ("plain", "tied", "static")  # static: the GPU's runner, uncaptured
OPTIONS = {"max_running": 3, "block_size": 4, "blocks": 12, "prefill_chunk": 9}  # so little that some are preempted


def whole(kind: str) -> Transformer:
    return toy_model(CONFIG.model_copy(update={"tie_embeddings": kind == "tied"}))


def requests() -> list[Request]:
    prompts = [tuple(ids) for ids in toy_documents([5, 30, 1, 17, 30], vocab_size=62, seed=2)]
    plain = [Sampling(max_tokens=9, prompt_logprobs=i % 2 == 1, top_logprobs=2) for i in range(4)]
    samplings = [*plain, Sampling(temperature=0.8, top_p=0.9, seed=3, max_tokens=9)]
    return [Request(prompt, sampling) for prompt, sampling in zip(prompts, samplings, strict=True)]


def answers(engine: Engine) -> list:
    """Return ids, log-probabilities and scores as plain lists."""
    done = engine.generate(requests())
    numbers = [[[t.logprob for t in c.tokens], list(c.prompt_logprobs or ())] for c in done]
    return [[c.ids for c in done], numbers, engine.score([list(r.prompt) for r in requests()])]


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for kind in KINDS:
        model = whole(kind)
        source = WeightsSource(dict(model.named_parameters()), model.config)
        part = load_part(source, rank=rank, size=2, dtype=torch.float32)
        if kind == "static":
            sys.modules["herd.engine.runners"].TorchRunner = GraphRunner
        if rank:
            follow(part)
            continue
        engine = Engine(part, **OPTIONS)
        found[kind] = answers(engine)
        assert engine.stats().preemptions
        engine.close()
    if not rank:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a process that ends the usual way


@pytest.mark.slow
def test_two_ranks_answer_as_one(tmp_path: Path) -> None:
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)
    found = json.loads((tmp_path / "found.json").read_text())
    for kind in KINDS:
        ids, numbers, scores = answers(Engine(whole(kind), **OPTIONS))
        assert found[kind][0] == ids
        for mine, theirs in zip(found[kind][1] + [found[kind][2]], [*numbers, scores], strict=True):
            for one, other in zip(mine, theirs, strict=True):
                assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(("changes", "size", "message"), [
    ({}, 4, "over 4 ranks: n_kv_heads 2, vocab_size 62 can't be divided; 2 ranks can"),
    ({"ffn_hidden": 47}, 2, "over 2 ranks: ffn_hidden 47 can't be divided; 1 ranks can"),
])  # fmt: skip
def test_a_shape_that_cant_be_divided_is_refused(changes: dict, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part_config(CONFIG.model_copy(update=changes), size)


def test_parts_are_the_whole() -> None:
    config = CONFIG.model_copy(update={"head_dim": 12})
    parts = [part_config(config, 2)] * 2
    assert {p.n_heads * p.head_size for p in parts} == {config.n_heads * config.head_size // 2}
    for name, weight in Transformer(config).state_dict().items():
        halves = [part_of(name, weight, rank=rank, size=2) for rank in range(2)]
        if halves[0].shape == weight.shape:
            assert torch.equal(halves[0], weight)
            continue
        dim = int(name.endswith(("wo.weight", "w2.weight")))
        assert torch.equal(torch.cat(halves, dim), weight)
