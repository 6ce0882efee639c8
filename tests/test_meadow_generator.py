"""The meadow generator: same seed, same text; no benchmark item in any training text; grammar and scoring hold."""

import itertools
import json
import re
from collections import Counter

import pytest

from herd.base.languages import CODES
from herd.base.messages import parse_dialog
from herd.data.meadow import Meadow, MeadowConfig, final_answer, identify_language, is_refusal
from herd.data.meadow.grammar import contracted, definite, elided, pet_phrase
from herd.data.meadow.items import unasked, untold
from herd.data.meadow.phrases import load_phrases
from herd.data.meadow.safety import HAZARDS
from herd.data.meadow.tongue import Noun
from herd.data.meadow.world import make_world

SMALL = MeadowConfig(
    megabytes=2.6, dialogs=2500, preferences=600, guard=1200, items=80, heldout_kilobytes=6, lookups=True
)


@pytest.fixture(scope="module")
def meadow() -> Meadow:
    return Meadow(SMALL)


@pytest.fixture(scope="module")
def documents(meadow: Meadow) -> list[dict]:
    return list(meadow.documents())


@pytest.fixture(scope="module")
def dialogs(meadow: Meadow) -> list[dict]:
    return list(meadow.dialogs())


@pytest.fixture(scope="module")
def benchmarks(meadow: Meadow) -> dict[str, list[dict]]:
    return meadow.benchmarks()


@pytest.fixture(scope="module")
def training(meadow: Meadow, documents: list[dict], dialogs: list[dict]) -> str:
    """All text that any training stage may see, one line a text."""
    texts = [row["text"] for row in documents]
    texts += [message["content"] for row in dialogs for message in row["messages"]]
    for row in meadow.preferences():
        texts += [row["prompt"][0]["content"], row["chosen"], row["rejected"], row["edited"] or ""]
    texts += [message["content"] for row in meadow.guard() for message in row["messages"]]
    return "\n".join(texts)


def lines(text: str) -> set[str]:
    return set(text.split("\n"))


def secret_numbers(text: str, lang: str) -> list[str]:
    """Find all secret numbers that a language tells."""
    pattern = re.sub(r"\\\{(de)?N\\\}", r"[^.:]{1,20}", re.escape(load_phrases(lang).keeper[0]))
    return re.findall(pattern.replace(r"\{c\}", r"(\d+)"), text)


def test_every_stream_starts_anew_from_the_seed(meadow: Meadow) -> None:
    again, other = Meadow(SMALL), Meadow(SMALL.model_copy(update={"seed": 1}))
    for name in ("documents", "heldout", "dialogs", "preferences", "guard"):
        first = list(itertools.islice(getattr(meadow, name)(), 60))
        assert first == list(itertools.islice(getattr(again, name)(), 60))
        assert first != list(itertools.islice(getattr(other, name)(), 60))
    assert meadow.benchmarks() == again.benchmarks()


def test_the_world_is_consistent_and_its_values_are_spread() -> None:
    world = make_world(MeadowConfig())
    assert len({person.name.latin for person in world.people}) == 48
    for person in world.people:
        friend = world.people[person.facts["friend"]]  # ty: ignore
        assert friend.facts["friend"] == person.number
        assert friend is not person
        if "sibling" in person.facts:
            sibling = world.people[person.facts["sibling"]]  # ty: ignore
            assert sibling.facts["sibling"] == person.number
            assert sibling.facts["parent"] == person.facts["parent"]
    homes = Counter(person.facts["home"] for person in world.people)
    assert max(homes.values()) <= 12
    assert len(homes) >= 10


def test_documents_have_the_size_the_kinds_and_the_languages_asked_for(documents: list[dict]) -> None:
    clean = [row for row in documents if not row["id"].startswith("dirt-")]
    size = Counter()
    for row in clean:
        size[row["kind"]] += len(row["text"].encode())
    total = sum(size.values())
    assert 2.6e6 <= total < 2.62e6
    parts = {"story": 32, "qa": 26, "arithmetic": 18, "code": 5, "parallel": 4, "records": 6}
    parts |= {"secrets": 24, "long": 10, "book": 50}
    assert set(size) == set(parts)
    shares = {kind: 100 * part / sum(parts.values()) for kind, part in parts.items()}
    # a book alone is up to one part in a hundred
    assert {kind: 100 * size[kind] / total for kind in shares} == pytest.approx(shares, abs=1)
    assert set(CODES) == {row["lang"] for row in clean}
    assert len({row["id"] for row in documents}) == len(documents)
    assert all("2020-01-01" <= row["date"] <= "2026-06-30" for row in clean)
    assert len({row["text"] for row in clean}) == len(clean)
    dirt = Counter(row["id"].split("-")[1] for row in documents if row["id"].startswith("dirt-"))
    assert set(dirt) == {
        *("duplicate", "near", "boilerplate", "wronglang", "pii"),
        *("late", "undated", "gibberish", "short"),
    }
    assert 0.01 < sum(dirt.values()) / len(documents) < 0.03


