"""vLLM behind the protocol: what goes there and comes back is what herd's own engine takes and gives."""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_vllm import RequestOutputKind, install
from toys import TOY, byte_tokenizer, save_model, toy_documents, toy_model

from herd.base.errors import ConfigError, HerdError, RunError
from herd.base.files import write_jsonl
from herd.base.progress import Silent
from herd.cli.stage import evaluate
from herd.engine.backend import Backend
from herd.engine.engine import Engine
from herd.engine.request import Completion, Request, Sampling
from herd.engine.vllm import VLLMBackend
from herd.runtime.device import Machine
from herd.stages.evaluate import score_elsewhere
from herd.stages.models import ModelFolder, open_vllm
from herd.tokenizer.layout import Layout

TEXT = TOY.model_copy(update={"vocab_size": 512})
CLOSE = {"rtol": 0, "atol": 1e-5}
CPU = Machine(torch.device("cpu"), torch.float32, 1, "a processor")


@pytest.fixture
def pair() -> Iterator[tuple[Engine, VLLMBackend]]:
    """The two over one model, whose ids are bytes."""
    model, tokenizer = toy_model(TEXT), byte_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        install(patch, model)
        yield Engine(model, tokenizer=tokenizer), VLLMBackend(Path("model"), tokenizer=tokenizer)


def prompts(lengths: list[int]) -> list[tuple[int, ...]]:
    """Draw prompts."""
    return [tuple(ids) for ids in toy_documents(lengths, vocab_size=256, seed=3)]


def same(a: Completion, b: Completion) -> None:
    """Assert equal ids, ends and log-probabilities."""
    assert (a.ids, a.finish_reason, a.cut) == (b.ids, b.finish_reason, b.cut)
    assert [[i for i, _ in t.top] for t in a.tokens] == [[i for i, _ in t.top] for t in b.tokens]
    logprobs = [torch.tensor([t.logprob for t in c.tokens] + [v for t in c.tokens for _, v in t.top]) for c in (a, b)]
    torch.testing.assert_close(*logprobs, **CLOSE)
    assert (a.prompt_logprobs is None) == (b.prompt_logprobs is None)
    torch.testing.assert_close(*(torch.tensor(c.prompt_logprobs or ()) for c in (a, b)), **CLOSE)


def test_greedy_answers_are_the_engines_own(pair: tuple[Engine, VLLMBackend]) -> None:
    kinds = [
        Sampling(max_tokens=9),
        Sampling(max_tokens=7, top_logprobs=3, prompt_logprobs=True),
        Sampling(max_tokens=8, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2),
        Sampling(max_tokens=8, logit_bias={65: 30.0}),
        Sampling(max_tokens=400),  # to the end of the context
    ]
    requests = [Request(p, kinds[i % 5], frozenset({4, 9})) for i, p in enumerate(prompts([1, 3, 7, 20, 90, 95]))]
    own, theirs = (backend.generate(requests) for backend in pair)
    for a, b in zip(own, theirs, strict=True):
        same(a, b)
    assert {c.finish_reason for c in own} >= {"length"}


def test_stop_ids_and_stop_strings_end_answers_where_the_engine_ends_them(pair: tuple[Engine, VLLMBackend]) -> None:
    (prompt,) = prompts([12])
    free = pair[0].generate([Request(prompt, Sampling(max_tokens=30))])[0]
    tokenizer = byte_tokenizer()
    text = free.text(tokenizer)
    stops = [Request(prompt, Sampling(max_tokens=30), frozenset({free.ids[n]})) for n in (0, 4, 10)]
    stops += [Request(prompt, Sampling(max_tokens=30), stop_strings=(text[n : n + 2],)) for n in (0, 3, 8)]
    for a, b in zip(pair[0].generate(stops), pair[1].generate(stops), strict=True):
        same(a, b)
        assert a.finish_reason == "stop"
        assert a.text(tokenizer) == b.text(tokenizer)
    assert not pair[1]._engine.has_unfinished_requests()


def test_scores_are_the_engines_own_to_the_last_position(pair: tuple[Engine, VLLMBackend]) -> None:
    rows = prompts([2, 5, 1, 40, TEXT.max_positions])
    done: list[int] = []
    own, theirs = pair[0].score(rows), pair[1].score(rows, on_done=done.append)
    assert [len(row) for row in theirs] == [len(row) - 1 for row in rows]
    for a, b in zip(own, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), **CLOSE)
    assert done == sorted(done)
    assert done[-1] == 4  # a sequence of one id asks nothing


def test_a_stream_gives_the_same_tokens_and_whoever_leaves_it_ends_it(pair: tuple[Engine, VLLMBackend]) -> None:
    backend: Backend = pair[1]
    first, second = (Request(p, Sampling(max_tokens=11)) for p in prompts([5, 9]))
    whole = backend.generate([first, second])
    stream = backend.stream(first)
    begun = [next(stream) for _ in range(2)]
    same(backend.generate([second])[0], whole[1])  # another asks in between, and nothing is lost
    assert (*begun, *stream) == whole[0].tokens
    stream = backend.stream(first)
    next(stream)
    assert pair[1]._engine.has_unfinished_requests()
    stream.close()
    assert not pair[1]._engine.has_unfinished_requests()


