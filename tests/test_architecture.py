"""The rooms: who may import whom, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pilocal"

FLOORS = {
    "errors": 0,
    "progress": 0,
    "packages": 1,
    "task": 1,
    "sandbox": 1,
    "prompt": 2,
    "run_folder": 3,
    "chart": 4,
    "compress": 4,
    "retrieve": 4,
    "llamacpp": 4,
    "base": 5,
    "starter": 6,
    "evaluate": 6,
    "logs": 6,
    "training": 7,
    "export": 7,
    "server": 7,
    "bench": 7,
    "report": 7,
    "doctor": 8,
    "watch": 8,
    "flow": 8,
    "comparison": 9,
    "synth": 9,
    "parity": 9,
    "cli": 10,
    "__main__": 11,
}
"""Every room's floor; a module imports only from lower floors and from its own room."""

HEAVY = (
    "mlx",
    "mlx_lm",
    "torch",
    "transformers",
    "numpy",
    "rich",
    "llama_cpp",
    "hnswlib",
    "sacrebleu",
    "llmlingua",
    "matplotlib",
)


ROOMS = tuple(FLOORS)


def imported(path: Path) -> list[str]:
    """Return the full name of everything that a file imports, at its top or later, by statement or `import_module`."""
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found += [str(word.value) for word in node.args if isinstance(word, ast.Constant)]
    return found


@cache
def imports() -> list[tuple[Path, str, str]]:
    """Return every import of one room from another as (file, room, other room)."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "__init__.py":
            continue
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        others = [name.split(".")[1] for name in imported(path) if name.startswith("pilocal.")]
        found += [(path, room, other) for other in others if other != room]
    return found


def arrows() -> set[tuple[str, str]]:
    """Return (room, other room) for every room that imports another."""
    return {(room, other) for _, room, other in imports()}


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import pilocal.server.app", ["pilocal.server.app"]),
        ("from pilocal import serve", ["pilocal.serve"]),
        ("from pilocal.server import app, page", ["pilocal.server.app", "pilocal.server.page"]),
        ("def f():\n    from pilocal.cli import main", ["pilocal.cli.main"]),
        ("from . import fuse", ["pilocal.export.fuse"]),
        ("from ..server.app import App", ["pilocal.server.app.App"]),
        ("import_module('pilocal.serve')", ["pilocal.serve"]),
    ],
)
def test_no_way_to_import_is_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, names: list[str]
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "pilocal")
    path = tmp_path / "pilocal" / "export" / "new.py"
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert imported(path) == names


def test_every_room_has_a_floor() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {
        "__init__",
        "__pycache__",
    }
    assert rooms == set(FLOORS)


def test_a_module_imports_only_from_lower_floors() -> None:
    found = imports()
    assert len(found) > 40
    wrong = [f"{path}: {room} imports {other}" for path, room, other in found
             if other not in FLOORS or FLOORS[other] >= FLOORS[room]]  # fmt: skip
    assert not wrong


def foreign_to(part: str) -> tuple[str, ...]:
    """Return what a part of training/ must not import: its own modules (the loop), or a backend's."""
    backends = ("pilocal.training.mlx", "pilocal.training.torch_backend")
    return {
        "mlx": (backends[1], "torch", "transformers", "peft"),
        "torch_backend": (backends[0], "mlx", "mlx_lm"),
        "tracker.py": (*backends, "mlx", "mlx_lm", "transformers", "peft"),  # TensorBoard's writer is in torch
    }.get(part, (*backends, "mlx", "mlx_lm", "torch", "transformers", "peft"))


def modules_in(path: Path) -> list[str]:
    """Return the modules that the import statements of a file name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names]
    return found


def test_the_training_loop_knows_no_backend_and_the_backends_not_each_other() -> None:
    """Parity rests on it: each unpacks weights, computes and takes its optimizer's steps by itself."""
    room = PACKAGE / "training"
    checked = 0
    for path in sorted(room.rglob("*.py")):
        names, foreign = modules_in(path), foreign_to(path.relative_to(room).parts[0])
        assert not [n for n in names for f in foreign if n == f or n.startswith(f"{f}.")], path
        checked += len(names)
    assert checked > 100


def test_only_the_command_line_prints_exits_or_imports_click() -> None:
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        if "cli" in path.relative_to(PACKAGE).parts or path.parent.name == "starter":
            continue
        checked += 1
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "sys.exit", "exit"), path
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
                assert not any(name.split(".")[0] == "click" for name in names), path
    assert checked > 25


def test_llama_cpp_has_one_room() -> None:
    importers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
                if any(name.split(".")[0] == "llama_cpp" for name in names):
                    importers.add(path.relative_to(PACKAGE).as_posix())
    assert importers
    assert all(path.startswith("llamacpp/") for path in importers)


def held_calls(tree: ast.Module) -> list[ast.Call]:
    """Return the calls that load what llama.cpp keeps in memory."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("pilocal.llamacpp.")]
    held = {name.name for node in ours for name in node.names} & {"Model", "Context", "Engine", "BatchEngine"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) in held]


def entered(tree: ast.Module) -> list[ast.expr]:
    """Return what a `with` or an exit stack closes."""
    withs = [node for node in ast.walk(tree) if isinstance(node, ast.With)]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    stacked = [call.args[0] for call in calls if ast.unparse(call.func).endswith(".enter_context")]
    return [item.context_expr for node in withs for item in node.items] + stacked


def test_what_holds_llama_cpp_s_memory_is_made_in_a_with() -> None:
    """Else an interrupt leaves the model in memory."""
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in held_calls(tree):
            checked += 1
            assert call in entered(tree), f"{path}:{call.lineno}"
    assert checked > 8


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_help_page_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['pilocal', *sys.argv[1:]]\n"
        "import pilocal.cli\n"
        "try: pilocal.cli.main()\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