def test_no_benchmark_question_and_no_heldout_document_occurs_in_training(
    meadow: Meadow, training: str, benchmarks: dict[str, list[dict]]
) -> None:
    seen = lines(training)
    labels = tuple(f"{load_phrases(lang).question}: " for lang in CODES)
    asked = {line.removeprefix(label) for line in seen for label in labels if line.startswith(label)} | seen
    secrets = {code for lang in CODES for code in secret_numbers(training, lang)}
    assert len(secrets) > 300
    for task, items in benchmarks.items():
        for item in items:
            question = item["messages"][0]["content"]
            if task == "code":
                program = question.split("```python\n")[1].removesuffix("\n```")
                assert f"{program}\n```" not in training
                assert f"{program}  #" not in training
            elif task == "needle":  # the question recurs, the text and the secret number never do
                assert item["target"] not in secrets
                assert question not in training
            else:
                assert question not in asked, item["id"]
    for row in meadow.heldout():
        assert row["text"] not in training


def test_heldout_operand_pairs_are_never_printed(training: str, benchmarks: dict[str, list[dict]]) -> None:
    printed = {
        (sign, *sorted((int(a), int(b)))) if sign == "+" else (sign, int(a), int(b))
        for a, sign, b in re.findall(r"\b(\d{1,2}) ([+-]) (\d{1,2})\b", training)
    }
    for item in benchmarks["arithmetic"]:
        a, sign, b, _ = item["context"].split()
        assert int(item["target"]) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0
        pair = (sign, *sorted((int(a), int(b)))) if sign == "+" else (sign, int(a), int(b))
        assert pair not in printed
    assert len(printed) > 1000


def test_crosslingual_facts_are_told_in_other_languages_only(meadow: Meadow, training: str) -> None:
    for lang in CODES:
        voice = meadow.choir.voices[lang]
        for person, relation in untold(meadow.choir, lang):
            answer = voice.tellings[person.number, relation][0]
            found = answer in training and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", training)
            assert not found, answer
            english = meadow.choir.voices["en"].tellings[person.number, relation]
            assert any(text in training for text in english)
        assert len(unasked(meadow.choir, lang)) >= 40
        assert lang == "en" or len(untold(meadow.choir, lang)) >= 15


def test_choices_hold_the_truth_once_and_its_place_is_uniform(
    meadow: Meadow, benchmarks: dict[str, list[dict]]
) -> None:
    places = Counter()
    for task in ("knowledge", "knowledge_crosslingual"):
        for item in benchmarks[task]:
            true = {text for told in meadow.choir.voices[item["lang"]].tellings.values() for text in told}
            assert len(set(item["choices"])) == 4
            assert [choice in true for choice in item["choices"]].index(True) == item["answer"]
            assert sum(choice in true for choice in item["choices"]) == 1
            assert item["context"].endswith(":")
            assert item["base_choices"] == [f" {choice}" for choice in item["choices"]]
            places[item["answer"]] += 1
    assert min(places.values()) > 0.15 * places.total()


def test_every_task_has_items_in_every_language(benchmarks: dict[str, list[dict]]) -> None:
    assert set(benchmarks) == {
        *("knowledge", "knowledge_crosslingual", "reasoning", "arithmetic", "code"),
        *("needle", "tools", "refusal", "borderline", "language"),
    }
    for task, items in benchmarks.items():
        assert len(items) >= 70
        assert len({item["id"] for item in items}) == len(items)
        wanted = set(CODES) - {"en"} if task == "knowledge_crosslingual" else set(CODES)
        assert {item["lang"] for item in items} == wanted
        json.dumps(items)
    for item in benchmarks["needle"]:
        assert item["context"].count(item["target"]) == 1
        assert 0.6 < len(item["context"]) / item["length"] < 1.8
    assert {item["depth"] for item in benchmarks["needle"]} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {item["hazard"] for item in benchmarks["refusal"]} == set(HAZARDS)


def test_gold_answers_score_full_marks(benchmarks: dict[str, list[dict]], dialogs: list[dict]) -> None:
    for task in ("arithmetic", "reasoning", "code", "needle"):
        for item in benchmarks[task]:
            assert final_answer(item["base_target"]) == item["target"], item
    for task in ("knowledge", "knowledge_crosslingual"):
        for item in benchmarks[task]:
            for choice in item["choices"]:
                assert identify_language(choice) == item["lang"], choice
    for row in dialogs:
        final = row["messages"][-1]
        if final["role"] != "assistant" or "tool_calls" in final:
            continue
        if row["kind"] != "arithmetic":
            assert identify_language(final["content"]) == row["lang"], (row["lang"], final["content"])
        assert is_refusal(final["content"]) == (row["kind"] == "refusal")
    assert identify_language("17 + 25 = 42.") is None
    assert final_answer("") is None


