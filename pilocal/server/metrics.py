"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pilocal.llamacpp.scheduler import Scheduler
from pilocal.server.agreement import Agreement
from pilocal.server.engines import Engines
from pilocal.server.request_log import RequestLogEntry

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the histograms."""


@dataclass(slots=True)
class Tally:
    """How a task's answers compare with those of the base under the full prompt."""

    task: str
    compared: int = 0
    same: int = 0
    """How many of them are the same text."""
    agree: int | None = None
    """How many of them say the same by the task's metric; None where it cannot compare answers here."""

    def add(self, found: Agreement) -> None:
        """Count an answer."""
        self.compared += 1
        self.same += found.same
        if found.agrees is not None:
            self.agree = (self.agree or 0) + found.agrees


class Metrics:
    """Counters, histograms and a gauge in a registry of their own.

    Only known tasks become labels, so that what clients send cannot fill the memory.
    """

    def __init__(self, engines: Engines) -> None:
        """Take the engines, whose own counts are read whenever somebody asks."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry: Any = CollectorRegistry()
        self._gauges: dict[str, Any] = {}
        common: dict[str, Any] = {"registry": self._registry}
        labels = ("task", "arm")
        self._requests = Counter(
            "pilocal_requests", "Requests for an answer, by HTTP status", (*labels, "status"), **common
        )
        self._tokens = {
            "prompt": Counter("pilocal_prompt_tokens", "Tokens of prompts that were answered", labels, **common),
            "completion": Counter("pilocal_completion_tokens", "Tokens of answers", labels, **common),
            "saved": Counter("pilocal_saved_tokens", "Prompt tokens that callers sent in vain", labels, **common),
        }
        self._near_misses = Counter(
            "pilocal_near_misses",
            "Requests with a changed template, answered by the base as they stand",
            ("task",),
            **common,
        )
        self._first = Histogram(
            "pilocal_first_token_seconds", "From the request to its first token", labels, buckets=SECONDS, **common
        )
        self._total = Histogram(
            "pilocal_request_seconds", "From the request to the end of its answer", labels, buckets=SECONDS, **common
        )
        self._shadows = Counter(
            "pilocal_shadow_requests",
            "Answers compared with the base's under the full prompt, by whether both are the same",
            ("task", "same"),
            **common,
        )
        self._agreements = Counter(
            "pilocal_shadow_metric_requests",
            "Answers compared with the base's under the full prompt, by whether the task's metric finds them alike",
            ("task", "agrees"),
            **common,
        )
        self._unsure = Counter(
            "pilocal_low_confidence_requests",
            "Requests that the adapter was not sure of, by who answered them then",
            labels,
            **common,
        )
        self._tallies: dict[str, Tally] = {}
        self._waiting = Gauge("pilocal_waiting_requests", "Requests in line", **common)
        memory = Gauge("pilocal_embedding_bytes", "Keys, values and outputs that embeddings have room for", **common)
        memory.set_function(lambda: engines.embeddings.memory)
        for name, engine in engines.all().items():
            self._watch(name, engine, common)

    def _watch(self, name: str, engine: Scheduler, common: dict[str, Any]) -> None:
        from prometheus_client import Gauge

        told: dict[str, tuple[str, Callable[[], float]]] = {
            "cached_tokens": ("Tokens whose keys and values are kept", lambda: engine.sequences.used),
            "cache_capacity_tokens": ("Tokens whose keys and values fit", lambda: engine.sequences.capacity),
            "computed_tokens_total": ("Tokens that were computed", lambda: engine.counts.computed),
            "reused_tokens_total": ("Prompt tokens that were cached", lambda: engine.counts.reused),
            "evicted_sequences_total": ("Sequences that made room", lambda: engine.sequences.evicted),
            "preempted_requests_total": ("Requests that started again", lambda: engine.counts.preempted),
        }
        for what, (text, read) in told.items():
            gauge = self._gauges.get(what) or Gauge(f"pilocal_{what}", text, ("engine",), **common)
            self._gauges[what] = gauge
            gauge.labels(name).set_function(read)

    def set_waiting(self, count: int) -> None:
        """Set how many requests wait in the queue."""
        self._waiting.set(count)

    def count_shadow(self, found: Agreement) -> None:
        """Count an answer that was compared with the base's."""
        self._shadows.labels(found.task, str(found.same).lower()).inc()
        if found.agrees is not None:
            self._agreements.labels(found.task, str(found.agrees).lower()).inc()
        self._tallies.setdefault(found.task, Tally(found.task)).add(found)

    def tallies(self) -> list[dict[str, Any]]:
        """Return what the page shows of answers that were compared: per task, as JSON."""
        return [asdict(tally) for tally in self._tallies.values()]

    def count_unsure(self, task: str, arm: str) -> None:
        """Count a request that the adapter was not sure of; `arm` is who answered it then."""
        self._unsure.labels(task, arm).inc()

    def count(self, entry: RequestLogEntry) -> None:
        """Count a finished request."""
        self._requests.labels(entry.task, entry.arm, str(entry.status)).inc()
        if not entry.arm:
            return
        self._tokens["prompt"].labels(entry.task, entry.arm).inc(entry.prompt_tokens)
        self._tokens["completion"].labels(entry.task, entry.arm).inc(entry.completion_tokens)
        self._tokens["saved"].labels(entry.task, entry.arm).inc(entry.saved_tokens)
        if entry.near_miss:
            self._near_misses.labels(entry.task).inc()
        self._total.labels(entry.task, entry.arm).observe(entry.seconds)
        if entry.first_token_seconds is not None:
            self._first.labels(entry.task, entry.arm).observe(entry.first_token_seconds)

    def exposition(self) -> tuple[bytes, str]:
        """Return the metrics in Prometheus's text format, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
