"""Run a task from Python: `python examples/python_api.py [TASK] [--schedule FILE] [--run FOLDER]`.

Without TASK it is examples/smart-home. The run is resumed if it was begun before, and skipped if it is finished.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pilocal

HERE = Path(__file__).parent


def main() -> None:
    """Run a task, print its arms and answer one query with what is shipped."""
    parser = argparse.ArgumentParser(description="Run a task from Python.")
    parser.add_argument("task", nargs="?", type=Path, default=HERE / "smart-home", help="task folder")
    parser.add_argument("--schedule", type=Path, help="schedule file; TASK/schedule.toml by default")
    parser.add_argument("--run", type=Path, help="run folder; TASK/run by default")
    options = parser.parse_args()
    task = pilocal.load_task(options.task)
    schedule = options.schedule or options.task / "schedule.toml"
    with pilocal.run(options.task, schedule=schedule, run=options.run) as run:
        for arm, row in run.metrics["arms"].items():
            print(f"{arm}: {row['score']:.3f} with {row['prompt_tokens']:.0f} prompt tokens")
        query = task.test[0].query
        print(f"{query} -> {run.answer(query)}")
        print(f"adapter: {run.adapter}")


if __name__ == "__main__":
    try:
        main()
    except pilocal.PilocalError as error:
        sys.exit(str(error))
