"""The official client against a real server: every feature, with an engine whose answers are known."""

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from serving import Running, running
from standins import BAD, ScriptedEngine, WordGuard

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '{"name": "weather", "parameters": {"city": "Zürich, that is the one by the lake"}}'
ARGUMENTS = {"city": "Zürich, that is the one by the lake"}


def script(prompt: str) -> str:
    """Answer the last user message."""
    asked = prompt.split("user<|end_header_id|>")[-1]
    if "call twice" in asked:
        return f"{CALL}; {CALL}<|eom_id|>"
    if "call" in asked:
        return f"{CALL}<|eom_id|>"
    if "harm" in asked:
        return "It is best to talk about it at length before. " * 3 + f"Then {BAD}. " + "And on it goes. " * 200
    return "Grüezi — ที่นี่."


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine(script)


@pytest.fixture(scope="module")
def guard() -> WordGuard:
    return WordGuard()


@pytest.fixture(scope="module")
def server(engine: ScriptedEngine, guard: WordGuard) -> Iterator[Running]:
    with running({"flagship": engine, "flagship/base": ScriptedEngine(lambda prompt: " and on")}, guard=guard) as it:
        yield it


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return server.client()


def ask(text: str, **options: Any) -> dict[str, Any]:
    return {"model": "flagship", "messages": [{"role": "user", "content": text}], **options}


def streamed(client: openai.OpenAI, text: str, **options: Any) -> list[Any]:
    return list(client.chat.completions.create(**ask(text, stream=True, **options)))


def valid(answer: BaseModel) -> None:
    """Hold an answer to the client's own types, which it doesn't check itself."""
    type(answer).model_validate(answer.model_dump(exclude_unset=True), strict=False)


def test_a_chat_answer_is_whole_and_counted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ask("Hello"))
    valid(answer)
    assert answer.choices[0].message.content == "Grüezi — ที่นี่."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "flagship"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len("Grüezi — ที่นี่.".encode()) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_piece_by_piece(client: openai.OpenAI) -> None:
    chunks = streamed(client, "Hello", stream_options={"include_usage": True}, n=2)
    for chunk in chunks:
        valid(chunk)
    whole = client.chat.completions.create(**ask("Hello", n=2))
    for index in (0, 1):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in own) == whole.choices[index].message.content
        assert own[0].delta.role == "assistant"
        assert [choice.finish_reason for choice in own if choice.finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_what_is_asked_reaches_the_engine(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.asked.clear()
    answer = client.chat.completions.create(
        **ask("Hello", temperature=0.5, top_p=0.9, seed=7, n=2, max_completion_tokens=3, stop=["x", "y"]),
        logit_bias={"65": -100},
        presence_penalty=0.5,
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
    )
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    one, two = (request.sampling for request in engine.asked)
    assert (one.seed, two.seed) == (7, 8)
    assert (one.temperature, one.top_p, one.top_k, one.min_p, one.max_tokens) == (0.5, 0.9, 5, 0.1, 3)
    assert (one.repetition_penalty, one.presence_penalty, one.logit_bias) == (1.1, 0.5, {65: -100})
    assert engine.asked[0].stop_strings == ("x", "y")


def test_logprobs_belong_to_the_tokens_shown(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ask("Hello", logprobs=True, top_logprobs=2))
    valid(answer)
    whole = answer.choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    assert bytes(b for row in whole.content for b in row.bytes or []).decode() == "Grüezi — ที่นี่."
    assert [top.token for top in whole.content[0].top_logprobs] == ["A", "B"]
    chunks = streamed(client, "Hello", logprobs=True, top_logprobs=2)
    pieces = [row for c in chunks for choice in c.choices if choice.logprobs for row in choice.logprobs.content or []]
    assert pieces == whole.content


@pytest.mark.parametrize(("text", "count"), [("call", 1), ("call twice", 2)])
def test_tool_calls_come_whole_and_streamed(client: openai.OpenAI, text: str, count: int) -> None:
    answer = client.chat.completions.create(**ask(text, tools=[WEATHER]))
    valid(answer)
    (choice,) = answer.choices
    calls = choice.message.tool_calls
    assert calls is not None
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert [json.loads(call.function.arguments) for call in calls] == [ARGUMENTS] * count
    chunks = streamed(client, text, tools=[WEATHER])
    pieces = [piece for c in chunks for choice in c.choices for piece in choice.delta.tool_calls or []]
    for index in range(count):
        own = [piece for piece in pieces if piece.index == index]
        assert own[0].function.name == "weather"
        assert own[0].id
        assert len(own) > 2
        assert json.loads("".join(piece.function.arguments for piece in own)) == ARGUMENTS
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_without_tools_what_looks_like_a_call_is_text(client: openai.OpenAI) -> None:
    for options in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        answer = client.chat.completions.create(**ask("call", **options))
        assert answer.choices[0].message.content == CALL
        assert answer.choices[0].finish_reason == "stop"


def test_results_of_tools_go_back_through_the_codec(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    first = client.chat.completions.create(**ask("call", tools=[WEATHER])).choices[0].message
    engine.asked.clear()
    assert first.tool_calls is not None
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "call"},
        first.model_dump(),
        {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "rain"},
    ]
    client.chat.completions.create(model="flagship", messages=turns, tools=[WEATHER])  # type: ignore[arg-type]
    said = bytes(b for b in engine.asked[0].prompt if b < 256).decode()
    assert "Be brief." in said
    assert CALL in said
    assert said.endswith("ipython\n\nrainassistant\n\n")


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}},
        {"tools": [WEATHER], "tool_choice": "required"},
        {"tools": [WEATHER | {"function": WEATHER["function"] | {"strict": True}}]},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    ],
)
def test_each_choice_is_held_to_a_grammar_of_its_own(
    client: openai.OpenAI, engine: ScriptedEngine, options: dict[str, Any]
) -> None:
    pytest.importorskip("llguidance")
    engine.asked.clear()
    client.chat.completions.create(**ask("Hello", n=2, **options))
    one, two = (request.constraint for request in engine.asked)
    assert one is not None
    assert two is not None
    assert one is not two


