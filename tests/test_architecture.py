"""The rooms: who may import whom, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pilocal"

FLOORS = {
    "errors": 0,
    "progress": 0,
    "task": 1,
    "sandbox": 1,
    "prompt": 2,
    "run": 3,
    "chart": 4,
    "compress": 4,
    "retrieve": 4,
    "llamacpp": 4,
    "base": 5,
    "starter": 6,
    "evaluate": 6,
    "training": 7,
    "export": 7,
    "serve": 7,
    "bench": 7,
    "flow": 8,
    "compare": 9,
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


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "cli"


def imports() -> list[tuple[Path, str, str]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "__init__.py":
            continue
        room = room_of(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pilocal."):
                found.append((path, room, room_of(node.module or "")))
            elif isinstance(node, ast.Import):
                found += [(path, room, room_of(n.name)) for n in node.names if n.name.startswith("pilocal.")]
    return found


def test_every_room_has_a_floor():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {
        "__init__",
        "__pycache__",
    }
    assert rooms == set(FLOORS)


def test_a_module_imports_only_from_lower_floors():
    found = imports()
    assert len(found) > 40
    wrong = [f"{path}: {room} imports {other}" for path, room, other in found
             if other != room and FLOORS[other] >= FLOORS[room]]  # fmt: skip
    assert not wrong


def test_only_the_command_line_prints_exits_or_imports_click():
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


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_help_page_imports_nothing_heavy(arguments):
    code = (
        "import sys; sys.argv = ['pilocal', *sys.argv[1:]]\n"
        "import pilocal.cli\n"
        "try: pilocal.cli.main()\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
