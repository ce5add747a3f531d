"""RUN/export/confidence.json: under which confidence the full prompt answers better, as the evaluation found it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pilocal.errors import RunError
from pilocal.run_folder.files import MISSHAPEN, read_json, write_json
from pilocal.run_folder.typed import made

FILE = "confidence.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The threshold of a run, and what it does on the validation examples that it was chosen on."""

    threshold: float | None
    """Answers with a lower mean log-probability, in nats per token, are left to the full prompt; None for none."""
    examples: int
    """How many validation examples there were."""
    wrong: int
    """How many of them the served files answer not quite right."""
    unsure: int
    """How many of them lie under the threshold."""
    score: float
    """The metric's, of the served files alone."""
    score_with_fallback: float
    """The metric's, where the full prompt answers those under the threshold."""

    @property
    def line(self) -> str:
        """What it does, for people.

        >>> Calibration(
        ...     threshold=-0.25, examples=120, wrong=15, unsure=12, score=0.875, score_with_fallback=0.95
        ... ).line
        '12 of 120 validation answers; score 0.875, then 0.950'
        """
        if self.threshold is None:
            return f"never: {self.why_none}"
        scores = f"score {self.score:.3f}, then {self.score_with_fallback:.3f}"
        return f"{self.unsure} of {self.examples} validation answers; {scores}"

    @property
    def why_none(self) -> str:
        """Why there is no threshold."""
        if not self.wrong:
            return f"all {self.examples} validation answers are right"
        return f"no threshold gains anything on the {self.examples} validation examples"

    def save(self, export: Path) -> Path:
        """Write it into RUN/export; return the file."""
        write_json(export / FILE, asdict(self))
        return export / FILE


def read_calibration(export: Path) -> Calibration | None:
    """Return what RUN/export holds; None where nothing was calibrated. Raises RunError for a damaged file."""
    path = export / FILE
    try:
        found = made(Calibration, read_json(path))
        _ = found.line
    except FileNotFoundError:
        return None
    except MISSHAPEN as error:
        fix = "delete this file and run `pilocal evaluate`"
        raise RunError(path, f"damaged: {error}", fix=fix) from None
    return found


def forget_calibration(export: Path) -> None:
    """Delete it, because other weights are served, or another form of them."""
    (export / FILE).unlink(missing_ok=True)
