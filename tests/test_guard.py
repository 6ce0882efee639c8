"""The guard's question and answer, its verdicts, and the shield that acts on them."""

import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import byte_tokenizer

from herd.base.messages import Dialog, Message
from herd.engine.engine import Engine
from herd.engine.request import Completion, Request, Token
from herd.guard.classifier import Guard
from herd.guard.hazards import HAZARDS
from herd.guard.prompt import Verdict, answer, question, read_answer
from herd.guard.shield import REFUSAL, Shield
from herd.tokenizer.codec import DialogCodec

CODEC = DialogCodec(byte_tokenizer())


def test_there_are_fourteen_hazards() -> None:
    assert list(HAZARDS) == [f"S{i}" for i in range(1, 15)]
    assert HAZARDS["S9"] == "Indiscriminate Weapons"


@given(st.lists(st.sampled_from(list(HAZARDS)), unique=True))
def test_what_a_guard_says_is_read_back(hazards: list[str]) -> None:
    assert read_answer(answer(Verdict(False, tuple(hazards)))) == (False, tuple(hazards))
    assert read_answer(answer(Verdict(True))) == (True, ())


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("safe", (True, ())),
        ("\n\nsafe\n", (True, ())),
        ("unsafe\nS1,S9", (False, ("S1", "S9"))),
        ("unsafe\n S1 , S9 \n", (False, ("S1", "S9"))),
        ("unsafe", (False, ())),
        ("unsafe\nS1,S77", (False, ("S1",))),
        ("safe\nS1", None),
        ("unsafe S1", None),
        ("unsafe\nviolence", None),
        ("Safe", None),
        ("", None),
        ("I think it is safe", None),
    ],
)
def test_answers_are_read_by_the_grammar(text: str, read: tuple | None) -> None:
    assert read_answer(text) == read


def test_the_question_names_who_is_judged() -> None:
    talk = (Message("system", "Be kind."), Message("user", "How?"), Message("assistant", "So."))
    asked = question(talk[:2])
    assert asked == Dialog((Message("user", "User: How?\n\nUser: safe / unsafe?"),))
    assert question(talk).messages[0].content == "User: How?\n\nAgent: So.\n\nAgent: safe / unsafe?"


class Says:
    """An engine that gives stated answers, its first id with a stated probability."""

    def __init__(self, *answers: tuple[str, float]) -> None:
        self.answers, self.asked = list(answers), []

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.asked += requests
        done = []
        for _ in requests:
            text, p = self.answers.pop(0)
            ids = [*CODEC.tokenizer.encode(text), CODEC.tokenizer.special_ids["<|eot_id|>"]]
            first, *rest = [Token(i, 0.0) for i in ids]
            done.append(Completion((Token(first.id, math.log(p)), *rest), "stop"))
        return done


def judged(*answers: tuple[str, float], threshold: float = 0.5) -> list[Verdict]:
    """Classify one conversation for each stated answer."""
    guard = Guard(cast(Engine, Says(*answers)), CODEC, threshold=threshold)
    return guard.classify([[Message("user", str(i))] for i in range(len(answers))])


def test_verdicts_carry_the_probability_of_unsafe() -> None:
    safe, unsafe = judged(("safe", 0.9), ("unsafe\nS1,S9", 0.8))
    assert (safe.safe, safe.hazards, safe.p_unsafe) == (True, (), pytest.approx(0.1))
    assert (unsafe.safe, unsafe.hazards, unsafe.p_unsafe) == (False, ("S1", "S9"), pytest.approx(0.8))


@pytest.mark.parametrize(
    ("text", "p", "threshold", "safe"),
    [
        ("unsafe\nS1", 0.7, 0.5, False),
        ("unsafe\nS1", 0.7, 0.8, True),
        ("safe", 0.7, 0.5, True),
        ("safe", 0.7, 0.2, False),
        ("safe", 0.4, 0.5, False),
    ],
)
def test_the_threshold_is_on_the_probability_of_unsafe(text: str, p: float, threshold: float, safe: bool) -> None:
    (verdict,) = judged((text, p), threshold=threshold)
    assert verdict.safe == safe
    assert verdict.hazards == (("S1",) if "S1" in text and not safe else ())


@pytest.mark.parametrize("text", ["sure, here you go", "umbrella", "ok", "safe and sound"])
def test_an_answer_outside_the_grammar_counts_as_unsafe(text: str) -> None:
    assert judged((text, 0.99)) == [Verdict(False, (), 1.0)]


def test_the_guard_is_asked_its_question_in_the_dialog_format() -> None:
    engine = Says(("safe", 0.9))
    talk = [Message("user", "Hi")]
    Guard(cast(Engine, engine), CODEC).classify([talk])
    (request,) = engine.asked
    assert list(request.prompt) == CODEC.prompt(question(talk))
    assert request.stop_ids == frozenset(CODEC.tokenizer.stop_ids)


class Words:
    """A guard that finds a conversation unsafe when its last message holds a word."""

    def __init__(self, word: str) -> None:
        self.word, self.asked = word, []

    def classify(self, conversations: Sequence[Sequence[Message]]) -> list[Verdict]:
        self.asked += [[m.content for m in talk] for talk in conversations]
        return [Verdict(self.word not in talk[-1].content, p_unsafe=0.5) for talk in conversations]


def shielded(texts: list[str], replies: dict[str, str], **settings: Any) -> tuple[list, list[str], Words]:
    """Answer prompts through a shield; return what came out, what the model saw and the guard."""
    guard, seen = Words("bomb"), []

    def generate(dialogs: Sequence[Dialog]) -> list[Message]:
        seen.extend(dialog.messages[-1].content for dialog in dialogs)
        return [Message("assistant", replies[dialog.messages[-1].content]) for dialog in dialogs]

    shield = Shield(cast(Guard, guard), generate, **settings)
    return shield.answer([Dialog((Message("user", text),)) for text in texts]), seen, guard


def test_the_shield_judges_what_goes_in_and_what_comes_out() -> None:
    replies = {"hello": "hi", "how?": "build a bomb", "bye": "farewell"}
    out, seen, guard = shielded(["hello", "a bomb?", "how?", "bye"], replies)
    assert [s.message.content for s in out] == ["hi", REFUSAL, REFUSAL, "farewell"]
    assert [s.blocked for s in out] == [False, True, True, False]
    assert [s.on_input.safe for s in out] == [True, False, True, True]
    assert [None if s.on_output is None else s.on_output.safe for s in out] == [True, None, False, True]
    assert seen == ["hello", "how?", "bye"]  # an unsafe prompt never reaches the model
    assert guard.asked[-1] == ["bye", "farewell"]  # answers are judged in their conversation


def test_when_nothing_passes_the_model_isnt_asked() -> None:
    out, seen, _ = shielded(["bomb", "bombs"], {}, refusal="Nein.")
    assert [s.message.content for s in out] == ["Nein.", "Nein."]
    assert seen == []
    assert shielded([], {})[0] == []
