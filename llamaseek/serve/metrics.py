"""Prometheus metrics. Labels are routes and kinds, never user text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from llamaseek.engine.background import BackgroundEngine
from llamaseek.engine.request import Delta
from llamaseek.serve.callers import Caller, current_caller

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters of the server, and values that are read from the engine at each scrape."""

    def __init__(self, background: BackgroundEngine) -> None:
        self.registry = registry = CollectorRegistry()
        self.responses = Counter(
            "llamaseek_responses", "Answers by route and status.", ["route", "status"],
            registry=registry,
        )  # fmt: skip
        self.refusals = Counter(
            "llamaseek_refusals", "Requests not taken, by reason.", ["reason"], registry=registry
        )
        self.first_token = Histogram(
            "llamaseek_time_to_first_token_seconds", "From asking to the first token.",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.per_token = Histogram(
            "llamaseek_time_per_token_seconds", "Mean time of a token after the first.",
            buckets=TOKEN_SECONDS, registry=registry,
        )  # fmt: skip
        registry.register(_EngineFigures(background))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


@dataclass
class Clock:
    """Times the tokens of one request by the moments at which the engine drew them, for the
    histograms and the client, and charges them to its API key."""

    metrics: Metrics
    start: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float = 0.0
    tokens: int = 0
    at_first: int = 0  # of these, drawn at the first moment
    answers: int = 1
    caller: Caller | None = field(default_factory=current_caller)

    def see(self, deltas: Sequence[Delta]) -> None:
        """Tokens have come."""
        drawn = [delta for delta in deltas if delta.tokens]
        for delta in drawn:
            if self.first is None:
                self.first = delta.moment
                self.metrics.first_token.observe(self.first - self.start)
            self.last = delta.moment
            self.at_first += len(delta.tokens) * (delta.moment == self.first)
        count = sum(len(delta.tokens) for delta in drawn)
        self.tokens += count
        if self.caller is not None:
            self.caller.charge(count)

    def end(self) -> None:
        """The request is answered."""
        if self.first is not None and self.tokens > self.answers:
            seconds = (self.last - self.first) * self.answers
            self.metrics.per_token.observe(seconds / (self.tokens - self.answers))

    def timings(self, prompt: int, generated: int) -> dict[str, float | None]:
        """Times of a request with so many tokens, by llama.cpp's names.

        `prompt_ms` is from the request to the first token, `predicted_ms` from there to the last;
        the rate is that of the tokens between, None where there are none.
        """
        first = self.start if self.first is None else self.first
        seconds = max(self.last - first, 0.0)
        rate = round((self.tokens - self.at_first) / seconds, 2) if seconds else None
        return {
            "prompt_n": prompt,
            "prompt_ms": round(1000 * (first - self.start), 3),
            "predicted_n": generated,
            "predicted_ms": round(1000 * seconds, 3),
            "predicted_per_second": rate,
        }


class _EngineFigures:
    """Read from the engine at each scrape."""

    def __init__(self, background: BackgroundEngine) -> None:
        self.background = background

    def collect(self) -> Iterator[Metric]:
        """The engine's gauges and counters."""
        engine = self.background.engine
        scheduler, done = engine.scheduler, engine.statistics
        for name, text, value in (
            ("requests_in_flight", "Requests running or waiting.", self.background.in_flight),
            ("answers_running", "Answers that the engine computes.", len(scheduler.running)),
            ("answers_waiting", "Answers in the engine's queue.", len(scheduler.waiting)),
            ("cache_blocks", "Blocks of the cache.", engine.pool.count),
            ("cache_blocks_used", "Blocks that answers hold.", engine.pool.used),
            ("cache_use", "Share of the cache that answers hold.",
             engine.pool.used / engine.pool.count),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"llamaseek_{name}", text, value)
        for name, text, value in (
            ("steps", "Forwards of the model.", done.steps),
            ("prompt_tokens", "Tokens of prompts.", done.prompt),
            ("cached_tokens", "Of these, found in shared blocks.", done.cached),
            ("output_tokens", "Tokens said.", done.output),
            ("drafted_tokens", "Tokens drafted ahead.", done.drafted),
            ("accepted_tokens", "Of these, accepted.", done.accepted),
            ("preemptions", "Sequences that were preempted.", scheduler.preemptions),
            ("answers_finished", "Answers finished.", done.finished),
            ("answers_failed", "Answers that failed.", done.failed),
            ("requests_cancelled", "Requests dropped.", done.cancelled),
        ):
            yield CounterMetricFamily(f"llamaseek_{name}", text, value)
