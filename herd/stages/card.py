"""Stage `card`: the ledger rendered as MODEL_CARD.md and card.html; nothing is said that isn't in the ledger."""

from herd.base.files import read_jsonl, write_atomic
from herd.base.ledger import Record
from herd.card import build, to_html, to_markdown, verify
from herd.stages.step import Context, Outcome


def run(context: Context, key: str) -> Outcome:
    """Write both cards."""
    return Outcome(write_cards(context), ("MODEL_CARD.md", "card.html"))


def write_cards(context: Context) -> dict[str, int]:
    """Render and check the card of a run; returns its facts."""
    run = context.run
    records = [record for record in run.ledger.records if record.kind != "start"]
    curves = {r.step: list(read_jsonl(run / r.facts["curve"])) for r in _with_curves(records) if r.facts.get("curve")}
    card = build(records, recipe=context.recipe.model_dump(mode="json"), curves=curves)
    markdown = to_markdown(card)
    wrong = verify(markdown, records, recipe=context.recipe.model_dump(mode="json"), curves=curves)
    assert not wrong, f"a card that its own ledger doesn't bear out: {wrong[:3]}"
    write_atomic(run / "MODEL_CARD.md", markdown)
    write_atomic(run / "card.html", to_html(card))
    return {"figures": sum(1 for _ in card.figures())}


def _with_curves(records: list[Record]) -> list[Record]:
    newest = {record.step: record for record in records if record.kind == "stage"}
    return list(newest.values())
