"""The card's opening: what the models are, in one table, and what they are and aren't for."""

from collections.abc import Sequence
from typing import Any

from herd.base.languages import LANGUAGES
from herd.base.ledger import Record
from herd.card.book import Book, look_up
from herd.card.document import Cell, Prose, Section, Table, escape
from herd.card.figures import Figure


def title(book: Book) -> str:
    """Return the card's title."""
    return f"The {book.recipe.get('name') or 'unnamed'} herd"


def tiles(book: Book) -> tuple[tuple[str, Figure], ...]:
    """Return the handful of figures a reader looks for first."""
    pretrain = book.stages.get("pretrain")
    return (
        ("parameters, flagship", book.figure(pretrain, "facts", "parameters", unit="amount")),
        ("training tokens, flagship", training_tokens(book, *book.base_steps())),
        ("knowledge, flagship instruct", book.score("knowledge", "flagship/instruct")),
        ("violation rate, with guard", book.score("violation_rate", "flagship/instruct+guard")),
    )


def summary(book: Book) -> Section:
    """Return what this is, in three sentences."""
    siblings = [escape(name) for name in book.siblings()]
    family = "a flagship"
    if siblings:
        names = " and ".join((", ".join(siblings[:-1]), siblings[-1]) if siblings[1:] else siblings)
        plural = "siblings" if siblings[1:] else "a sibling"
        family += f" and {plural} ({names}) distilled from it, each beside the same model trained alone"
    text = (
        "A family of language models of the Llama 3.1 architecture, raised from text by one command of "
        "**herd**: "
        f"{family}. The flagship was trained on {{tokens}} tokens from {{documents}} documents "
        "whose knowledge ends at {cutoff}.\n\n"
        "Every figure below names the record of the run's ledger that it was taken from; the records stand "
        "in [Evidence](#evidence). What was not measured says so."
    )
    figures = {
        "tokens": training_tokens(book, *book.base_steps()),
        "documents": documents(book),
        "cutoff": cutoff(book),
    }
    started = book.stages["pretrain"].facts.get("started_from") if "pretrain" in book.stages else None
    if started:
        text += (
            " It did not start from random weights but from a model made elsewhere, which the tokens above were "
            f"added to: {escape(str(started))}."
        )
    if is_toy(book):
        text += (
            "\n\n**This herd lives in a toy world.** Its text is generated: a small closed world of "
            "invented persons, places and animals. Its scores say that the system works, not that the "
            "models know anything of ours."
        )
    return Section("summary", "Summary", (Prose(text, figures),))


def models(book: Book) -> Section:
    """Return the table of the family, in the shape of the Llama 3.1 card's."""
    rows = [_model_row(book, name, steps) for name, steps in _families(book).items()]
    header = (
        "Model", "Parameters", "Layers", "Width", "Heads", "Grouped-query attention", "Context length",
        "Training tokens", "Knowledge cut-off",
    )  # fmt: skip
    names = ", ".join(LANGUAGES[c].name if c in LANGUAGES else escape(c) for c in _languages(book))
    tokenizer = book.stages.get("tokenizer")
    text = (
        "**Architecture.** Decoder-only transformer as in Llama 3.1 (arXiv:2407.21783, section 3.2): "
        "grouped-query attention, rotary positions, SwiGLU, RMSNorm, no attention across documents. Input "
        "and output are text; the instruct models also emit tool calls.\n\n"
        f"**Languages.** {names or 'not measured'}.\n\n"
        "**Vocabulary.** {vocabulary} tokens, byte-level BPE{learned}.\n\n"
        "**Training tokens** counts every token trained on up to the base model (the guard: in its "
        "fine-tuning), repeated ones included; alignment comes on top (see [Training](#training))."
    )
    learned = {True: " learned on this corpus", False: " taken as given"}.get(
        tokenizer.facts.get("learned") if tokenizer else None, ""
    )
    vocabulary = book.figure(tokenizer, "facts", "n_vocab", unit="count")
    prose = Prose(text.replace("{learned}", learned), {"vocabulary": vocabulary})
    return Section("models", "Models", (Table("The family", header, tuple(rows)), prose))


