"""What the server counts, for Prometheus."""

from __future__ import annotations

from typing import Any

from pilocal.serve.request_log import Entry

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the histograms."""


class Metrics:
    """Counters, histograms and a gauge in a registry of their own.

    Tasks are named only once they are known, so that what clients send cannot fill the memory.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry: Any = CollectorRegistry()
        where: dict[str, Any] = {"registry": self._registry}
        by = ("task", "arm")
        self._requests = Counter("pilocal_requests", "Requests for an answer, by HTTP status", (*by, "status"), **where)
        self._tokens = {
            "prompt": Counter("pilocal_prompt_tokens", "Tokens of prompts that were answered", by, **where),
            "completion": Counter("pilocal_completion_tokens", "Tokens of answers", by, **where),
            "saved": Counter("pilocal_saved_tokens", "Prompt tokens that callers sent in vain", by, **where),
        }
        self._first = Histogram(
            "pilocal_first_token_seconds", "From the request to its first token", by, buckets=SECONDS, **where
        )
        self._total = Histogram(
            "pilocal_request_seconds", "From the request to the end of its answer", by, buckets=SECONDS, **where
        )
        self._waiting = Gauge("pilocal_waiting_requests", "Requests in line", **where)

    def wait(self, count: int) -> None:
        """Set how many requests are in line."""
        self._waiting.set(count)

    def count(self, entry: Entry) -> None:
        """Count a finished request."""
        self._requests.labels(entry.task, entry.arm, str(entry.status)).inc()
        if not entry.arm:
            return
        self._tokens["prompt"].labels(entry.task, entry.arm).inc(entry.prompt_tokens)
        self._tokens["completion"].labels(entry.task, entry.arm).inc(entry.completion_tokens)
        self._tokens["saved"].labels(entry.task, entry.arm).inc(entry.saved_tokens)
        self._total.labels(entry.task, entry.arm).observe(entry.seconds)
        if entry.first_token_seconds is not None:
            self._first.labels(entry.task, entry.arm).observe(entry.first_token_seconds)

    def page(self) -> tuple[bytes, str]:
        """Return the metrics as text, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
