"""What a compressor is, and what it may ask of the floors above: a token counter, a base that speaks, a download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol


class Span(NamedTuple):
    """A token of a text and how little it was to be expected."""

    start: int
    """Index of its first character in the text."""
    end: int
    """Index after its last one."""
    surprisal: float
    """Minus the natural logarithm of its probability after everything before it."""


class LanguageModel(Protocol):
    """The base model, as far as a compressor needs it."""

    def surprisal(self, text: str) -> Sequence[Span]:
        """Return the text's tokens, in order, each with its surprisal."""

    def rewrite(self, prompt: str, max_tokens: int) -> str:
        """Return the greedy answer to a prompt, cut after `max_tokens`."""

    def close(self) -> None:
        """Free the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a compressor may use besides its settings; nothing of it is loaded before it is called."""

    count_tokens: Callable[[str], int]
    """Counts as the base does."""
    base_id: str
    """Changes whenever the base's counts or answers may."""
    folder: Path
    """Where relative paths in the settings begin."""
    load_model: Callable[[], LanguageModel]
    """Loads the base."""
    download: Callable[[str], Path]
    """Returns the local folder of a Hub id; raises ModelError."""


class Compressor(Protocol):
    """A way of shortening a template; made from the settings and the tools."""

    name: ClassVar[str]
    """The value of `method` in `[compression]`."""

    def inputs(self, taus: Sequence[float]) -> Any:
        """Return what decides the texts besides template, settings, base and tau, as JSON; raises PilocalError."""
        return None

    def check(self, template: str, taus: Sequence[float]) -> None:
        """Raise PilocalError for what will not do at any of the taus, as far as that shows before the work."""

    def compress(self, template: str, tau: float) -> str:
        """Return the template at `tau` (0 to 1, both excluded) of its tokens."""

    def close(self) -> None:
        """Free what was loaded."""
