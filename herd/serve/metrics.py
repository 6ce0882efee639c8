"""What the server measures of itself, for Prometheus, in a registry of its own."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from herd.serve.worker import Worker

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class Metrics:
    """Counters and histograms, filled as things happen."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter("herd_requests", "Requests answered", ["path", "status"], registry=registry)
        self._first = Histogram(
            "herd_time_to_first_token_seconds",
            "From a request's arrival to its first token",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._each = Histogram(
            "herd_time_per_output_token_seconds",
            "Mean time between the tokens of an answer",
            ["model"],
            buckets=_SHORT,
            registry=registry,
        )
        self._decisions = Counter("herd_guard_decisions", "Verdicts", ["where", "decision"], registry=registry)
        self._judging = Histogram(
            "herd_guard_seconds", "From asking the guard to its verdict", ["where"], buckets=_SHORT, registry=registry
        )
        self._held = Histogram(
            "herd_guard_held_seconds",
            "How long the first token of a window waited for its verdict",
            buckets=_SECONDS,
            registry=registry,
        )

    def watch(self, workers: Callable[[], Iterable[Worker]]) -> None:
        """Read these engines' counts at every scrape."""
        self._registry.register(_Engines(workers))

    def answered(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()

    def first_token(self, model: str, seconds: float) -> None:
        """Note a time to first token."""
        self._first.labels(model).observe(seconds)

    def per_token(self, model: str, seconds: float) -> None:
        """Note an answer's mean time between tokens."""
        self._each.labels(model).observe(seconds)

    def judged(self, where: str, *, safe: bool, seconds: float) -> None:
        """Count a verdict of the guard."""
        self._decisions.labels(where, "safe" if safe else "unsafe").inc()
        self._judging.labels(where).observe(seconds)

    def held(self, seconds: float) -> None:
        """Note how long a window was held back."""
        self._held.observe(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _Engines(Collector):
    """The engines' own counts, read when asked for."""

    def __init__(self, workers: Callable[[], Iterable[Worker]]) -> None:
        self._workers = workers

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        gauges = {
            name: GaugeMetricFamily(f"herd_{name}", text, labels=["model"])
            for name, text in {
                "waiting": "Requests in the queue",
                "running": "Requests that get tokens",
                "tokens_per_second": "Tokens generated, a second, over the last ten",
                "cache_blocks_used": "Blocks of the key/value cache that requests hold",
                "cache_blocks": "Blocks of the key/value cache",
            }.items()
        }
        counters = {
            name: CounterMetricFamily(f"herd_{name}", text, labels=["model"])
            for name, text in {
                "generated_tokens": "Tokens generated",
                "prompt_tokens": "Tokens of prompts",
                "reused_tokens": "Tokens of prompts found in the cache",
                "drafted_tokens": "Tokens guessed ahead",
                "accepted_tokens": "Guessed tokens that became part of an answer",
                "preemptions": "Requests that had to make room for others and start again",
            }.items()
        }
        for worker in self._workers():
            stats = worker.stats()
            values = {
                "waiting": stats.waiting,
                "running": stats.running,
                "tokens_per_second": worker.rate(),
                "cache_blocks_used": stats.blocks_used,
                "cache_blocks": stats.blocks_total,
                "generated_tokens": stats.tokens,
                "prompt_tokens": stats.prompt_tokens,
                "reused_tokens": stats.reused_tokens,
                "drafted_tokens": stats.drafted,
                "accepted_tokens": stats.accepted,
                "preemptions": stats.preemptions,
            }
            for name, family in (gauges | counters).items():
                family.add_metric([worker.name], values[name])
        yield from gauges.values()
        yield from counters.values()