def intended_use(book: Book) -> Section:
    """Return what the models are for, what they aren't for, and where they fail."""
    if is_toy(book):
        text = (
            "**Intended.** To learn, test and teach with: seeing every stage of a Llama 3.1 system run on "
            "one machine, proving that a change of code loses nothing, comparing recipes at small "
            "scale.\n\n"
            "**Out of scope.** Any use that needs facts about the real world, advice, or safety that holds "
            "outside the generated prompts. The models must not stand between a person and a decision.\n\n"
            "**Limits.** The world is small and closed, so the models answer confidently and wrongly about "
            "anything outside it. The safety prompts are short, mild and generated from the same grammars "
            "as the training prompts (no item is shared): a low violation rate here says little about real "
            "adversaries. Languages are spoken in a few hundred patterns; fluency beyond these is not "
            "claimed."
        )
    else:
        text = (
            "**Intended.** Research on, and evaluation of, small language models in the languages listed "
            "above, within the licences of the training data below.\n\n"
            "**Out of scope.** Use in other languages, use that breaks a law or a licence of the sources, "
            "and any decision about a person that nobody checks.\n\n"
            "**Limits.** Models of this size and training invent facts, repeat the biases of their "
            "sources, and are only as safe as the table under [Safety](#safety) shows. Where that table "
            "says 'not measured', assume nothing. Test for your use, and keep a guard in front, before "
            "anyone relies on an answer."
        )
    return Section("intended-use", "Intended use", (Prose(text),))


def is_toy(book: Book) -> bool:
    """Tell whether all the corpus is herd's own generated world."""
    curate = book.stages.get("curate")
    sources = (curate.facts.get("sources") or {}) if curate else {}
    return bool(sources) and all(str(name).startswith("meadow") for name in sources)


def cutoff(book: Book) -> Figure:
    """Return the cut-off date that curation applied."""
    figure = book.figure(book.stages.get("curate"), "facts", "cutoff", unit="text")
    return figure if figure.value is not None else book.setting("curate", "cutoff")


def documents(book: Book) -> Figure:
    """Return how many documents curation kept."""
    paths = (("facts", "documents"), ("facts", "kept", "documents"))
    return book.first(book.stages.get("curate"), *paths, unit="count")


def training_tokens(book: Book, *steps: str) -> Figure:
    """Return the tokens trained on in these steps together, repeated ones included."""
    return total(book.made(*steps), "facts", "tokens", unit="amount")


def total(records: Sequence[Record], *path: str, unit: str) -> Figure:
    """Return the sum of one fact over records. Records without it are left out and said so in the note."""
    having = [(r, look_up(r, path)) for r in records]
    found = [(r, value) for r, value in having if isinstance(value, (int, float))]
    if not found:
        return Figure(None, unit)
    sources = tuple(r.id for r, _ in found)
    if len(found) == 1:
        return Figure(found[0][1], unit, sources=sources, path=path)
    missing = ", ".join(r.step for r, value in having if not isinstance(value, (int, float)))
    how = f"sum of {path[-1]}" + (f", without {missing}" if missing else "")
    return Figure(sum(value for _, value in found), unit, sources=sources, how=how)


def _families(book: Book) -> dict[str, tuple[str, ...]]:
    """Return row name -> the steps that made the model."""
    families: dict[str, tuple[str, ...]] = {"flagship": book.base_steps()}
    families |= {name: (f"distil/{name}",) for name in book.siblings()}
    return families | ({"guard": ("guard",)} if book.made("guard") else {})


def _model_row(book: Book, name: str, steps: tuple[str, ...]) -> tuple[Cell, ...]:
    records = book.made(*steps)
    last = records[-1] if records else None
    return (
        name,
        book.figure(last, "facts", "parameters", unit="amount"),
        book.figure(last, "facts", "config", "n_layers", unit="count"),
        book.figure(last, "facts", "config", "dim", unit="count"),
        book.figure(last, "facts", "config", "n_heads", unit="count"),
        _grouped(book, last),
        book.figure(last, "facts", "context_length", unit="count"),
        training_tokens(book, *steps),
        cutoff(book),
    )


def _grouped(book: Book, record: Record | None) -> Figure:
    kv = book.figure(record, "facts", "config", "n_kv_heads", unit="count")
    heads = book.figure(record, "facts", "config", "n_heads", unit="count")
    if not isinstance(kv.value, (int, float)) or not isinstance(heads.value, (int, float)):
        return Figure(None, "text")
    text = f"yes, {kv.value:g} key-value heads" if kv.value < heads.value else "no"
    return Figure(text, "text", sources=kv.sources, how="n_kv_heads < n_heads")


def _languages(book: Book) -> list[str]:
    curate = book.stages.get("curate")
    found: Any = (curate.facts.get("languages") or {}) if curate else {}
    return [c for c in LANGUAGES if c in found] + [c for c in found if c not in LANGUAGES]
