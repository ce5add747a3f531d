"""pass@1: each answer is a Python program, and is right if the asserts of its record hold."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import InputError
from pilocal.evaluate.scoring.metrics import Metric, same_texts
from pilocal.progress import Progress, silent
from pilocal.sandbox.judge import tests_hold
from pilocal.sandbox.run import Limits
from pilocal.task import Example, Scoring

TIMEOUT = 10.0
"""Seconds for one answer, unless `[scoring] timeout` says otherwise."""

FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


def make(scoring: Scoring, folder: Path) -> Metric:
    """Return the metric."""
    return PythonTests(scoring, folder)


class PythonTests(Metric):
    """The share of answers whose asserts hold, each in a sandbox.

    A record holds `tests`, a text or a list of texts, and optionally `setup`, which runs before them. If an answer has
    a Markdown fence, what stands in the fence is run.
    """

    needs = "the tests of a record"

    def __init__(self, scoring: Scoring, folder: Path) -> None:
        self._where = f"the test set of {folder}"
        self._limits = Limits(seconds=scoring.timeout or TIMEOUT, memory_mb=scoring.memory_mb)

    def check(self, examples: Sequence[Example]) -> None:
        """Raise InputError if records have no tests, and SandboxError if this machine has no sandbox."""
        lacking = [example.id for example in examples if not tests_of(example)]
        if lacking:
            what = f"{len(lacking)} of {len(examples)} records have no tests; the first is {lacking[0]}"
            raise InputError(self._where, what, fix='add "tests": ["assert ..."] to each')
        tests_hold("", "", "assert True", "", self._limits)

    def marks(
        self, answers: Sequence[str], examples: Sequence[Example], progress: Progress = silent
    ) -> NDArray[np.float64]:
        """Return 1 for each answer whose asserts hold and 0 for any other, (N, 1)."""
        marks = np.zeros((len(answers), 1))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            passed = pool.map(self._passes, answers, examples)
            for number, right in enumerate(passed):
                marks[number] = right
                progress("tests", number + 1, len(answers))
        return marks

    def objection(self, answer: str) -> str | None:
        """Refuse a program that Python cannot read, or that is none."""
        try:
            with catch_warnings():
                simplefilter("ignore")  # of what the program would warn
                statements = ast.parse(code_of(answer)).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return "the program does not parse"
        return None if statements else "there is no program in it"

    def agree(self, answers: Sequence[str], others: Sequence[str], queries: Sequence[str]) -> list[bool]:
        """Tell of each program whether it is another's text; without tests nothing else can be told."""
        return same_texts([code_of(answer) for answer in answers], [code_of(other) for other in others])

    def _passes(self, answer: str, example: Example) -> bool:
        setup, tests = parts_of(example)
        return tests_hold(code_of(answer), setup, tests, code_of(example.answer), self._limits)


def code_of(answer: str) -> str:
    r"""Return the program in an answer.

    >>> code_of("Here it is: ```python\nprint(1)\n``` Good luck.")
    'print(1)\n'
    """
    fenced = FENCE.search(answer)
    return fenced[1] if fenced else answer


def parts_of(example: Example) -> tuple[str, str]:
    """Return an example's `setup` and its tests, either of which may be empty."""
    tests = example.extra.get("tests", "")
    return str(example.extra.get("setup", "")), "\n".join(map(str, tests)) if isinstance(tests, list) else str(tests)


def tests_of(example: Example) -> str:
    """Return what is run after an example's answer; empty if there is nothing."""
    setup, tests = parts_of(example)
    return f"{setup}\n{tests}" if tests.strip() else ""
