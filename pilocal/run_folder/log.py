"""A stage's metrics.jsonl: one line per step, and what can be told from it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pilocal.errors import RunError
from pilocal.run_folder.files import MISSHAPEN, parse_json, replacing
from pilocal.run_folder.typed import made

FILE = "metrics.jsonl"

RECENT = 20
"""How many steps the speed is averaged over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a stage of an adaptive schedule ends here, with the figures that decide it."""

    next_valid_loss: float
    """The validation loss under the next stage's prompt, in nats per token."""
    margin: float
    """The most that the loss may rise when the prompt is cut, in nats per token."""
    steps_left: int
    """Steps that the stage may still take."""
    moves_on: bool
    """Whether the stage ends here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """What one optimizer step showed; the fields are the keys of a line, in their order."""

    step: int
    """The step's number in the whole run, from 1."""
    learning_rate: float
    loss: float
    """Mean per completion token, in nats, before the step."""
    gradient_norm: float
    """Before clipping."""
    trained_tokens: int
    """Completion tokens."""
    prompt_tokens: int
    computed_tokens: int
    """Tokens that ran through the model, padding included and what rows share counted once."""
    padding: float
    """Share of the computed tokens that stands for nothing."""
    seconds: float
    peak_memory: int
    """Bytes."""
    valid_loss: float | None = None
    """Mean per completion token of the validation rows, in nats, after the step; None when it was not computed."""
    valid_seconds: float | None = None
    """What that took, the decision included; None also in lines of former versions."""
    decision: Decision | None = None
    """None where nothing was decided."""

    @property
    def tokens(self) -> int:
        """Tokens of the step's rows, each row counted whole."""
        return self.trained_tokens + self.prompt_tokens

    def as_json(self) -> str:
        """Return the line, without its end."""
        values = asdict(self)
        for name in ("valid_loss", "valid_seconds", "decision"):
            if values[name] is None:
                del values[name]
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> StepLine:
        """Read a line; raises one of MISSHAPEN for one that is damaged."""
        values: dict[str, Any] = dict(parse_json(text))
        if "decision" in values:
            values["decision"] = made(Decision, values["decision"])
        return made(cls, values)


def read_log(path: Path) -> list[StepLine]:
    """Return the lines of a metrics.jsonl, none where there is no file; a last line that was cut short is left out.

    Raises RunError for another line that is damaged.
    """
    texts = path.read_bytes().decode("utf-8", "replace").splitlines() if path.is_file() else []
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(StepLine.from_json(text))
        except MISSHAPEN as error:
            if number < len(texts):
                fix = "delete the stage's checkpoint folder and this file, and train again"
                raise RunError(f"{path}:{number}", f"damaged: {error}", fix=fix) from None
    return lines


class Log:
    """The lines of the steps that were taken so far."""

    def __init__(self, path: Path) -> None:
        """Read what is there; raises what `read_log` raises."""
        self.path = path
        self.lines = read_log(path)

    def append(self, line: StepLine) -> None:
        """Add the line of a step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line.as_json() + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that were taken after the checkpoint and will be taken again."""
        self.lines = [line for line in self.lines if line.step <= step]
        if self.path.is_file():
            with replacing(self.path) as file:
                file.writelines(line.as_json() + "\n" for line in self.lines)

    def lowest(self) -> float:
        """Return the lowest validation loss so far, or infinity."""
        return min(self._valid_losses(), default=math.inf)

    def is_stale(self, patience: int | None) -> bool:
        """Tell whether the last `patience` validation losses brought no new low; never when None."""
        if patience is None:
            return False
        losses = self._valid_losses()
        return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience

    def speed(self) -> str:
        """Return rendered tokens per second and the peak of memory, over the recent steps."""
        recent = self.lines[-RECENT:]
        seconds = sum(line.seconds for line in recent)
        tokens = sum(line.tokens for line in recent)
        peak = max(line.peak_memory for line in recent)
        return f"{tokens / max(seconds, 1e-9):,.0f} tokens/s  {peak / 2**30:.2f} GiB"

    def _valid_losses(self) -> list[float]:
        return [line.valid_loss for line in self.lines if line.valid_loss is not None]
