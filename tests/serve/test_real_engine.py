"""The server over the real engine: what it sends is what the engine computes, and nothing is left behind."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import Running, running
from toys import TOY, byte_tokenizer, toy_model

from herd.engine.engine import Engine

TOKENIZER = byte_tokenizer()
MODEL = toy_model(TOY.model_copy(update={"vocab_size": 512, "max_positions": 512}), std=0.3)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(MODEL, blocks=200, max_running=8, prefill_chunk=32, tokenizer=TOKENIZER)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Running]:
    with running({"toy": engine, "toy/base": engine_of_its_own()}, slots=8, max_waiting=500) as it:
        yield it


def engine_of_its_own() -> Engine:
    return Engine(MODEL, blocks=100, max_running=8, tokenizer=TOKENIZER)


def ask(number: int, **options: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": f"Tell me of {number}."}]
    return {"model": "toy", "messages": said, "max_tokens": 24, "seed": number, "temperature": 0.8, **options}


def test_a_seed_gives_the_same_answer_whole_and_streamed(server: Running) -> None:
    client = server.client()
    said = [client.chat.completions.create(**ask(1)).choices[0].message.content for _ in range(2)]
    other = client.chat.completions.create(**ask(1) | {"seed": 2}).choices[0].message.content
    assert said[0] == said[1] != other
    chunks = client.chat.completions.create(**ask(1), stream=True)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == said[0]


def test_logprobs_of_an_echo_are_those_of_the_model(server: Running) -> None:
    answer = server.client().completions.create(
        model="toy/base", prompt="Hello there", echo=True, max_tokens=0, logprobs=2, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    ids = TOKENIZER.encode("Hello there", bos=True)
    (wanted,) = engine_of_its_own().score([ids])
    assert logprobs.token_logprobs[0] is None
    assert logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-5)
    assert answer.choices[0].text == "Hello there"
    assert answer.choices[0].finish_reason == "length"


def test_a_stop_string_is_never_shown(server: Running) -> None:
    client = server.client()
    options = {"model": "toy/base", "prompt": "Hello", "temperature": 0, "max_tokens": 60}
    text = client.completions.create(**options).choices[0].text
    stop = text[10:14]
    want = text[: text.index(stop)]
    whole = client.completions.create(**options, stop=[stop]).choices[0]
    assert (whole.text, whole.finish_reason) == (want, "stop")
    chunks = list(client.completions.create(**options, stop=[stop], stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == want


def test_a_json_answer_keeps_to_its_schema(server: Running) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    answer = server.client().chat.completions.create(**ask(3, response_format=wanted, max_tokens=100))
    read = json.loads(answer.choices[0].message.content or "")
    assert read["a"] in ("x", "y")
    assert isinstance(read["b"], bool)
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    called = server.client().chat.completions.create(
        **ask(3, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    )
    (call,) = called.choices[0].message.tool_calls or ()
    assert set(json.loads(call.function.arguments)) == {"a", "b"}
    assert called.choices[0].finish_reason == "tool_calls"


def test_many_clients_of_whom_some_leave_get_what_each_would_alone(server: Running, engine: Engine) -> None:
    alone = {i: server.client().chat.completions.create(**ask(i)).choices[0].message.content for i in range(8)}
    dice = random.Random(0)

    async def one(client: openai.AsyncOpenAI, number: int, leaves: int | None) -> str | None:
        stream = await client.chat.completions.create(**ask(number), stream=True)
        said = ""
        async for chunk in stream:
            said += "".join(choice.delta.content or "" for choice in chunk.choices)
            if leaves is not None and len(said) >= leaves:
                await stream.close()
                return None
        return said

    async def all_of_them() -> list[tuple[int, str | None]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            plan = [(dice.randrange(8), dice.choice([None, None, 0, 5])) for _ in range(40)]
            said = await asyncio.gather(*(one(client, number, leaves) for number, leaves in plan))
            return [(number, text) for (number, _), text in zip(plan, said, strict=True)]

    for number, text in asyncio.run(all_of_them()):
        assert text is None or text == alone[number]
    assert server.idle()
    for _ in range(100):
        stats = engine.stats()
        if not stats.running + stats.waiting:
            break
        time.sleep(0.02)
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
