"""The bill of materials of a release: `python -m tests.sbom DIST` writes DIST/pilocal-VERSION.cdx.json (CycloneDX 1.5).

It lists what pilocal and its extras were resolved to on the day of the release: versions, sources and SHA-256 sums, and
what needs what. uv resolves the sdist in a folder of its own, so that no lock file is left. It asks the registry.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OWN = "pilocal"
LEFT_OUT = ("all", "dev")
"""Extras that are not listed: one names the others, one is for those who work on pilocal."""


def make_sbom(sdist: Path) -> dict[str, Any]:
    """Return the bill of materials of an sdist; raises CalledProcessError where uv cannot resolve it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        root = next(folder.iterdir())
        extras = [word for name in _project(root)["optional-dependencies"] if name not in LEFT_OUT
                  for word in ("--extra", name)]  # fmt: skip
        made = folder / "bill.json"
        uv = [sys.executable, "-m", "uv", "export", "--quiet", "--preview-features", "sbom-export"]
        subprocess.run(
            [*uv, "--format", "cyclonedx1.5", "--python", sys.executable, *extras, "--output-file", str(made)],
            cwd=root, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        bill: dict[str, Any] = json.loads(made.read_text())
    version = sdist.name.removeprefix(f"{OWN}-").removesuffix(".tar.gz")
    bill["metadata"]["component"] |= {"version": version, "purl": f"pkg:pypi/{OWN}@{version}"}
    return bill


def sbom_faults(bill: Mapping[str, Any], version: str, root: Path) -> list[str]:
    """Return what a bill of materials lacks, beside the pyproject.toml in `root`."""
    said = bill.get("metadata", {}).get("component", {})
    found = [] if (said.get("name"), said.get("version")) == (OWN, version) else [f"it is not of {OWN} {version}"]
    listed = {part["name"]: part for part in bill.get("components", [])}
    project = _project(root)
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for name in extras if name not in LEFT_OUT for line in extras[name])]
    for name in sorted({_name(line) for line in wanted} - {OWN}):
        if not listed.get(name, {}).get("version"):
            found.append(f"it lacks {name}")
    return found


def _project(root: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return project


def _name(requirement: str) -> str:
    """Return the name in a requirement.

    >>> _name("mlx[cpu]>=0.32,<0.33; sys_platform == 'linux'"), _name("numpy>=2")
    ('mlx', 'numpy')
    """
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return found[0]


def main(words: Sequence[str]) -> int:
    """Write the bill of materials of the sdist in a folder; return the exit status."""
    dist = Path(words[0])
    (sdist,) = dist.glob("*.tar.gz")
    bill = make_sbom(sdist)
    path = dist / sdist.name.replace(".tar.gz", ".cdx.json")
    path.write_text(json.dumps(bill, indent=1) + "\n")
    sys.stdout.write(f"{path}: {len(bill['components'])} components\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
