"""What a program may use: `import pilocal` is light, and every public name is there, documented and typed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import pilocal

HEAVY = ("mlx", "torch", "transformers", "numpy", "rich", "click", "llama_cpp", "matplotlib", "hnswlib")


def test_importing_pilocal_imports_nothing_heavy() -> None:
    code = f"import sys, pilocal; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_public_names_are_sorted_and_all_that_dir_shows() -> None:
    assert pilocal.__all__ == sorted(pilocal.__all__)
    assert dir(pilocal) == pilocal.__all__
    assert set(pilocal.HOMES) <= set(pilocal.__all__)


@pytest.mark.parametrize("name", pilocal.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    thing = getattr(pilocal, name)
    assert not inspect.ismodule(thing)
    assert inspect.getdoc(thing)
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            assert inspect.getdoc(value), f"{name}.{member}"


def test_a_name_stays_itself_after_the_whole_package_is_imported() -> None:
    code = (
        "import inspect, pilocal\n"
        "import pilocal.flow.run, pilocal.cli.flow, pilocal.cli.compare, pilocal.cli.serve, pilocal.run_folder\n"
        "print([name for name in pilocal.__all__ if inspect.ismodule(getattr(pilocal, name))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = pilocal.train


def test_types_ship_with_the_package() -> None:
    assert (Path(pilocal.__file__).parent / "py.typed").is_file()
