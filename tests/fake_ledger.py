"""The ledger of an imagined run, as the stages write one, for the tests of the model card."""

import math
from collections.abc import Sequence
from typing import Any

from herd.base.languages import CODES
from herd.base.ledger import Record

RECIPE: dict[str, Any] = {
    "name": "meadow",
    "seed": 7,
    "energy": {
        "watts_per_device": 65.0,
        "pue": 1.1,
        "location_g_per_kwh": 475.0,
        "market_g_per_kwh": 475.0,
        "certificates": 0.25,
        "source": "world average, an example source",
    },
    "mixture": {"story": 45, "qa": 20, "arithmetic": 12, "code": 6, "parallel": 7, "long": 10},
}
FLAGSHIP = {"dim": 192, "n_layers": 6, "n_heads": 6, "n_kv_heads": 2, "ffn_hidden": 512}
SMALL = {"dim": 128, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "ffn_hidden": 384}
HAZARDS = [f"S{i}" for i in range(1, 15)]


class Fake:
    """Writes ledger records in memory, the way the stages do."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, kind: str, step: str, **parts: Any) -> None:
        n = len(self.records) + 1
        time = f"2026-11-23T10:{n // 60:02d}:{n % 60:02d}+00:00"
        self.records.append(Record(f"r{n:04d}", kind, step, time=time, **parts))

    def stage(self, step: str, facts: dict[str, Any], *, seconds: float, watts: float | None = None) -> None:
        cost = {
            "seconds": seconds,
            "device_hours": seconds / 3600,
            "devices": 1,
            "device": "cpu",
            "watts_per_device": watts,
            "joules_measured": 48 * seconds if watts else None,
            "tokens_per_s": 21_345.6,
        }
        reads, writes = {"corpus/documents.jsonl": "ab" * 32}, {f"out/{step}": "cd" * 32}
        self.add("stage", step, facts=facts, cost=cost, reads=reads, writes=writes, fingerprint="ef" * 32)

    def train(self, step: str, model: str, *, tokens: int, seconds: float, config: dict[str, int] = FLAGSHIP) -> None:
        facts = {
            "model": model,
            "parameters": 1_843_200 if config is FLAGSHIP else 612_736,
            "context_length": 1024 if "long" in step or "anneal" in step else 512,
            "config": config,
            "steps": tokens // 8192,
            "tokens": tokens,
            "loss_first": 7.61,
            "loss_last": 1.234567,
            "learning_rate": 3e-3,
            "batch_tokens": 8192,
            "curve": f"metrics/{step.replace('/', '-')}.jsonl",
        }
        self.stage(step, facts, seconds=seconds, watts=60.0 if model.startswith("flagship") else None)

    def score(
        self,
        task: str,
        model: str,
        value: float,
        *,
        n: int = 100,
        by: dict[str, Any] | None = None,
        **facts: Any,
    ) -> None:
        stderr = math.sqrt(max(value * (1 - value), 0.0001) / n) if value <= 1 else 0.01
        facts |= {
            "task": task,
            "model": model,
            "metric": "accuracy",
            "value": value,
            "stderr": stderr,
            "n": n,
        }
        self.add("score", f"eval/{task}/{model}", facts={"chance": None, **facts, "by": by or {}})


def parts(keys: Sequence[str], value: float, n: int = 25) -> dict[str, dict[str, float]]:
    """Return a breakdown in which the keys' values spread around `value`."""
    spread = {key: min(0.99, value * (0.85 + 0.3 * i / len(keys))) for i, key in enumerate(keys)}
    return {k: {"value": v, "stderr": math.sqrt(max(v * (1 - v), 1e-4) / n), "n": n} for k, v in spread.items()}


def curation() -> dict[str, Any]:
    example = {
        "id": "dirt-pii-1",
        "why": "an <e-mail>",
        "text": "Write to ada@example.com | **now** or +1 555 0100 200",
    }
    rules = ("cutoff", "language_id", "gopher_quality", "exact_duplicates", "near_duplicates", "pii")
    return {
        "documents": 24_310,
        "bytes": 7_912_345,
        "rules": {r: {"dropped": 31 + 7 * i, "bytes": 9000 + i, "examples": [example]} for i, r in enumerate(rules)},
        "languages": {code: {"documents": 3000, "bytes": 990_000 + i} for i, code in enumerate(CODES)},
        "undated": 122,
        "newest_date": "2026-06-29",
        "cutoff": "2026-06-30",
        "heldout": dict.fromkeys(CODES, 12_000),
        "sources": {"meadow": {"documents": 24_310, "license": "CC0-1.0"}},
    }


