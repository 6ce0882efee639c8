"""Published training runs beside what a plan says of them. One row is calibrated on, all others are predictions.

Sources: table 4 of arXiv:2407.21783; torchtitan's benchmarks/llama3_h100_202412_torchtitan.md and
asyncTP_llama3_h100_2025-06_torchtitan.md, and its docs/performance.md (A100); the model card of Llama 3.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from herd.model.published import published
from herd.parallel.config import ParallelConfig
from herd.plan.cards import CARDS, GIB, Card
from herd.plan.estimate import Plan
from herd.plan.run import PAPER, TITAN, Run, Trainer

# torchtitan's H100s have other memory and a limit of 500 W; a bar of 94 GiB is what their driver leaves of 96
_CAPPED = replace(CARDS["h100"], name="H100 96 GB, 500 W", memory=94.0 * GIB, bandwidth=2.4e12, limit=500)
_SHARDED = replace(TITAN, score_bytes=16)  # DTensor's log-softmax keeps one copy of the scores more
_ASYNC = replace(_SHARDED, overlapped=("tp",))
_M = 1 << 20


@dataclass(frozen=True)
class Row:
    """One published run: what was reported, in tokens/s or TFLOP/s a card and GiB reserved, and the run."""

    source: str
    name: str
    run: Run
    card: Card
    tokens: float | None = None
    tflops: float | None = None
    memory: float | None = None
    note: str = ""

    @property
    def plan(self) -> Plan:
        """The plan of it."""
        return Plan(self.run, self.card)


CALIBRATED = "8B, 8 cards, FSDP, compiled"


def rows() -> Iterator[Row]:
    """Yield all published runs."""
    yield from _paper()
    yield from _titan_8b()
    yield from _titan_large()
    yield from _titan_async()
    yield from _a100()


def _paper() -> Iterator[Row]:
    source, card, config = "paper, table 4", CARDS["h100"], published("llama3.1-405b")
    mesh = ParallelConfig(tp=8, pp=16, schedule="Interleaved1F1B")
    for cards, cp, data, length, tflops in (
        (8192, 1, 64, 8192, 430),
        (16384, 1, 128, 8192, 400),
        (16384, 16, 8, 131072, 380),
    ):
        parallel = mesh.model_copy(update={"cp": cp, "dp_shard": data})
        run = Run(config, parallel, length, 16 * _M, 1, PAPER)
        yield Row(source, f"405B, {cards:,} cards, rows of {length:,}", run, card, tflops=tflops)


def _titan(name: str, size: str, mesh: ParallelConfig, batch: tuple[int, int, int], trainer: Trainer) -> Row:
    """Return a row without its figures; batch: row length, rows a step, rows a micro-batch."""
    length, count, micro = batch
    run = Run(published(f"llama3.1-{size.lower()}"), mesh, length, count * length, micro, trainer)
    return Row("torchtitan 2024-12", f"{size}, {name}", run, _CAPPED)


def _titan_8b() -> Iterator[Row]:
    plain = ParallelConfig(recompute="selective")
    compiled = plain.model_copy(update={"compile": True})
    float8 = compiled.model_copy(update={"float8": True})
    reported = {
        8: ((5762, 82.4), (6667, 77.0), (8532, 76.8)),
        128: ((5605, 67.0), (6514, 62.0), (8380, 61.8)),
    }
    for cards, figures in reported.items():
        for mesh, name, (tokens, memory) in zip(
            (plain, compiled, float8), ("", ", compiled", ", compiled, float8"), figures, strict=True
        ):
            sharded = mesh.model_copy(update={"dp_shard": cards})
            row = _titan(f"{cards} cards, FSDP{name}", "8B", sharded, (8192, 2 * cards, 2), TITAN)
            yield replace(row, tokens=tokens, memory=memory)
    full = float8.model_copy(update={"recompute": "full"})
    for cp, tokens, memory in ((1, 3890, 83.9), (2, 2540, 84.2), (4, 1071, 84.0), (8, 548, 84.5)):
        mesh = full.model_copy(update={"dp_shard": 8 // cp, "cp": cp})
        row = _titan(f"8 cards, cp {cp}, rows of {32768 * cp:,}, float8", "8B", mesh, (32768 * cp, 8 // cp, 1), TITAN)
        yield replace(row, tokens=tokens, memory=memory, note="passes keys around a ring" if cp > 1 else "")


def _titan_large() -> Iterator[Row]:
    full = ParallelConfig(recompute="full", compile=True, float8=True, tp=8)
    two = full.model_copy(update={"dp_shard": 32})
    for name, trainer, tokens, memory in (("", _SHARDED, 829, 71.9), (", async tp", _ASYNC, 876, 67.6)):
        row = _titan(f"256 cards, FSDP, tp 8, float8{name}", "70B", two, (8192, 512, 16), trainer)
        yield replace(row, tokens=tokens, memory=memory)
    three = full.model_copy(update={"pp": 8, "dp_shard": 8})
    row = _titan("512 cards, FSDP, tp 8, pp 8, float8", "405B", three, (8192, 256, 4), _ASYNC)
    yield replace(row, tokens=100, memory=82.5)
    looped = three.model_copy(update={"schedule": "Interleaved1F1B"})
    row = _titan("the same, interleaved", "405B", looped, (8192, 256, 2), _ASYNC)
    yield replace(row, tokens=128, memory=72.7, note="two stages a rank assumed")
    for cp, tokens, memory in ((1, 76, 75.3), (2, 47, 75.9), (4, 31, 77.1), (8, 16, 84.9)):
        mesh = three.model_copy(update={"dp_shard": 8 // cp, "cp": cp})
        row = _titan(f"512 cards, cp {cp}, rows of {32768 * cp:,}", "405B", mesh, (32768 * cp, 64 // cp, 1), _ASYNC)
        yield replace(row, tokens=tokens, memory=memory, note="passes keys around a ring" if cp > 1 else "")


def _titan_async() -> Iterator[Row]:
    large = ParallelConfig(recompute="full", compile=True, tp=8, dp_shard=32)
    small = ParallelConfig(recompute="selective", compile=True, tp=8, dp_shard=8)
    for size, mesh, batch, name, reported in (
        ("70B", large, (8192, 512, 16), "256 cards, FSDP, tp 8", (597.3, 652.4)),
        ("8B", small, (8192, 96, 12), "64 cards, FSDP, tp 8", (4378, 4809)),
    ):
        for trainer, more, tokens in zip((_SHARDED, _ASYNC), ("", ", async tp"), reported, strict=True):
            row = _titan(name + more, size, mesh, batch, trainer)
            yield replace(row, source="torchtitan 2025-06", tokens=tokens)


def _a100() -> Iterator[Row]:
    for size, recompute, tokens in (("8B", "selective", 2973), ("70B", "full", 331)):
        mesh = ParallelConfig(dp_shard=64, recompute=recompute)
        row = _titan("64 cards, FSDP", size, mesh, (8192, 64, 1), TITAN)
        yield replace(row, source="torchtitan, A100", card=CARDS["a100"], tokens=tokens)


@dataclass(frozen=True)
class Hours:
    """GPU-hours of the model card, and a plan on a mesh that is ours: the card names none."""

    name: str
    tokens: float
    reported: float
    plan: Plan

    @property
    def predicted(self) -> float:
        """Device-hours when every step counts."""
        return self.tokens / self.plan.tokens_per_card / 3600


def hours() -> Iterator[Hours]:
    """Yield the card's GPU-hours: 15 T tokens, 15.6 T for 405B, in rows of 8,192."""
    card = CARDS["h100"]
    for size, tokens, reported, mesh, batch in (
        ("8B", 15.0e12, 1.46e6, ParallelConfig(dp_shard=8, dp_replicate=64, recompute="selective"), 4 * _M),
        ("70B", 15.0e12, 7.0e6, ParallelConfig(tp=8, dp_shard=64, dp_replicate=2, recompute="selective"), 8 * _M),
        ("405B", 15.6e12, 30.84e6, ParallelConfig(tp=8, pp=16, dp_shard=128, schedule="Interleaved1F1B"), 16 * _M),
    ):
        run = Run(published(f"llama3.1-{size.lower()}"), mesh, 8192, batch, 1, PAPER)
        yield Hours(size, tokens, reported, Plan(run, card))
