"""Stage `tokenizer`: learn a byte-level BPE on a balanced sample, or take a given one; then encode the corpus once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herd.base.files import read_jsonl
from herd.base.languages import CODES
from herd.stages.models import find_model
from herd.stages.recipe import TokenizerConfig
from herd.stages.step import Context, Outcome
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.hf_files import load_tokenizer
from herd.tokenizer.learn import fertility, learn, learn_balanced
from herd.tokenizer.shard_writer import write_shards
from herd.tokenizer.shards import encode_documents


def run(context: Context, key: str) -> Outcome:
    """Make the folders tokenizer/ and shards/."""
    section, corpus = context.recipe.tokenizer, context.run / "corpus"
    given = _given(context)
    context.progress.note("learning the vocabulary" if given is None else f"reading {given}")
    if given is None:
        tokenizer, learned = _learn(section, corpus / "documents.jsonl")
    else:
        tokenizer, learned = load_tokenizer(given), {}
    tokenizer.save(context.run / "tokenizer")
    documents = read_jsonl(corpus / "documents.jsonl")
    keyed = ((row["text"], (row["lang"] or "und", row.get("kind") or "text")) for row in documents)
    shards = write_shards(
        context.run / "shards",
        encode_documents(tokenizer, keyed),
        vocab_size=tokenizer.n_vocab,
        fingerprint=tokenizer.fingerprint,
    )
    held = {lang: _texts(corpus / "heldout.jsonl", lang) for lang in _languages(corpus / "heldout.jsonl")}
    facts = {
        "n_vocab": tokenizer.n_vocab,
        "learned": given is None,
        **learned,
        "tokens": shards.n_tokens,
        "documents": shards.n_documents,
        "fertility": {
            lang: {name: round(value, 4) for name, value in row.items()}
            for lang, row in fertility(tokenizer, held).items()
        },
    }
    return Outcome(facts, ("tokenizer", "shards"))


def _given(context: Context) -> Path | None:
    """Return the tokenizer to take: the recipe's, or that of the model which the flagship starts from."""
    recipe = context.recipe
    if recipe.tokenizer.path is not None:
        return Path(recipe.tokenizer.path)
    return None if recipe.flagship_path is None else find_model(Path(recipe.flagship_path))


def _learn(section: TokenizerConfig, documents: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Return a new tokenizer, and with a floor the facts of how it was reached."""
    texts = {lang: _texts(documents, lang) for lang in _languages(documents)}
    options: dict[str, Any] = section.model_dump(include={"vocab_size", "merge_digits", "sample_megabytes"})
    if section.floor is None:
        return learn(texts, **options), {}
    found = learn_balanced(texts, floor=section.floor, **options)
    reached = {lang: round(value, 4) for lang, value in found.characters_per_token.items()}
    facts = {"rounds": found.rounds, "weights": found.weights, "characters_per_token": reached}
    return found.tokenizer, {"floor": {"asked": section.floor, **facts}}


def _languages(path: Path) -> list[str]:
    found = set()
    with path.open(encoding="utf-8") as file:
        for line in file:
            found.add(json.loads(line)["lang"] or "und")
    return [*(code for code in CODES if code in found), *sorted(found - set(CODES))]


def _texts(path: Path, lang: str) -> Iterator[str]:
    return (row["text"] for row in read_jsonl(path) if (row["lang"] or "und") == lang)
