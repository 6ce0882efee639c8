"""Runs tasks on a subject: every item kept, every score with its standard error, whole and by group."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from herd.engine.request import Stats
from herd.eval.scorers import CHAT_ONLY, SCORERS, Item
from herd.eval.statistics import grouped, mean, ratio
from herd.eval.subject import Subject

GROUPS = ("lang", "hazard", "kind", "length", "depth")


@dataclass(frozen=True)
class Score:
    """What the ledger keeps of one task and model, and the items behind it; `cost`: what another time may differ."""

    facts: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    cost: Mapping[str, Any] = field(default_factory=dict)


def run_task(subject: Subject, task: str, items: Sequence[Item]) -> Score | None:
    """Score one task; None where it makes no sense of this kind of model (such as tool calls of a base model).

    Items longer than the model's context are left out and counted as `too_long`.
    """
    kind = items[0]["type"]
    if kind in CHAT_ONLY and not subject.chat:
        return None
    fitting = [item for item in items if subject.fits(item)]
    if not fitting:
        return None
    before = subject.engine.stats()
    scored = SCORERS[kind](subject, fitting)
    facts = {
        "task": task,
        "model": subject.name,
        "metric": "rate" if kind == "safety" else "accuracy",
        "higher_is_better": kind != "safety",
        "chance": 1 / len(items[0]["choices"]) if kind == "choice" else None,
        **mean([row["score"] for row in scored]).to_json(),
        "by": _groups(scored),
        "too_long": len(items) - len(fitting),
    }
    if kind == "tool":
        facts["well_formed"] = mean([row["well_formed"] for row in scored]).to_json()
    return Score(facts, scored, _speculation(before, subject.engine.stats()))


def _speculation(before: Stats, after: Stats) -> dict[str, Any]:
    """Return what was drafted and accepted between two moments, if anything was."""
    rounds, drafted, accepted = (getattr(after, n) - getattr(before, n) for n in ("rounds", "drafted", "accepted"))
    if not rounds:
        return {}
    return {"drafted": drafted, "accepted": accepted, "acceptance_length": round(1 + accepted / rounds, 2)}


def _groups(scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    groups = {}
    for name in GROUPS:
        found = grouped(scored, name)
        if len(found) > 1:
            groups[name] = found
    if "length" in groups and "depth" in groups:
        both = [{**row, "cell": f"{row['length']}|{row['depth']}"} for row in scored]
        groups["length_depth"] = grouped(both, "cell")
    return groups


def bits_per_byte(subject: Subject, documents: Iterable[Mapping[str, Any]]) -> Score:
    """Score held-out text: -log2 p of a document over its UTF-8 bytes, the end of the text included."""
    tokenizer = subject.codec.tokenizer
    rows = list(documents)
    most = subject.engine.capacity
    pieces: list[list[int]] = []
    owner: list[int] = []
    for number, row in enumerate(rows):
        ids = tokenizer.encode(row["text"], bos=True, eos=True)
        # a piece starts with the last id of the one before, so every id but the first is predicted once
        for start in range(0, max(1, len(ids) - 1), most - 1):
            pieces.append(ids[start : start + most])
            owner.append(number)
    bits = [0.0] * len(rows)
    scored = subject.engine.score(pieces, on_done=lambda n: subject.advance(n, len(pieces)))
    for number, logprobs in zip(owner, scored, strict=True):
        bits[number] -= math.fsum(logprobs) / math.log(2)
    sizes = [len(row["text"].encode()) for row in rows]
    items = [
        {"id": row["id"], "lang": row["lang"], "bits": round(b, 3), "bytes": size}
        for row, b, size in zip(rows, bits, sizes, strict=True)
    ]
    languages = dict.fromkeys(row["lang"] for row in rows)
    by = {}
    for lang in languages:
        own = [item for item in items if item["lang"] == lang]
        by[lang] = ratio([i["bits"] for i in own], [i["bytes"] for i in own]).to_json()
    facts = {
        "task": "bits_per_byte",
        "model": subject.name,
        "metric": "bits per byte",
        "higher_is_better": False,
        "chance": None,
        **ratio(bits, sizes).to_json(),
        "by": {"lang": by},
    }
    return Score(facts, items)
