"""What a compressor is, and the tools that it is given: a token counter, the base, a download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol


class Span(NamedTuple):
    """A token of a text and how unexpected it was."""

    start: int
    """Index of its first character in the text."""
    end: int
    """Index after its last one."""
    surprisal: float
    """Minus the natural logarithm of its probability given everything before it."""


class LanguageModel(Protocol):
    """The part of the base model that compressors use."""

    def surprisal(self, text: str) -> Sequence[Span]:
        """Return the text's tokens, in order, each with its surprisal."""

    def rewrite(self, prompt: str, max_tokens: int) -> str:
        """Return the greedy answer to a prompt, cut after `max_tokens`."""

    def close(self) -> None:
        """Free the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a compressor may use besides its settings; nothing is loaded before it is called."""

    count_tokens: Callable[[str], int]
    """Counts tokens as the base does."""
    base_id: str
    """Identifies the base; changes whenever its token counts or answers may change."""
    folder: Path
    """The folder that relative paths in the settings start from."""
    load_model: Callable[[], LanguageModel]
    """Loads the base."""
    download: Callable[[str], Path]
    """Returns the local folder of a Hub id; raises ModelError."""


class Compressor(Protocol):
    """A way of shortening a template; made from the settings and the tools."""

    name: ClassVar[str]
    """The value of `method` in `[compression]`."""

    def inputs(self, taus: Sequence[float]) -> Any:
        """Return whatever else determines the texts, besides template, settings, base and tau, as JSON.

        Raises PilocalError.
        """
        return None

    def check(self, template: str, taus: Sequence[float]) -> None:
        """Raise PilocalError for whatever would fail at any of the taus, as far as this shows before any work."""
        return None

    def compress(self, template: str, tau: float) -> str:
        """Return the template shortened to the share `tau` (between 0 and 1, both excluded) of its tokens."""

    def close(self) -> None:
        """Free what was loaded."""
        return None
