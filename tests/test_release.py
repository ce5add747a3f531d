"""The wheel and the sdist hold what the program reads, and what a release needs is checked before it is tagged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import release
from tests.release import DATA, ROOT, faults, smoke, version
from tests.sbom import sbom_faults

BUILD = """
import sys
from setuptools import build_meta
made = sys.argv[1]  # setuptools writes its own into it
build_meta.build_wheel(made)
build_meta.build_sdist(made)
"""


def bill() -> dict[str, Any]:
    """What tests/sbom.py would write, without asking a registry."""
    extras, lines = requirements()
    names = {re.split(r"[\[<>=~;]", line)[0] for line in lines + [each for extra in extras.values() for each in extra]}
    parts = [{"name": name, "version": "1", "purl": f"pkg:pypi/{name}@1"} for name in names - {"pilocal"}]
    return {"metadata": {"component": {"name": "pilocal", "version": version()}}, "components": parts}


def requirements() -> tuple[dict[str, list[str]], list[str]]:
    """The extras that a release lists, and what pilocal always needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return {name: lines for name, lines in extras.items() if name not in ("all", "dev")}, project["dependencies"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a release, built from what git has or would have."""
    root = tmp_path_factory.mktemp("source")
    files = ("pilocal", "pyproject.toml", "README.md", "LICENSE")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *files]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    made = tmp_path_factory.mktemp("dist")
    (made / ".gitignore").write_text("*")  # as `uv build` leaves one
    (made / f"pilocal-{version()}.cdx.json").write_text(json.dumps(bill()))
    subprocess.run([sys.executable, "-c", BUILD, made], cwd=root, capture_output=True, check=True)
    return made


def test_wheel_and_sdist_are_whole(dist: Path) -> None:
    assert faults(dist) == []


def test_what_a_release_lacks_is_named(dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(dist, tag="v9.9.9")[0] == f"the tag v9.9.9 is not v{version()}, as pilocal/__init__.py has it"
    changes = tmp_path / "CHANGELOG.md"
    monkeypatch.setattr(release, "CHANGES", changes)
    for heading, fault in (
        (f"## {version()} (not released yet)", "has no date; got not released yet"),
        ("## 9.9.9 (2026-01-01)", f"no heading `## {version()} (DATE)`"),
    ):
        changes.write_text(f"# Changes\n\n{heading}\n")
        (said,) = faults(dist, tag=f"v{version()}")
        assert said.endswith(fault)
    changes.write_text(f"## {version()} (2026-12-01)\n")
    assert faults(dist, tag=f"v{version()}") == []
    (tmp_path / "empty").mkdir()
    assert "should hold pilocal-" in faults(tmp_path / "empty")[0]
    monkeypatch.setattr(release, "DATA", (*DATA, "no/such/file"))
    assert len(faults(dist)) == 2


def test_a_bill_of_materials_has_everything_that_is_needed() -> None:
    whole = bill()
    assert sbom_faults(whole, version(), ROOT) == []
    assert sbom_faults(whole, "9.9.9", ROOT) == ["it is not of pilocal 9.9.9"]
    for name in ("mlx-lm", "peft", "matplotlib"):
        parts = [part for part in whole["components"] if part["name"] != name]
        assert sbom_faults({**whole, "components": parts}, version(), ROOT) == [f"it lacks {name}"]
    assert "it lacks numpy" in sbom_faults({}, version(), ROOT)


def test_the_installed_wheel_works_away_from_the_source(dist: Path, tmp_path: Path) -> None:
    """In this environment; `just release` has an empty one."""
    (wheel,) = dist.glob("*.whl")
    target = tmp_path / "installed"
    shutil.unpack_archive(wheel, target, "zip")
    (tmp_path / "work").mkdir()
    env = {"PYTHONPATH": str(target), "PYTHONSAFEPATH": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import pilocal; print(pilocal.__file__)"],
        cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(target)
    smoke(Path(sys.executable), tmp_path / "work", env)


def workflow(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    return found


def test_the_release_workflow_tries_both_files_on_linux_and_macos() -> None:
    jobs = workflow("release.yml")["jobs"]
    systems = jobs["smoke"]["strategy"]["matrix"]["os"]
    assert {name.split("-")[0] for name in systems} == {"ubuntu", "macos"}
    assert jobs["smoke"]["needs"] == "build"
    ran = [step.get("run", "") for step in jobs["smoke"]["steps"]]
    assert any("python -m tests.release dist" in line for line in ran)
    made = " ".join(step.get("run", "") for step in jobs["build"]["steps"])
    assert "uv build" in made and "python -m tests.sbom dist" in made
    recipe = (ROOT / "Justfile").read_text().split("\nrelease")[1].split("\n\n")[0]
    for part in ("uv build", "-m tests.sbom dist", "-m tests.release dist", "-m tests.audit --strict"):
        assert part in recipe


def test_issue_templates_ask_for_what_doctor_says() -> None:
    assert "pilocal doctor" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.md").read_text()
