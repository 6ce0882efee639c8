"""The model card: every figure comes from a record, tampering shows, and the page is whole and safe."""

import dataclasses
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from fake_ledger import RECIPE, fake_curves, fake_ledger

from herd.base.goodput import KINDS
from herd.base.ledger import Record
from herd.card import build, safety_summary, summary, to_html, to_markdown, verify
from herd.card.book import Book
from herd.card.document import Card, Table, escape
from herd.card.figures import Figure, write
from herd.card.markdown import cite
from herd.card.verify import check_figures

SPENT = {"useful": 150.0, "startup": 20.0, "checkpoint": 10.0}  # 180 s, as the imagined pretraining took


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return fake_ledger()


@pytest.fixture(scope="module")
def card(records: list[Record]) -> Card:
    return build(records, recipe=RECIPE, curves=fake_curves())


@pytest.fixture(scope="module")
def page(card: Card) -> str:
    return to_html(card)


def tamper(records: Sequence[Record], step: str, **facts: Any) -> list[Record]:
    return [dataclasses.replace(r, facts={**r.facts, **facts}) if r.step == step else r for r in records]


def table(card: Card, title: str) -> dict[str, dict[str, Any]]:
    """Return one table as {row: {column: cell}}."""
    for section in card.sections:
        for block in section.blocks:
            if isinstance(block, Table) and block.title == title:
                return {str(row[0]): dict(zip(block.header, row, strict=True)) for row in block.rows}
    raise AssertionError(f"no table {title!r}")


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure(0.8125, "share", 0.039), "81.2 % ± 3.9"),
        (Figure(-0.031, "difference", 0.02), "−3.1 points ± 2.0"),
        (Figure(1_843_200, "amount"), "1.84 M"),
        (Figure(405_853_388_800, "amount"), "406 B"),
        (Figure(999_999, "amount"), "999,999"),
        (Figure(8_933_000_000, "gCO2e"), "8,933 t"),
        (Figure(1.42, "gCO2e"), "1.42 g"),
        (Figure(0.00397, "kWh"), "3.97 Wh"),
        (Figure(0.0, "kWh"), "0 kWh"),
        (Figure(3e-05), "3e-05"),
        (Figure(1.234567, "loss"), "1.235"),
        (Figure(None, "share"), "not measured"),
        (Figure(math.nan, "share"), "not measured"),
        (Figure("CC0-1.0", "text"), "CC0-1.0"),
        (Figure(20261123, "text"), "20261123"),
    ],
)
def test_figures_are_written_with_a_sensible_unit(figure: Figure, text: str) -> None:
    assert write(figure) == text


def test_a_figure_names_its_records_and_many_are_counted() -> None:
    assert cite(Figure(0.5, "share", sources=("r0012",))) == "50.0 % [r0012]"
    assert cite(Figure(1, "count", sources=tuple("abcde"))) == "1 [a] [b] [c] +2"


def test_every_figure_stands_in_the_record_it_names(records: list[Record], card: Card) -> None:
    assert check_figures(card, Book(records, recipe=RECIPE, curves={})) == []
    measured = [figure for _, figure in card.figures() if figure.value is not None]
    assert len(measured) > 400
    assert all(figure.sources or figure.how for figure in measured)


def test_an_untouched_card_is_verified(records: list[Record], card: Card) -> None:
    markdown = to_markdown(card)
    assert verify(markdown, records, recipe=RECIPE, curves=fake_curves()) == []
    assert not re.search(r"(?<!\\)\{\w+\}", markdown)


@pytest.mark.parametrize(
    ("step", "facts", "place"),
    [
        ("eval/knowledge/flagship/instruct", {"value": 0.99}, "Benchmarks"),
        ("pretrain", {"loss_last": 0.5}, "Training / Stages"),
        ("curate", {"undated": 7}, "Training data"),
    ],
)
def test_a_tampered_ledger_changes_the_card_and_is_noticed(
    records: list[Record], card: Card, step: str, facts: dict[str, Any], place: str
) -> None:
    changed = tamper(records, step, **facts)
    markdown = to_markdown(card)
    assert to_markdown(build(changed, recipe=RECIPE, curves=fake_curves())) != markdown
    found = verify(markdown, changed, recipe=RECIPE, curves=fake_curves())
    assert any(line.startswith(place) for line in found)


def test_a_tampered_card_is_noticed(records: list[Record], card: Card) -> None:
    forged = to_markdown(card).replace("81.0 % ± 3.9", "91.0 % ± 3.9", 1)
    found = verify(forged, records, recipe=RECIPE, curves=fake_curves())
    assert len(found) == 1
    assert "91.0 %" in found[0]
    assert "81.0 %" in found[0]


