"""Run folders as a training leaves them on its way, for those who watch it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pilocal.run_folder.live import Live
from pilocal.run_folder.log import StepLine

ALL = ("compress", "stages", "train", "export", "evaluate")
TOKENS = (1000, 500, 100)
STEPS = 10
"""Of each stage."""


def step_line(step: int, **more: Any) -> StepLine:
    figures: dict[str, Any] = {
        "learning_rate": 1e-4,
        "loss": 2 - step / 100,
        "gradient_norm": 0.5,
        "trained_tokens": 100,
        "prompt_tokens": 900,
        "computed_tokens": 500,
        "padding": 0.1,
        "seconds": 2.0,
        "peak_memory": 3 << 30,
    }
    return StepLine(step=step, **figures | more)


def write_lines(run: Path, stage: int, lines: list[StepLine], rest: str = "") -> Path:
    path = run / "stages" / str(stage) / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line.as_json() + "\n" for line in lines) + rest)
    return path


def write_live(run: Path, **values: Any) -> None:
    live = Live(steps=ALL, step="train", seconds=40.0, what="train", done=12, total=30)
    (run / "live.json").write_text(json.dumps(asdict(replace(live, **values))))


def make_watched(run: Path, *, plan: bool = True, early: bool = False, steps: int = 12, **more: Any) -> Path:
    """A run in the third step of its second stage, or after so many steps, of three stages of ten."""
    run.mkdir(parents=True)
    stages = [
        {"number": number, "folder": f"stages/{number}", "steps": STEPS, "tokens": tokens}
        for number, tokens in enumerate(TOKENS)
    ]
    done = {name: {"key": "k", "seconds": 1.5, "files": {}} for name in ALL[:2]}
    state: dict[str, Any] = {
        "steps": done,
        "task": {"name": "colours", "folder": "/nowhere"},
        "model": "starter",
        "backend": {"name": "mlx"},
        "schedule": [{"tau": tau, "shots": shots, "share": 1 / 3} for tau, shots in ((1.0, 4), (0.5, 2), (0.0, 0))],
        **({"plan": {"train": {"stages": stages, "may_end_early": early}}} if plan else {}),
        **more,
    }
    (run / "run.json").write_text(json.dumps(state))
    for stage in range(3):
        taken = range(stage * STEPS + 1, min(steps, (stage + 1) * STEPS) + 1)
        if taken:
            write_lines(run, stage, [step_line(step) for step in taken])
    write_live(run)
    return run