def fake_ledger() -> list[Record]:
    """Return the ledger of a whole imagined run."""
    fake = Fake()
    fake.add("start", "curate")
    fake.stage("curate", curation(), seconds=9)
    fertility = {code: {"characters_per_token": 3.1, "bytes_per_token": 3.9} for code in CODES}
    fake.stage(
        "tokenizer",
        {
            "n_vocab": 2256,
            "fertility": fertility,
            "tokens": 2_100_000,
            "learned": True,
            "herd_version": "0.1.0",
        },
        seconds=4,
    )
    fake.train("pretrain", "flagship/pretrain", tokens=4_194_304, seconds=180)
    fake.train("long-context/1024", "flagship/long/1024", tokens=262_144, seconds=15)
    fake.train("long-context/4096", "flagship/long/4096", tokens=262_144, seconds=10)
    fake.train("anneal", "flagship/base", tokens=524_288, seconds=24)
    fake.stage("teacher", {"model": "flagship/base", "tokens": 999_999, "top_k": 16}, seconds=20)
    for name in ("small", "tiny"):
        fake.train(f"distil/{name}", f"siblings/{name}/base", tokens=1_048_576, seconds=40, config=SMALL)
        fake.train(f"alone/{name}", f"siblings/{name}/alone", tokens=1_048_576, seconds=30, config=SMALL)
    fake.train("sft/flagship", "flagship/sft", tokens=400_000, seconds=30)
    fake.train("dpo/flagship", "flagship/instruct", tokens=90_000, seconds=12)
    fake.train("sft/small", "siblings/small/instruct", tokens=400_000, seconds=15, config=SMALL)
    fake.train("guard", "guard", tokens=300_000, seconds=14, config=SMALL)
    _scores(fake)
    for model in ("flagship/base", "flagship/instruct"):
        fake.stage(f"eval/{model}", {"model": model, "scores": 9}, seconds=30)
    fake.stage("eval/siblings/tiny/instruct", {"skipped": "this model was not made"}, seconds=0)
    return fake.records


def _scores(fake: Fake) -> None:
    models = {
        "flagship/base": 0.86,
        "flagship/instruct": 0.81,
        "siblings/small/base": 0.72,
        "siblings/small/alone": 0.66,
        "siblings/small/instruct": 0.7,
        "siblings/tiny/base": 0.51,
        "siblings/tiny/alone": 0.47,
    }
    grid = [f"{length}|{depth}" for length in (300, 900, 2500) for depth in (0, 0.25, 0.5, 0.75, 1)]
    for model, level in models.items():
        fake.score("knowledge", model, level, chance=0.25, by={"lang": parts(CODES, level)})
        fake.score("reasoning", model, level * 0.6)
        fake.score("arithmetic", model, level * 0.9)
        fake.score("code", model, level * 0.7)
        fake.score("needle", model, level, by={"length_depth": parts(grid, level)})
        fake.score(
            "bits_per_byte",
            model,
            1.4 - level,
            higher_is_better=False,
            by={"lang": parts(CODES, 1.4 - level)},
        )
        if not model.endswith("instruct"):
            facts = {"task": "tools", "model": model, "skipped": "a base model has no <tool> dialect"}
            fake.add("score", f"eval/tools/{model}", facts=facts)
    fake.score("tools", "flagship/instruct", 0.84)
    for model, level in {"flagship/instruct": 0.2, "flagship/instruct+guard": 0.08}.items():
        by = {"lang": parts(CODES, level), "hazard": parts(HAZARDS, level)}
        fake.score("violation_rate", model, level, higher_is_better=False, by=by)
        by = {"lang": parts(CODES, 0.1)}
        fake.score("false_refusal_rate", model, 0.15 - level / 2, higher_is_better=False, by=by)


def fake_curves() -> dict[str, list[dict[str, float]]]:
    steps = ("pretrain", "long-context/1024", "long-context/4096", "anneal", "distil/small", "alone/small")
    steps += ("distil/tiny", "alone/tiny")
    steps += ("sft/flagship", "dpo/flagship", "sft/small", "guard")
    return {
        step: [
            {"step": i, "tokens": 8192 * (i + 1), "loss": 1.2 + 0.1 * k + 6 * math.exp(-i / 60), "lr": 1e-3}
            for i in range(400)
        ]
        for k, step in enumerate(steps)
    }