def test_a_figure_that_names_a_wrong_record_is_noticed(records: list[Record], card: Card) -> None:
    book = Book(records, recipe=RECIPE, curves={})
    for wrong in ("r9999", "r0003"):
        figure = Figure(24_310, "count", sources=(wrong,), path=("facts", "documents"))
        assert len(check_figures(Card("", (("documents", figure),), ()), book)) == 1


def test_energy_adds_up_and_measured_power_is_used_where_all_of_a_row_has_it(card: Card) -> None:
    rows = table(card, "Energy and emissions")
    total = rows.pop("Total")
    for column in ("Device-hours", "Energy, estimated"):
        assert total[column].value == pytest.approx(sum(row[column].value for row in rows.values()))
    flagship, small = rows["flagship"], rows["small (distilled, aligned)"]
    hours = (180 + 25 + 24 + 30 + 12) / 3600
    assert flagship["Energy, estimated"].value == pytest.approx(hours * 0.060 * 1.1)
    assert flagship["Measured / estimated"].value == pytest.approx(48 / 60)
    assert (flagship["Basis"], small["Basis"]) == ("measured", "estimated")
    assert flagship["Location-based emissions"].value == pytest.approx(hours * 0.048 * 1.1 * 475)
    assert small["Market-based emissions"].value == pytest.approx((40 + 15) / 3600 * 0.065 * 1.1 * 475 * 0.75)


def test_a_replaced_step_still_costs_energy_but_gives_no_other_figure(records: list[Record]) -> None:
    again = dataclasses.replace(records[3], id="r0900", facts={**records[3].facts, "loss_last": 0.777})
    assert again.step == "pretrain"
    card = build([*records, again], recipe=RECIPE, curves={})
    assert table(card, "Stages")["pretrain"]["Last loss"].sources == ("r0900",)
    old = table(card, "Energy and emissions")["earlier versions of steps, since replaced"]
    assert old["Device-hours"].value == pytest.approx(180 / 3600)
    assert old["Device-hours"].sources == ("r0004",)


def test_failed_attempts_are_in_the_totals_and_in_the_account_of_time(records: list[Record], card: Card) -> None:
    def attempt(n: int, spent: dict[str, float], first: int, saved: dict[str, dict[str, float]]) -> Record:
        hours = 2 * sum(spent.values()) / 3600
        cost = {
            "seconds": sum(spent.values()),
            "device_hours": hours,
            "devices": 2,
            "attempt": {"first": first, "spent": spent, "saved": saved},
        }
        facts = {"why": "killed", "reached": 57}
        return Record(f"r080{n}", "end", "pretrain", facts=facts, cost=cost)

    killed = attempt(1, {"useful": 60.0, "startup": 9.0, "data": 2.0}, 0, {"50": {"useful": 50.0, "data": 1.0}})
    failed = attempt(2, {"useful": 20.0, "startup": 10.0}, 50, {})
    spike = {"event": "spike", "at": 57, "why": "step 57: the loss is nan", "did": "went back to step 50"}
    done = next(n for n, r in enumerate(records) if (r.kind, r.step) == ("stage", "pretrain"))
    event = Record("r0803", "event", "pretrain", facts=spike)
    resumed = dataclasses.replace(records[done], cost=records[done].cost | {"attempt": {"first": 50, "spent": SPENT}})
    more = [*records[:done], killed, failed, event, resumed, *records[done + 1 :]]
    changed = build(more, recipe=RECIPE, curves=fake_curves())
    assert check_figures(changed, Book(more, recipe=RECIPE, curves={})) == []
    rows = table(changed, "Goodput")
    hours = {name: float(row["Device-hours"].value) for name, row in rows.items()}
    before = table(card, "Goodput")["flagship"]
    assert hours["flagship"] == pytest.approx(before["Device-hours"].value + (2 * (71 + 30)) / 3600)
    assert hours["Total"] == pytest.approx(sum(value for name, value in hours.items() if name != "Total"))
    assert hours["flagship"] == pytest.approx(table(changed, "Energy and emissions")["flagship"]["Device-hours"].value)
    for row in rows.values():
        assert sum(float(row[name.capitalize()].value) for name in KINDS.values()) == pytest.approx(1.0)
    # steps 51 to 57 of the first attempt, and all of the second
    assert rows["flagship"]["Lost to restart"].value * hours["flagship"] == pytest.approx(2 * (11 + 20) / 3600)
    assert table(changed, "Attempts without a result")["pretrain"]["Why it ended"] == "killed"
    assert table(changed, "Events")["pretrain"]["What was done"] == "went back to step 50"
    assert table(changed, "Stages")["pretrain"]["Time"].value == pytest.approx(180 + 71 + 30)
    assert "Attempts without a result" not in to_markdown(card)