def test_text_completions(client: openai.OpenAI) -> None:
    ids = client.completions.create(model="flagship/base", prompt=[[65, 66], [67]])
    assert [choice.index for choice in ids.choices] == [0, 1]
    answer = client.completions.create(model="flagship/base", prompt=["Once", "Twice"], n=2, logprobs=1)
    valid(answer)
    assert [choice.text for choice in answer.choices] == [" and on"] * 4
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.text_offset == list(range(7))
    echoed = client.completions.create(model="flagship/base", prompt="Once", echo=True)
    assert echoed.choices[0].text == "Once and on"
    chunks = list(client.completions.create(model="flagship/base", prompt="Once", echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Once and on"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_models_say_what_they_are(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["flagship", "flagship/base"]
    facts = listed[1].model_dump()
    assert facts["herd"] == {"guard": "guard", "context": 4000, "base": True}
    assert client.models.retrieve("flagship/base").id == "flagship/base"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no such")
    with pytest.raises(openai.BadRequestError, match="base model"):
        client.chat.completions.create(**ask("Hello") | {"model": "flagship/base"})


def test_a_prompt_that_the_guard_forbids_never_reaches_the_model(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.asked.clear()
    answer = client.chat.completions.create(**ask(f"How to {BAD}?"))
    valid(answer)
    assert answer.choices[0].finish_reason == "content_filter"
    assert answer.choices[0].message.content == "I can't help with that."
    word = {"where": "input", "hazards": ["S1"], "p_unsafe": 0.9}
    assert answer.model_dump()["herd"]["guard"] == word
    chunks = streamed(client, f"How to {BAD}?")
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == "I can't help with that."
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    system = {"role": "system", "content": f"How to {BAD}?"}
    alone = client.chat.completions.create(model="flagship", messages=[system])  # type: ignore[list-item]
    assert alone.choices[0].finish_reason == "content_filter"
    assert engine.asked == []


def test_nothing_is_sent_before_it_is_judged(client: openai.OpenAI, engine: ScriptedEngine, guard: WordGuard) -> None:
    whole = client.chat.completions.create(**ask("harm"))
    assert whole.choices[0].finish_reason == "content_filter"
    assert whole.choices[0].message.content == "I can't help with that."
    guard.judged.clear()
    engine.cancelled.clear()
    chunks = streamed(client, "harm")
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said.startswith("It is best")
    assert BAD not in said
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert chunks[-1].model_dump()["herd"]["guard"]["where"] == "output"
    judged = [conversation[-1].content for conversation in guard.judged[1:]]
    assert said in judged  # each piece sent ends where one judgement did
    assert len(judged) >= 4
    assert all(len(later) - len(former) <= 40 for former, later in pairwise(judged))
    deadline = time.monotonic() + 5
    while not engine.cancelled and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.cancelled  # and the model doesn't write on


def test_the_guard_reads_the_arguments_of_calls(server: Running, guard: WordGuard) -> None:
    server.client().chat.completions.create(**ask("call", tools=[WEATHER]))
    assert "by the lake" in guard.judged[-1][-1].content
