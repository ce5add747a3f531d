"""A metric of your own: a program that reads answers and prints a mark for each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import InputError
from pilocal.evaluate.scoring.metrics import Metric, same_texts
from pilocal.progress import Progress, silent
from pilocal.task import Example, Scoring
from pilocal.task.slots import KEY as SLOTS

TIMEOUT = 600.0
"""Seconds for all answers of one arm, unless `[scoring] timeout` says otherwise."""

PRINTED = 2**26
"""Bytes that the program may print, and as many on stderr."""

SHORTEST, LONGEST = 0.01, 0.5
"""Seconds between two looks at a program that works: longer and longer ones."""

TAIL = 300
"""How many of the last characters on stderr the error quotes."""


def make(scoring: Scoring, folder: Path) -> Metric:
    """Return the metric; raises InputError if there is no such program."""
    return Command(scoring, folder)


class Command(Metric):
    """The mean of the marks that a program prints.

    The program runs in the task folder, once per arm, with the user's own rights and environment: one that runs what
    the model wrote has to confine it, as `python_tests` does. It reads one JSON object per line:
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
        """Return what the program prints; on a time-out, it and all that it started are killed.

        It writes into files: a pipe would stay open as long as anything that it has started, even in another session.
        """
        with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as said:
            told.write(text.encode())
            told.seek(0)
            process = subprocess.Popen(
                self._argv, cwd=self._folder, stdin=told, stdout=printed, stderr=said, start_new_session=True
            )
            try:
                self._wait(process, (printed, said))
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
            texts = [_text(file) for file in (printed, said)]
        if process.returncode:
            got = texts[1].strip()[-TAIL:] or None
            raise self._fault(f"the program ended with status {process.returncode}", got=got)
        return texts[0]

    def _wait(self, process: subprocess.Popen[bytes], files: Sequence[IO[bytes]]) -> None:
        """Wait for the end; raises InputError for a program that takes too long or prints without end."""
        ends, pause = time.monotonic() + self._timeout, SHORTEST
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(pause)
            if any(os.fstat(file.fileno()).st_size > PRINTED for file in files):
                raise self._fault(f"the program printed more than {PRINTED:,} bytes")
            if process.returncode is not None:
                return
            left = ends - time.monotonic()
            if left <= 0:
                raise self._fault(f"the program took longer than {self._timeout:g} s")
            pause = min(2 * pause, LONGEST, left)

    def _fault(self, problem: str, got: object = None) -> InputError:
        fix = "fix it and run again; the answers are kept"
        return InputError(self._where, problem, got=got, fix=fix)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