def test_power_that_nobody_stated_is_not_measured(records: list[Record]) -> None:
    rows = table(build(records, recipe={"name": "x"}, curves={}), "Energy and emissions")
    assert str(rows["guard"]["Energy, estimated"]) == "not measured"
    assert str(rows["flagship"]["Location-based emissions"]) == "not measured"
    assert rows["flagship"]["Energy, estimated"].value > 0


def test_what_has_no_record_is_not_measured_and_a_skipped_task_says_why(card: Card) -> None:
    rows = table(card, "Benchmarks")
    assert str(rows["knowledge, cross-lingual"]["flagship base"]) == "not measured"
    skipped = rows["tool use"]["flagship base"]
    assert skipped.value is None
    assert skipped.note == "a base model has no <tool> dialect"
    assert "a base model has no \\<tool\\> dialect: tool use (under flagship base" in to_markdown(card)


def test_a_model_that_was_not_made_says_so_where_it_has_no_score(records: list[Record]) -> None:
    figure = Book(records, recipe={}, curves={}).score("knowledge", "siblings/tiny/instruct")
    assert (figure.value, figure.note) == (None, "this model was not made")


def test_training_tokens_are_those_of_the_steps_that_made_the_model(card: Card) -> None:
    rows = table(card, "The family")
    assert list(rows) == ["flagship", "small", "tiny", "guard"]
    assert rows["flagship"]["Training tokens"].value == 4_194_304 + 2 * 524_288
    assert rows["small"]["Training tokens"].value == 1_048_576
    assert rows["flagship"]["Context length"].value == 1024


def test_both_shapes_of_the_curation_report_are_read(records: list[Record], card: Card) -> None:
    facts = next(r for r in records if r.step == "curate" and r.kind == "stage").facts
    kept = {"documents": facts["documents"], "bytes": facts["bytes"]}
    nested = {c: {"kept": row, "heldout": {"documents": 9, "bytes": 12_000}} for c, row in facts["languages"].items()}
    dropped = {key: facts[key] for key in ("rules", "newest_date", "sources")}
    changed = dropped | {"kept": kept, "languages": nested, "undated": {"documents": 122, "share": 0.005}}
    other = [dataclasses.replace(r, facts=changed) if (r.kind, r.step) == ("stage", "curate") else r for r in records]
    recipe = RECIPE | {"curate": {"cutoff": "2026-06-30"}}
    section = next(s for s in build(other, recipe=recipe, curves={}).sections if s.key == "data")
    mine = [(where, figure.value) for where, figure in Card("", (), (section,)).figures()]
    section = next(s for s in card.sections if s.key == "data")
    assert mine == [(where, figure.value) for where, figure in Card("", (), (section,)).figures()]


def test_writing_the_card_changes_no_card(records: list[Record], card: Card) -> None:
    written = Record("r0999", "stage", "card", facts={"figures": 1}, cost={"device_hours": 9.0})
    started = Record("r0998", "start", "card")
    again = build([*records, started, written], recipe=RECIPE, curves=fake_curves())
    assert to_markdown(again) == to_markdown(card)


def test_an_empty_ledger_gives_a_card_of_not_measured() -> None:
    card = build([], recipe={}, curves={})
    measured = [figure for where, figure in card.figures() if figure.value is not None]
    assert {figure.how or figure.path[0] for figure in measured} <= {
        "hash of the resolved recipe", "energy",
    }  # fmt: skip
    assert "not measured" in to_markdown(card)
    assert to_html(card).count("<section") == len(card.sections)


def test_distilled_minus_alone_carries_both_errors(card: Card) -> None:
    row = table(card, "Sibling small")["knowledge"]
    delta = row["Distilled − alone"]
    assert delta.value == pytest.approx(0.72 - 0.66)
    assert delta.stderr == pytest.approx(math.sqrt(0.72 * 0.28 / 100 + 0.66 * 0.34 / 100))
    assert row["In standard errors"].value == pytest.approx(delta.value / delta.stderr)


