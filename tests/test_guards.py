"""What keeps the code readable: limits that may be tightened and never loosened.

A file or function that is over a limit stands below with its number. It may shrink, then its number shrinks with it;
it may not grow, and nothing may be added.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.durations import slow_tests
from tests.test_architecture import PACKAGE, ROOMS, arrows, imported

ROOT = PACKAGE.parent

LINES = 400
FUNCTION_LINES = 60
COMPLEXITY = 12
PARAMETERS = 8
MOST_ROOMS, MOST_ARROWS = 28, 154

LONG_FILES: dict[str, int] = {
    "pilocal/starter/build.py": 417,
    "tests/test_retrieve.py": 489,
    "tests/test_train.py": 610,
}
LONG_FUNCTIONS: dict[str, int] = {
    "pilocal/starter/build.py:train": 62,
}
COMPLEX: dict[str, int] = {
    "pilocal/compress/outline.py:Outline.__post_init__": 16,
    "pilocal/compress/outline.py:Outline._finish": 25,
    "pilocal/compress/outline.py:Outline._read": 21,
    "pilocal/compress/outline.py:_accepts": 17,
    "pilocal/compress/rules.py:removals": 13,
    "pilocal/export/mlx_folder.py:_write_weights": 13,
    "pilocal/export/sentencepiece.py:_scheme": 13,
    "pilocal/task/toml.py:build": 15,
    "tests/bench/retrieval.py:retrieval": 16,
    "tests/test_stages_format.py:faults": 17,
}
MANY_PARAMETERS: dict[str, int] = {
    "pilocal/training/torch_backend/trainer.py:TorchTrainer.__init__": 9,
}


@cache
def sources() -> dict[Path, ast.Module]:
    """Return every Python file of the package and the tests, parsed."""
    folders = (PACKAGE, ROOT / "tests")
    return {path: ast.parse(path.read_text(encoding="utf-8")) for f in folders for path in sorted(f.rglob("*.py"))}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function with its name, such as pilocal/run_folder/log.py:Log.append."""

    def inside(node: ast.AST, name: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}{child.name}", child
            named = child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else None
            yield from inside(child, f"{name}{named.name}." if named else name)

    for path, tree in sources().items():
        yield from inside(tree, f"{path.relative_to(ROOT)}:")


def complexity(function: ast.AST) -> int:
    """Return one more than the number of a function's branches, conditions and loops; inner functions count alone."""
    found, nodes = 1, list(ast.iter_child_nodes(function))
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.If | ast.IfExp | ast.For | ast.AsyncFor | ast.While | ast.ExceptHandler):
            found += 1
        elif isinstance(node, ast.comprehension):
            found += 1 + len(node.ifs)
        elif isinstance(node, ast.BoolOp):
            found += len(node.values) - 1
        elif isinstance(node, ast.match_case):
            found += 1
        nodes += ast.iter_child_nodes(node)
    return found


def lengths() -> dict[str, int]:
    """Return the lines of every file."""
    return {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}


def function_lengths() -> dict[str, int]:
    """Return the lines of every function."""
    return {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions()}


def complexities() -> dict[str, int]:
    """Return the complexity of every function."""
    return {name: complexity(node) for name, node in functions()}


def parameters() -> dict[str, int]:
    """Return how many parameters every function of the package takes."""
    found = {}
    for name, node in functions():
        taken = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if name.startswith("pilocal/"):
            found[name] = len([each for each in taken if each not in ("self", "cls")])
    return found


@pytest.mark.parametrize(
    ("measure", "limit", "known"),
    [
        (lengths, LINES, LONG_FILES),
        (function_lengths, FUNCTION_LINES, LONG_FUNCTIONS),
        (complexities, COMPLEXITY, COMPLEX),
        (parameters, PARAMETERS, MANY_PARAMETERS),
    ],
)
def test_nothing_exceeds_its_limit_but_what_did_and_shrinks(
    measure: Callable[[], dict[str, int]], limit: int, known: dict[str, int]
) -> None:
    found = measure()
    assert len(found) > 200
    over = {name: number for name, number in found.items() if number > limit}
    grown = {name: number for name, number in over.items() if number > known.get(name, limit)}
    assert not grown, f"more than {limit}, or than it was"
    shrunk = {name: over.get(name, "within the limit") for name in known if over.get(name) != known[name]}
    assert not shrunk, "less than it was: lower its number, or take it out of the list"


def test_the_two_numerics_never_import_each_other() -> None:
    numerics = {"mlx": "pilocal.training.mlx", "torch": "pilocal.training.torch_backend"}
    for own, other in (("mlx", "torch"), ("torch", "mlx")):
        folder = ROOT / numerics[own].replace(".", "/")
        modules = [module for path in sorted(folder.rglob("*.py")) for module in imported(path)]
        assert len(modules) > 20
        wrong = [
            name for name in modules if name.split(".")[0] == other or f"{name}.".startswith(f"{numerics[other]}.")
        ]
        assert not wrong


def test_rooms_and_arrows_between_them_stay_few() -> None:
    assert len(ROOMS) <= MOST_ROOMS
    assert len(arrows()) <= MOST_ARROWS, f"{len(arrows())} arrows"


def test_there_is_no_circle_of_rooms() -> None:
    above = {room: {other for one, other in arrows() if one == room} for room in ROOMS}
    while free := [room for room, others in above.items() if not others]:
        for room in free:
            del above[room]
        above = {room: others.difference(free) for room, others in above.items()}
    assert not above


def test_every_slow_test_is_there() -> None:
    known = {name.replace(":", "::").replace(".", "::") for name, _ in functions()}
    files = {name.split("::")[0] for name in slow_tests()}
    assert all((ROOT / file).is_file() for file in files)
    named = {f"{file.replace('.', '::')}::{test}" for file, _, test in (name.partition("::") for name in slow_tests())}
    assert named <= known
