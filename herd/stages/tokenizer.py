"""Stage `tokenizer`: learn a byte-level BPE on a balanced sample, or take a given one; then encode the corpus once."""

import json
from collections.abc import Iterator
from pathlib import Path

from herd.base.files import read_jsonl
from herd.base.languages import CODES
from herd.stages.step import Context, Outcome
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.learn import fertility, learn
from herd.tokenizer.shards import encode_documents, write_shards


def run(context: Context, key: str) -> Outcome:
    """Make the folders tokenizer/ and shards/."""
    section, corpus = context.recipe.tokenizer, context.run / "corpus"
    context.progress.note("learning the vocabulary" if section.path is None else f"reading {section.path}")
    if section.path is None:
        languages = _languages(corpus / "documents.jsonl")
        tokenizer = learn(
            {lang: _texts(corpus / "documents.jsonl", lang) for lang in languages},
            vocab_size=section.vocab_size,
            merge_digits=section.merge_digits,
            sample_megabytes=section.sample_megabytes,
        )
    else:
        tokenizer = Tokenizer.load(Path(section.path))
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
        "learned": section.path is None,
        "tokens": shards.n_tokens,
        "documents": shards.n_documents,
        "fertility": {
            lang: {name: round(value, 4) for name, value in row.items()}
            for lang, row in fertility(tokenizer, held).items()
        },
    }
    return Outcome(facts, ("tokenizer", "shards"))


def _languages(path: Path) -> list[str]:
    found = set()
    with path.open(encoding="utf-8") as file:
        for line in file:
            found.add(json.loads(line)["lang"] or "und")
    return [*(code for code in CODES if code in found), *sorted(found - set(CODES))]


def _texts(path: Path, lang: str) -> Iterator[str]:
    return (row["text"] for row in read_jsonl(path) if (row["lang"] or "und") == lang)