def test_a_deadline_ends_an_answer_with_what_there_is(pair: tuple[Engine, VLLMBackend]) -> None:
    (prompt,) = prompts([6])
    late = Request(prompt, Sampling(max_tokens=9), deadline=time.monotonic() - 1)
    (done,) = pair[1].generate([late])
    assert (done.tokens, done.finish_reason) == ((), "deadline")


def test_every_field_of_a_request_reaches_vllm_by_its_name(pair: tuple[Engine, VLLMBackend]) -> None:
    sampling = Sampling(
        temperature=0.7,
        top_p=0.8,
        top_k=11,
        min_p=0.05,
        repetition_penalty=1.1,
        frequency_penalty=0.3,
        presence_penalty=-0.2,
        logit_bias={3: -1e6},
        max_tokens=5,
        seed=-1,
        top_logprobs=4,
        prompt_logprobs=True,
    )
    backend = pair[1]
    backend.generate([Request((1, 2, 3), sampling, frozenset({9, 4}), priority=2)])
    ((params, priority),) = backend._engine.asked.values()
    for name in ("temperature", "top_p", "top_k", "min_p", "max_tokens", "logit_bias"):
        assert getattr(params, name) == getattr(sampling, name)
    for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
        assert getattr(params, name) == getattr(sampling, name)
    assert (params.seed, params.logprobs, params.prompt_logprobs) == ((1 << 63) - 1, 4, 0)
    assert (params.stop_token_ids, params.ignore_eos, params.output_kind) == ([4, 9], True, RequestOutputKind.DELTA)
    assert priority == -2  # vLLM takes lower ones first
    args = backend._engine.args
    assert (args.logprobs_mode, args.generation_config, args.scheduling_policy) == ("raw_logprobs", "vllm", "priority")


def test_a_grammar_goes_to_vllm_as_its_text(pair: tuple[Engine, VLLMBackend]) -> None:
    pytest.importorskip("llguidance")
    from herd.engine.grammar import Grammar, choice_constraint, json_constraint, regex_constraint

    tokenizer = byte_tokenizer()
    made = [
        json_constraint(tokenizer, {"type": "object", "properties": {"a": {"type": "integer"}}}),
        regex_constraint(tokenizer, r"[a-c]/\d+"),
        choice_constraint(tokenizer, ["yes", "no"]),
    ]
    for constraint in made:
        assert isinstance(constraint, Grammar)
        request = Request((1, 2), Sampling(max_tokens=1), constraint=constraint)
        pair[1].generate([request])
        params, _ = list(pair[1]._engine.asked.values())[-1]
        assert params.structured_outputs.grammar == constraint.source
        assert not params.ignore_eos
        # vLLM reads it so: llguidance.grammar_from("grammar", text)
        import llguidance

        assert not llguidance.LLMatcher.validate_grammar(llguidance.grammar_from("grammar", constraint.source), None)
        with pytest.raises(HerdError, match="top_logprobs"):
            pair[1].generate([replace(request, sampling=Sampling(top_logprobs=1))])
    made[2].accept(ord("y"))
    with pytest.raises(HerdError, match="from its beginning"):
        pair[1].generate([Request((1, 2), constraint=made[2])])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((1,), Sampling(temperature=3.0)), "temperature must be in"),
        (Request((1,), Sampling(temperature=0.001)), "0.01"),
        (Request((1,), Sampling(presence_penalty=5.0)), "presence_penalty"),
        (Request(tuple(range(96))), "maximum model length"),
        (Request((1,), stop_strings=("",)), "empty stop string"),
    ],
)
def test_what_vllm_refuses_is_one_line_and_nothing_runs(
    pair: tuple[Engine, VLLMBackend], request_: Request, message: str
) -> None:
    with pytest.raises(HerdError, match=message) as refused:
        pair[1].generate([Request((1, 2)), request_])
    assert "\n" not in str(refused.value)
    assert not pair[1]._engine.has_unfinished_requests()
    assert pair[1]._engine.passes == 0


def test_without_vllm_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(HerdError, match="pip install vllm"):
        VLLMBackend(Path("model"), tokenizer=byte_tokenizer())


def test_a_model_is_scored_by_either_with_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = toy_model(TEXT), byte_tokenizer()
    folder, items = tmp_path / "model", tmp_path / "run"
    folder.mkdir()
    save_model(dict(model.named_parameters()), TEXT, folder, bos_id=tokenizer.bos_id, eos_ids=[tokenizer.eos_id])
    tokenizer.save(folder)
    texts = ["Rot und grün.", "a" * 300, ""]
    rows = [{"id": str(n), "lang": "de", "text": text} for n, text in enumerate(texts)]
    write_jsonl(items / "corpus/heldout.jsonl", rows)
    monkeypatch.setattr("herd.stages.evaluate.set_up", lambda runtime: CPU)
    install(monkeypatch, model)
    figures = []
    for backend in ("herd", "vllm"):
        ledger = score_elsewhere(folder, items, tmp_path / backend, Silent(), chat=False, backend=backend)
        figures.append([record.facts["value"] for record in ledger.records])
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)
    assert figures[0] != []
    (name,) = {record.facts["model"] for record in ledger.records}
    assert name == "model-vllm"


def test_vllm_takes_hugging_face_directories_only(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path, TOY, byte_tokenizer(), Layout())
    with pytest.raises(ConfigError, match="Hugging Face"):
        open_vllm(folder, CPU, slots=4)


def test_options_that_dont_go_together_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--quant and --draft are for herd's own engine"):
        evaluate(str(tmp_path), items=tmp_path, quant="int8", backend="vllm")
