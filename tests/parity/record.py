"""Remake the reference in tests/parity/starter: `python -m tests.parity.record`, on MLX, on a CPU.

A few steps of a small adapter for the bundled starter on examples/smart-home, through three stages.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps, step_named
from pilocal.parity.recipe import read_replay
from pilocal.parity.reference import save_reference
from pilocal.parity.replay import Replay, play
from pilocal.parity.report import made_by
from pilocal.training.mlx.trainer import MlxTrainer

FOLDER = Path(__file__).parent / "starter"
EXAMPLE = Path(__file__).parents[2] / "examples" / "smart-home"

TASK = """\
name = "smart-home"
model = "starter"
[training]
steps = 9
batch_size = 4
learning_rate = 2e-3
[lora]
rank = 2
"""
SCHEDULE = """\
decay = "linear"
stages = 3
shots = 1
"""
EXAMPLES = {"train": 48, "valid": 4, "test": 4}
"""How many of each are taken."""


def make_replay() -> Replay:
    """Render the stages anew and return what is replayed."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "task.toml").write_text(TASK)
        (folder / "schedule.toml").write_text(SCHEDULE)
        shutil.copyfile(EXAMPLE / "template.md", folder / "template.md")
        for split, count in EXAMPLES.items():
            lines = (EXAMPLE / f"{split}.jsonl").read_text().splitlines(keepends=True)
            (folder / f"{split}.jsonl").write_text("".join(lines[:count]))
        with open_task(folder, folder / "schedule.toml", folder / "run") as context:
            run_steps(context, step_named("stages"))
            return read_replay(context, context.task.training.steps)


if __name__ == "__main__":
    replay = make_replay()
    trace = play(MlxTrainer(replay.base, replay.lora, replay.training), replay)
    save_reference(FOLDER, replay, trace, model="starter", made_by=made_by())
