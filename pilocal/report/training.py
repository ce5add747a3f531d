"""The loss, stage by stage, and what each stage took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pilocal.chart import Line, Panel, panels_chart
from pilocal.report.figures import clock, figure, small
from pilocal.report.markup import Html, missing, section, table
from pilocal.report.pictures import picture
from pilocal.report.record import Part, Record
from pilocal.run_folder.log import StepLine
from pilocal.task.text import byte_size

MOST = 600
"""Points of a line in the picture; of more steps, the mean of neighbours is drawn."""

LEAST = 1e-9
"""Smaller losses are shown at this height: a logarithmic axis has no 0."""


def training(record: Record) -> Html:
    """Return the picture of the loss with the stages' borders, and the stages as a table."""
    title, parts = "The training", record.parts
    if not parts:
        return section(title, missing("Nothing has been trained here yet.", record.command("train")))
    lines = [line for part in parts for line in part.lines]
    borders = [part.lines[0].step - 0.5 for part in parts[1:]]

    def draw(path: Path) -> None:
        panel = Panel(lines=[*_losses(lines), *_valid_losses(lines)], y="loss, nats per token", log_y=True)
        heading = "Loss per token of the answers; thin lines part the stages"
        panels_chart(path, [panel], title=heading, x="optimizer step", marks=borders)

    said = "; ".join(f"{part.name} ends at {small(part.lines[-1].loss)}" for part in parts)
    caption = "The loss jumps where a stage takes a part of the prompt away, and falls as that is learned."
    shown = picture(caption, draw, name="loss", says=f"The loss by step, in nats per token. {said}.")
    head = ("stage", "tau", "shots", "steps", "first loss", "last loss", "validation", "time", "tokens/s", "memory")
    rows = [_row(part) for part in parts]
    return section(title, shown, table("The stages; losses in nats per token, memory at its peak", head, rows))


def _row(part: Part) -> tuple[str, ...]:
    lines, seconds = part.lines, sum(line.seconds for line in part.lines)
    valid = [line.valid_loss for line in lines if line.valid_loss is not None]
    return (
        part.name,
        "" if part.tau is None else f"{part.tau:.2f}",
        "" if part.shots is None else str(part.shots),
        f"{len(lines):,}",
        small(lines[0].loss),
        small(lines[-1].loss),
        small(valid[-1] if valid else None),
        clock(seconds),
        figure(sum(line.tokens for line in lines) / seconds if seconds else None),
        byte_size(max(line.peak_memory for line in lines)),
    )


def _losses(lines: Sequence[StepLine]) -> list[Line]:
    """Return the training loss, with no more than MOST points."""
    width = -(-len(lines) // MOST)
    groups = [lines[start : start + width] for start in range(0, len(lines), width)]
    x = [group[len(group) // 2].step for group in groups]
    y = [max(sum(line.loss for line in group) / len(group), LEAST) for group in groups]
    return [Line(name="training", x=x, y=y)]


def _valid_losses(lines: Sequence[StepLine]) -> list[Line]:
    found = [(line.step, line.valid_loss) for line in lines if line.valid_loss is not None]
    found = found[:: -(-len(found) // MOST) or 1]
    return [Line(name="validation", x=[x for x, _ in found], y=[max(y, LEAST) for _, y in found])] if found else []