@pytest.mark.parametrize(
    ("newest", "words"),
    [
        ("2026-06-29", "the cut-off holds"),
        ("2026-07-01", "the cut-off does not hold"),
        (None, "was not measured"),
    ],
)
def test_the_cutoff_is_proven_by_the_newest_document(records: list[Record], newest: str | None, words: str) -> None:
    markdown = to_markdown(build(tamper(records, "curate", newest_date=newest), recipe=RECIPE, curves={}))
    assert words in next(line for line in markdown.splitlines() if line.startswith("**Freshness"))


def test_only_a_generated_corpus_is_called_a_toy_world(records: list[Record]) -> None:
    real = tamper(records, "curate", sources={"news/a.jsonl": {"documents": 5, "license": "CC-BY-4.0"}})
    assert "toy world" in to_markdown(build(records, recipe=RECIPE, curves={}))
    assert "toy world" not in to_markdown(build(real, recipe=RECIPE, curves={}))


def test_examples_show_no_address_and_no_number(card: Card) -> None:
    for text in (to_markdown(card), to_html(card)):
        assert "▒▒▒ | **now** or ▒▒▒" in text.replace("\\", "")
        assert "ada@example.com" not in text
        assert "555 0100" not in text


HOSTILE = "a|b `c` [d](javascript:x) <script>alert(1)</script> {documents} *e* \n# f"


def test_hostile_names_stay_words(records: list[Record]) -> None:
    rules = {HOSTILE: {"dropped": 1, "bytes": 2, "examples": [HOSTILE]}}
    changed = tamper(records, "curate", sources={HOSTILE: {"documents": 3, "license": HOSTILE}}, rules=rules)
    recipe = RECIPE | {"name": HOSTILE, "energy": {"source": HOSTILE}, "mixture": {HOSTILE: 1}}
    card = build(changed, recipe=recipe, curves={HOSTILE: fake_curves()["guard"]})
    markdown, html = to_markdown(card), to_html(card)
    assert "<script" not in html
    assert 'href="javascript' not in html
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows if "a\\|b" in line}
    assert widths <= {3, 4, 5}
    assert "\n# f" not in markdown
    assert f"Source of these: {escape(HOSTILE)}." in markdown
    assert verify(markdown, changed, recipe=recipe, curves={HOSTILE: fake_curves()["guard"]}) == []


def test_escaped_text_is_read_back_by_a_markdown_reader_as_it_was() -> None:
    from html import unescape

    from markdown_it import MarkdownIt

    text = "a|b *c* _d_ snake_case `e` [f](g) <h> &amp; {i} ~j~ \\k"
    shown = re.sub(r"</?p>", "", MarkdownIt("commonmark").render(escape(text))).strip()
    assert unescape(shown) == text


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    assert len(page.encode()) < 1_000_000
    assert "<script" not in page
    outside = [u for u in re.findall(r'(?:src|href|url\()="?\s*([^"\s)>]+)', page) if not u.startswith("#")]
    assert outside == []
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_links_of_the_page_end_at_one_place_each(page: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_drawings_take_their_colours_from_the_page(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(drawings) == 14
    assert all("var(--ink-2)" in drawing for drawing in drawings)
    assert not re.search(r"#0[1-9]0[1-9]0[1-9]|#a0b0", page)


def test_links_of_the_markdown_end_in_the_evidence(card: Card) -> None:
    markdown = to_markdown(card)
    cited = set(re.findall(r"\[(r\d{4}|recipe)\](?!:)", markdown))
    anchors = set(re.findall(r'<a id="([^"]+)"></a>', markdown))
    defined = set(re.findall(r"^\[([^\]]+)\]: #", markdown, flags=re.M))
    assert len(cited) > 60
    assert cited <= anchors
    assert anchors == defined


def test_the_same_ledger_gives_the_same_bytes(records: list[Record], card: Card, page: str) -> None:
    again = build(records, recipe=RECIPE, curves=fake_curves())
    assert to_markdown(again) == to_markdown(card)
    assert to_html(again) == page


def test_summary_is_the_benchmark_table(records: list[Record]) -> None:
    rows = summary(records)
    assert rows[0][:3] == ["task", "flagship base", "flagship instruct"]
    assert {len(row) for row in rows} == {len(rows[0])}
    by_task = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert by_task["knowledge"]["flagship instruct"] == "81.0 % ± 3.9"
    assert by_task["tool use"]["flagship base"] == "not measured"
    header, *safety = safety_summary(records)
    violations = dict(zip(header, safety[0], strict=True))
    assert violations["flagship instruct + guard"] == "8.0 % ± 2.7"


def test_the_card_package_never_imports_torch_nor_the_drawing_library_before_it_draws() -> None:
    code = "import sys, herd.card; print([m for m in ('torch', 'vl_convert', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
