"""Whether an answer's tests hold, decided in a process that never runs the answer.

Both run apart (`run.py`) and speak to each other over two pipes (`wire.py`). So nothing that an answer does to its own
process can make the tests hold, and what its results are compared with never gets there.
"""

from __future__ import annotations

import ast
import builtins
import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import IO
from warnings import catch_warnings, simplefilter

from pilocal.sandbox.run import Limits, started

SPARE = 5.0
"""Seconds that the tests get beyond twice the answer's, for the start of both on a machine with much to do."""

MAIN = """\
import os, sys
from types import ModuleType
os.unlink(sys.argv[0])
for name, text in {texts!r}.items():
    sys.modules[name] = ModuleType(name)
    exec(compile(text, name, "exec"), vars(sys.modules[name]))
write = os.write
sys.modules["pilocal.sandbox.wire"].{role}({arguments})
write(1, {nonce!r})
"""
"""What each side runs. Only the tests' side prints the nonce, after the last assert, and each run has its own."""


def tests_hold(answer: str, setup: str, tests: str, reference: str, limits: Limits) -> bool:
    """Return whether the tests hold for an answer.

    Both sides run `setup`, after the answer; the answer never sees `tests`. `reference` is a program that is right: an
    answer may put in place of built-in names what the reference does too, and its own operators count for classes that
    the reference has. `limits` are the answer's. Raises SandboxError when this machine offers no isolation.
    """
    nonce = secrets.token_hex(16)
    with ExitStack() as stack:
        asked, ask = _pipe(stack)
        answered, answer_to = _pipe(stack)
        begun, begin = _pipe(stack)
        of_tests, of_answer = (answered, ask, begin), (asked, answer_to)
        said = (*_numbers(of_tests), setup, tests, *defined(reference))
        patient = replace(limits, seconds=2 * limits.seconds + SPARE)
        judge = stack.enter_context(started(*_main("run_tests", said, nonce), patient, _numbers(of_tests)))
        _close(of_tests)
        if begun.read(1):  # the answer's time begins when its tests are there
            said = (*_numbers(of_answer), answer, setup)
            program = stack.enter_context(started(*_main("run_answer", said), limits, _numbers(of_answer)))
            _close(of_answer)
            outcome = judge.wait()
            program.stop()
            program.wait()
        else:
            outcome = judge.wait()
    return outcome.code == 0 and outcome.limit is None and outcome.stdout.endswith(nonce)


def defined(program: str) -> tuple[list[str], list[str]]:
    r"""Return the built-in names that a program defines anew, and the names of its classes.

    >>> defined("def sum(a, b):\n    class C: ...\nx = 1")
    (['sum'], ['C'])
    """
    try:
        with catch_warnings():
            simplefilter("ignore")  # of what the program would warn
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [], []
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return sorted(names & vars(builtins).keys()), sorted(set(classes))


def _main(role: str, arguments: Sequence[object], nonce: str = "") -> tuple[list[str], dict[str, str]]:
    """Return the command of one side, and its files."""
    said = {"role": role, "arguments": ", ".join(map(repr, arguments)), "nonce": nonce.encode()}
    return [sys.executable, "-I", "-S", "main.py"], {"main.py": MAIN.format(texts=_modules(), **said)}


@cache
def _modules() -> dict[str, str]:
    """Return the text of every module of the package that both sides import, in their order."""
    parts = {name: Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8") for name in ("crossing", "wire")}
    return {"pilocal": "", "pilocal.sandbox": ""} | {f"pilocal.sandbox.{name}": text for name, text in parts.items()}


def _pipe(stack: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    reading, writing = os.pipe()
    return (
        stack.enter_context(os.fdopen(reading, "rb", buffering=0)),
        stack.enter_context(os.fdopen(writing, "wb", buffering=0)),
    )


def _numbers(ends: Sequence[IO[bytes]]) -> list[int]:
    return [end.fileno() for end in ends]


def _close(ends: Sequence[IO[bytes]]) -> None:
    for end in ends:
        end.close()
