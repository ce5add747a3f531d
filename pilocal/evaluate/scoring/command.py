"""A metric of your own: a program that reads answers and prints a mark for each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import InputError
from pilocal.evaluate.scoring.metrics import Metric, same_texts
from pilocal.progress import Progress, silent
from pilocal.task import Example, Scoring
from pilocal.task.slots import KEY as SLOTS

TIMEOUT = 600.0
"""Seconds for all answers of one arm, unless `[scoring] timeout` says otherwise."""

TAIL = 300
"""How many of the last characters on stderr the error quotes."""


def make(scoring: Scoring, folder: Path) -> Metric:
    """Return the metric; raises InputError if there is no such program."""
    return Command(scoring, folder)


class Command(Metric):
    """The mean of the marks that a program prints.

    The program runs in the task folder, once per arm, with the user's own rights. It reads one JSON object per line:
    `id`, `query`, `answer` (the reference), `prediction` (the model's answer) and whatever else the test record holds.
    It prints one number from 0 to 1 per line, in the same order.
    """

    needs = "a program of your own"

    def __init__(self, scoring: Scoring, folder: Path) -> None:
        """Find the program; raises InputError if it is not there."""
        self._where = f"{folder / 'task.toml'} [scoring] command"
        if not scoring.command:
            raise InputError(self._where, "command needs a program", fix='write command = ["./score.py"]')
        program = scoring.command[0]
        found = folder / program if "/" in program else shutil.which(program)
        if found is None or not os.access(found, os.X_OK):
            fix = "correct the path (relative to the task), or make the file executable"
            raise InputError(self._where, "no such program", got=program, fix=fix)
        self._command = scoring.command
        self._argv = [str(Path(found).resolve()), *scoring.command[1:]]
        self._timeout = scoring.timeout or TIMEOUT
        self._folder = folder

    def marks(
        self, answers: Sequence[str], examples: Sequence[Example], progress: Progress = silent
    ) -> NDArray[np.float64]:
        """Return the marks, (N, 1); raises InputError if the program fails, hangs or prints something else."""
        lines = [
            json.dumps(
                {
                    **example.extra,
                    **({SLOTS: dict(example.slots)} if example.slots else {}),
                    "id": example.id,
                    "query": example.query,
                    "answer": example.answer,
                    "prediction": said,
                }
            )
            for said, example in zip(answers, examples, strict=True)
        ]
        printed = self._run("".join(f"{line}\n" for line in lines)).splitlines()
        if len(printed) != len(lines):
            raise self._fault(f"the program must print {len(lines)} lines, one for each answer", got=len(printed))
        marks = np.zeros((len(lines), 1))
        for number, text in enumerate(printed):
            try:
                marks[number] = float(text)
            except ValueError:
                marks[number] = np.nan
            if not 0 <= marks[number, 0] <= 1:
                raise self._fault(f"line {number + 1} must be a number from 0 to 1", got=text)
        return marks

    def agree(self, answers: Sequence[str], others: Sequence[str], queries: Sequence[str]) -> list[bool]:
        """Tell of each answer whether it is another's text: the program may need what only a test record has."""
        return same_texts(answers, others)

    def files(self) -> list[Path]:
        """Return those parts of the command that are files of the task."""
        return [path for path in (self._folder / part for part in self._command) if path.is_file()]

    def _run(self, text: str) -> str:
        """Return what the program prints; on a time-out, it and all that it started are killed."""
        process = subprocess.Popen(
            self._argv,
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        try:
            printed, said = process.communicate(text, self._timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise self._fault(f"the program took longer than {self._timeout:g} s") from None
            raise
        if process.returncode:
            raise self._fault(f"the program ended with status {process.returncode}", got=said.strip()[-TAIL:] or None)
        return printed

    def _fault(self, problem: str, got: object = None) -> InputError:
        fix = "fix it and run again; the answers are kept"
        return InputError(self._where, problem, got=got, fix=fix)
