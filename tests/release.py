"""Whether a release is whole: `python -m tests.release DIST`, as `just release` and the release workflow run it.

DIST holds the wheel, the sdist and the bill of materials that tests/sbom.py wrote. Wheel and sdist are each installed
into an empty environment, where a task is made, checked, trained for a few steps, exported and asked. It
runs on Linux and macOS; llama.cpp is compiled where there is no wheel of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.sbom import sbom_faults

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pilocal"
CHANGES = ROOT / ".github" / "CHANGELOG.md"

STEPS = 4
"""Optimizer steps of the task that is trained."""

DATA = ("py.typed", "server/page.html", "evaluate/general.jsonl", "flow/general.jsonl", "starter/model/config.json")
"""Files beside the code that the program reads."""


def version() -> str:
    """Return the version that the package says it is."""
    found = re.search(r'^__version__ = "(.+)"$', (PACKAGE / "__init__.py").read_text(), flags=re.MULTILINE)
    assert found
    return found[1]


def built(dist: Path) -> list[Path]:
    """Return the files of a release, sorted; uv's own .gitignore beside them is none."""
    return sorted(path for path in dist.iterdir() if path.name != ".gitignore")


def faults(dist: Path, *, tag: str = "") -> list[str]:
    """Return what is wrong with the files of a release, without installing them; `tag` is the git tag, if there is one.

    A tagged version needs a heading in CHANGELOG.md with its date.
    """
    own = version()
    names = [path.name for path in built(dist)]
    wanted = [f"pilocal-{own}-py3-none-any.whl", f"pilocal-{own}.cdx.json", f"pilocal-{own}.tar.gz"]
    if names != wanted:
        return [f"{dist} should hold {', '.join(wanted)}; got {names}"]
    with zipfile.ZipFile(dist / wanted[0]) as wheel, tarfile.open(dist / wanted[2]) as sdist:
        there = {wanted[0]: set(wheel.namelist()), wanted[2]: {name.partition("/")[2] for name in sdist.getnames()}}
    bill = json.loads((dist / wanted[1]).read_text())
    found = _changes(own, tag) + [f"{wanted[1]}: {fault}" for fault in sbom_faults(bill, own, ROOT)]
    files = [f"pilocal/{each}" for each in DATA] + [str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")]
    for name, inside in there.items():
        found += [f"{name} lacks {file}" for file in files if file not in inside]
    return found


def _changes(own: str, tag: str) -> list[str]:
    """Return what is wrong with the tag, and with what CHANGELOG.md says of this version."""
    heading = re.search(rf"^## {re.escape(own)} \((.+)\)$", CHANGES.read_text(), flags=re.MULTILINE)
    found = [] if heading else [f"{CHANGES}: no heading `## {own} (DATE)`"]
    if tag and tag != f"v{own}":
        found.append(f"the tag {tag} is not v{own}, as pilocal/__init__.py has it")
    if tag and heading and not re.fullmatch(r"\d{4}-\d\d-\d\d", heading[1]):
        found.append(f"{CHANGES}: version {own} has no date; got {heading[1]}")
    return found


def smoke(python: Path, folder: Path, env: Mapping[str, str] | None = None) -> None:
    """Make, check, train, export and ask a task in `folder` with the pilocal that `python` has.

    Raises AssertionError or CalledProcessError for what does not work.
    """
    told = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", **(env or {})}

    def pilocal(*words: object) -> str:
        command = [str(python), "-m", "pilocal", *map(str, words)]
        done = subprocess.run(command, cwd=folder, env=told, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    assert pilocal("--version").splitlines()[0] == f"pilocal, version {version()}"
    report = json.loads(pilocal("doctor", "--json"))
    assert report["works"], report["findings"]
    pilocal("init", "task")
    settings = folder / "task" / "task.toml"
    text = settings.read_text()
    assert "steps = 200" in text
    small = "[export]\naccept_loss = true\n[generation]\nmax_tokens = 4\n"
    settings.write_text(text.replace("steps = 200", f"steps = {STEPS}") + small)
    pilocal("check", "task", "--no-probe")
    metrics = json.loads(pilocal("run", "task", "--json"))["metrics"]
    assert metrics["n"] > 0 and metrics["arms"]["shipped"]["prompt_tokens"] > 0
    assert (folder / "task" / "run" / "export" / "adapter.gguf").is_file()
    ask = "import pilocal\nwith pilocal.Run('task/run') as run: assert isinstance(run.answer('and red?'), str)"
    subprocess.run([str(python), "-c", ask], cwd=folder, env=told, check=True)
    assert [line["done"] for line in json.loads(pilocal("ls", "--json"))] == ["evaluate"]


def main(words: Sequence[str]) -> int:
    """Check the release in a folder; return the exit status."""
    dist, tag = Path(words[0]).resolve(), words[1] if len(words) > 1 else ""
    if found := faults(dist, tag=tag):
        sys.stderr.write("\n".join(found) + "\n")
        return 1
    for file in built(dist):
        if file.suffix == ".json":
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            python = folder / "venv" / "bin" / "python"
            uv = [sys.executable, "-m", "uv"]
            subprocess.run([*uv, "venv", "--python", sys.executable, str(folder / "venv")], check=True)
            subprocess.run([*uv, "pip", "install", "--python", str(python), str(file)], check=True)
            (folder / "work").mkdir()
            smoke(python, folder / "work")
            sys.stdout.write(f"{file.name} installs and works\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
