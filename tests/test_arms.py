"""Every arm is known once: its names in all files come from one record, and nothing else spells them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pilocal.evaluate.answer import ModelFiles
from pilocal.evaluate.arms import ARMS, BY_BENCH, BY_COMPARE, BY_NAME

PACKAGE = Path(__file__).parent.parent / "pilocal"


def strings(path: Path) -> set[str]:
    """Return the string constants of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_no_two_arms_share_a_name_or_a_title() -> None:
    for names in ([arm.name for arm in ARMS], [arm.title for arm in ARMS], [arm.short for arm in ARMS]):
        assert len(names) == len(set(names)) == 6
    for field in ("compare", "bench", "serve"):
        names = [name for arm in ARMS if (name := getattr(arm, field))]
        assert len(names) == len(set(names)) >= 2
    assert list(BY_NAME.values()) == list(ARMS)


def test_the_names_are_those_that_users_script_against() -> None:
    assert list(BY_NAME) == [
        "base_query_only", "base_full_prompt", "base_full_prompt_cached", "direct_drop", "internalized", "shipped",
    ]  # fmt: skip
    assert list(BY_COMPARE) == ["query-only", "full-prompt", "full-prompt-cached"]
    assert list(BY_BENCH) == ["full_prompt_cold", "full_prompt_warm", "bare_query"]
    assert {arm.serve for arm in ARMS} - {""} == {"full-prompt", "internalized"}


def test_no_other_module_spells_an_arms_name() -> None:
    # The ablation is a step, a folder and a setting as well.
    names = {name for arm in ARMS for name in (arm.name, arm.compare, arm.bench, arm.serve)} - {"", "direct_drop"}
    names |= {arm.title for arm in ARMS}
    modules = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "evaluate" / "arms.py"]
    assert len(modules) > 100
    assert {path.name: found for path in modules if (found := strings(path) & names)} == {}


def test_a_title_fits_a_narrow_table() -> None:
    assert max(len(arm.short) for arm in ARMS) <= 19


def test_the_ablation_is_an_arm_only_if_it_was_trained() -> None:
    here = Path()
    assert "direct_drop" in [arm.name for arm in ModelFiles(here, here, here, here, None).arms]
    assert "direct_drop" not in [arm.name for arm in ModelFiles(here, None, here, here, None).arms]


@pytest.mark.parametrize("room", ["evaluate", "comparison", "parity"])
def test_a_room_is_imported_where_mlx_is_missing(room: str) -> None:
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in (PACKAGE / room).rglob("*.py")
    ]
    assert len(modules) > 8
    code = (
        "import importlib, sys\n"
        "sys.modules['mlx'] = sys.modules['mlx.core'] = sys.modules['mlx_lm'] = None\n"
        f"for name in {modules!r}: importlib.import_module(name.removesuffix('.__init__'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
