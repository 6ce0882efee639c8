"""`benchmarks/stress.py` over the real engine, smaller and shorter: ill-behaved clients harm nobody but themselves."""

import pytest
from conftest import ROOT
from serving import running
from toys import TOY, byte_tokenizer, toy_model

from herd.engine.engine import Engine


@pytest.mark.slow
def test_ill_behaved_clients_harm_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import stress

    model = toy_model(TOY.model_copy(update={"vocab_size": 512, "max_positions": 512}), std=0.3)
    # few blocks: requests wait for each other and are preempted
    engine = Engine(model, blocks=60, max_running=8, prefill_chunk=32, tokenizer=byte_tokenizer())
    with running({"toy": engine}, slots=8, max_waiting=16) as server:
        target = stress.find(server.url, None, "any")
        tally = stress.stress(target, clients=32, seconds=8.0)
        assert server.idle()
    assert tally.wrong == []
    assert {"whole", "streamed", "left", "malformed", "half a request", "huge"} <= set(tally.did)