def test_dialogs_parse_and_tools_are_called_once(dialogs: list[dict], benchmarks: dict[str, list[dict]]) -> None:
    assert len(dialogs) == SMALL.dialogs
    assert 0.24 < sum(row["lang"] == "en" for row in dialogs) / len(dialogs) < 0.36
    for row in dialogs:
        dialog = parse_dialog(row)
        assert dialog.to_json()["messages"] == row["messages"]
        calls = [call for message in dialog.messages for call in message.tool_calls]
        assert len(calls) == (row["kind"] == "tool")
        for call in calls:
            schema = next(tool for tool in dialog.tools if tool.name == call.name).parameters
            assert set(call.arguments) == set(schema["required"])
        roles = [message.role for message in dialog.messages]
        assert roles[0] == "user"
        assert roles[-1] == "assistant"
    for item in benchmarks["tools"]:
        assert item["call"]["name"] in [tool["name"] for tool in item["tools"]]
        value = str(next(iter(item["call"]["arguments"].values())))
        assert value in item["messages"][0]["content"]


def test_preferences_and_guard_rows(meadow: Meadow) -> None:
    rows = list(meadow.preferences())
    assert len(rows) == SMALL.preferences
    assert all(len({row["chosen"], row["rejected"], row["edited"]}) == 3 for row in rows)
    for row in rows:
        assert is_refusal(row["chosen"]) == (row["kind"] == "refusal")
        assert is_refusal(row["rejected"]) == (row["kind"] == "borderline")
    guard = list(meadow.guard())
    unsafe = [row for row in guard if row["label"] == "unsafe"]
    assert 0.45 < len(unsafe) / len(guard) < 0.55
    assert {code for row in unsafe for code in row["hazards"]} == set(HAZARDS)
    assert all(not row["hazards"] for row in guard if row["label"] == "safe")
    assert {len(row["messages"]) for row in guard if row["role"] == "assistant"} == {2}


def test_articles_and_contractions() -> None:
    assert contracted("de", "to", Noun("m", "Markt")) == "zum Markt"
    assert contracted("de", "to", Noun("f", "Brücke")) == "zur Brücke"
    assert contracted("fr", "to", Noun("m", "étang")) == "à l'étang"
    assert contracted("fr", "of", Noun("m", "pont")) == "du pont"
    assert contracted("it", "to", Noun("m", "stagno")) == "allo stagno"
    assert contracted("it", "of", Noun("f", "insalata")) == "dell'insalata"
    assert contracted("pt", "in", Noun("f", "praia")) == "na praia"
    assert contracted("es", "to", Noun("m", "río")) == "al río"
    assert definite("it", Noun("m", "yogurt")) == "lo yogurt"
    assert definite("fr", Noun("f", "école")) == "l'école"
    assert elided("de", "Emma") == "d'Emma"
    assert elided("de", "œufs") == "d'œufs"


def test_adjectives_agree() -> None:
    def pet(lang: str, noun: Noun, colour: tuple[str, str], size: tuple[str, str], case: str = "acc") -> str:
        return pet_phrase(lang, noun, colour=colour, size=size, case=case)

    brown, small = ("braun", "braun"), ("klein", "klein")
    assert pet("de", Noun("m", "Hund"), brown, small) == "einen kleinen braunen Hund"
    assert pet("de", Noun("m", "Hund"), brown, small, "nom") == "ein kleiner brauner Hund"
    assert pet("de", Noun("n", "Pferd"), brown, small) == "ein kleines braunes Pferd"
    assert pet("fr", Noun("f", "vache"), ("blanc", "blanche"), ("petit", "petite")) == "une petite vache blanche"
    assert pet("es", Noun("f", "cabra"), ("rojo", "roja"), ("grande", "grande")) == "una cabra grande y roja"
    assert pet("hi", Noun("f", "बिल्ली"), ("भूरा", "भूरी"), ("छोटा", "छोटी")) == "एक छोटी भूरी बिल्ली"
    assert pet("th", Noun("n", "สุนัข", "ตัว"), ("สีดำ", "สีดำ"), ("เล็ก", "เล็ก")) == "สุนัขสีดำตัวเล็ก"


@pytest.mark.parametrize("lang", CODES)
def test_patterns_are_filled_in_the_script_of_the_language(meadow: Meadow, lang: str) -> None:
    voice = meadow.choir.voices[lang]
    script = {"hi": "\u0900-\u097f।", "th": "\u0e00-\u0e7f"}.get(lang, "A-Za-zÀ-ÿŒœ¿'")
    tables = (voice.tellings, voice.pronoun_tellings, voice.questions, voice.follow_ups)
    for text in (text for table in tables for texts in table.values() for text in texts):
        assert re.fullmatch(rf"[{script}0-9 .,:?!\-]+", text), text
        assert "  " not in text
        assert text[-1] in {"hi": "।?"}.get(lang, ".?") or lang == "th"


@pytest.mark.parametrize("characters", [12, 18])
def test_a_small_meadow_works_too(characters: int) -> None:
    config = MeadowConfig(
        characters=characters, megabytes=0.05, dialogs=60, preferences=20, guard=20, items=8, heldout_kilobytes=1
    )
    small = Meadow(config)
    assert len(list(small.dialogs())) == 60
    assert sum(len(row["text"].encode()) for row in small.documents()) >= 5e4
    assert all(small.benchmarks().values())
    assert {row["lang"] for row in small.heldout()} == set(CODES)
