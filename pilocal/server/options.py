"""How runs are served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pilocal.errors import InputError, raise_all
from pilocal.server.access import read_origin

LOW_CONFIDENCE = "low-confidence"
"""What `fallback_on` may be."""

MOST_PARALLEL = 128
"""llama.cpp takes 256 sequences in all, those that are kept included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of `pilocal serve`; raises InputError, or Faults, when one is out of its bounds."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8080
    """Port to listen on; 0 takes a free one."""
    context: int = 2048
    """Longest prompt and answer together, in tokens."""
    threads: int | None = None
    """Threads of llama.cpp. None leaves the choice to it: half of the cores for an answer, all of them for a prompt."""
    parallel: int = 16
    """Requests that are answered at once."""
    exact: bool = False
    """Whether each request is answered alone, so that no sum depends on others; `parallel` then means nothing."""
    cache: int = 1024
    """MiB of keys and values that are kept; never less than one context."""
    queue: int = 16
    """Requests that may wait behind those being answered."""
    grace: int = 30
    """Seconds that a server which is stopped gives the answers that go on."""
    fallback_share: float = 0.0
    """Share of a task's requests that the base answers with the full prompt."""
    fallback_on: str | None = None
    """"low-confidence" leaves answers that an adapter is not sure of to the base with the full prompt; None leaves
    none. The threshold is the one that `pilocal evaluate` has chosen."""
    shadow_share: float = 0.0
    """Share of an adapter's answers that are compared with the base's under the full prompt, for /metrics."""
    api_key_file: Path | None = None
    """File with the key that clients must send; needed when others can reach the server."""
    allow_origins: tuple[str, ...] = ()
    """Origins, such as http://localhost:3000, whose web pages may use the server; "*" lets every page."""
    log_contents: bool = False
    """Whether log entries say what was asked and answered."""

    def __post_init__(self) -> None:
        fix = "see `pilocal serve --help`"
        bounds = {
            "port": 0 <= self.port <= 65535,
            "context": self.context >= 1,
            "threads": self.threads is None or self.threads >= 1,
            "parallel": 1 <= self.parallel <= MOST_PARALLEL,
            "cache": self.cache >= 0,
            "queue": self.queue >= 0,
            "grace": self.grace >= 1,
            "fallback_share": 0 <= self.fallback_share <= 1,
            "fallback_on": self.fallback_on in (None, LOW_CONFIDENCE),
            "shadow_share": 0 <= self.shadow_share <= 1,
        }
        faults = [
            InputError(name, "out of bounds", got=getattr(self, name), fix=fix)
            for name, inside in bounds.items()
            if not inside
        ]
        for origin in self.allow_origins:
            try:
                read_origin(origin)
            except InputError as fault:
                faults.append(fault)
        raise_all(faults)
