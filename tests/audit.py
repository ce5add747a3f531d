"""Known vulnerabilities in what is installed here: `python -m tests.audit [--strict]`, a part of `just check`.

pip-audit asks the advisories. What was looked at and accepted stands in tests/accepted.toml, each with a reason and a
day until which it holds. pip-audit calls an environment clean when it could not look up a single package of it: here
that is one line, and a fault with --strict, as a release has it.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ACCEPTED = Path(__file__).with_name("accepted.toml")
KEYS = {"package", "id", "reason", "until"}
TAIL = 300
"""Characters that are shown of what pip-audit says where it fails."""

TIMEOUT = 600
"""Seconds for all questions; a service that is down is asked once for each package."""


def accepted_findings(path: Path = ACCEPTED) -> dict[tuple[str, str], datetime.date]:
    """Return the day until which each (package, identifier) is accepted; raises ValueError for an incomplete one."""
    found = {}
    for entry in tomllib.loads(path.read_text()).get("accepted", []):
        if set(entry) != KEYS or not entry["reason"] or not isinstance(entry["until"], datetime.date):
            raise ValueError(f"{path}: an entry has {', '.join(sorted(KEYS))} (a date); got {entry}")
        found[entry["package"], entry["id"]] = entry["until"]
    return found


def judge(
    dependencies: Sequence[Mapping[str, Any]],
    accepted: Mapping[tuple[str, str], datetime.date],
    today: datetime.date,
) -> list[str]:
    """Return the faults: findings that are not accepted, or no longer, and acceptances of nothing.

    `dependencies` are pip-audit's; each has `vulns`.
    """
    faults, used = list[str](), set[tuple[str, str]]()
    for each in dependencies:
        for finding in each["vulns"]:
            names = [finding["id"], *finding.get("aliases", [])]
            known = {(each["name"], word) for word in names} & accepted.keys()
            used |= known
            last = max((accepted[pair] for pair in known), default=None)
            if last is None or last < today:
                faults.append(_fault(each, finding, last))
    asked = {each["name"] for each in dependencies}
    stale = [pair for pair in accepted if pair[0] in asked and pair not in used]
    return faults + [f"{ACCEPTED.name} accepts {word} of {name}, which is not found any more" for name, word in stale]


def _fault(package: Mapping[str, Any], finding: Mapping[str, Any], last: datetime.date | None) -> str:
    fixed = f"; mended in {', '.join(finding['fix_versions'])}" if finding.get("fix_versions") else ""
    again = f"; it was accepted until {last}" if last else ""
    return f"{package['name']} {package['version']}: {finding['id']}{fixed}{again}"


def _found() -> tuple[list[dict[str, Any]], str]:
    """Return what pip-audit says of each package, and why it says nothing."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--format", "json"]
    command += ["--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return [], f"no answer in {TIMEOUT} s"
    try:
        return json.loads(done.stdout)["dependencies"], "its service knew none"
    except ValueError:
        return [], done.stderr.strip()[-TAIL:]


def main(words: Sequence[str]) -> int:
    """Ask, print one line for each fault and one of the whole; return the exit status."""
    strict = "--strict" in words
    dependencies, why = _found()
    asked = [each for each in dependencies if "vulns" in each]
    if not asked:
        sys.stdout.write(f"not audited: pip-audit could look up no package: {why}. Try again with a network.\n")
        return int(strict)
    if skipped := [each["name"] for each in dependencies if "vulns" not in each]:
        sys.stdout.write(f"not looked up: {', '.join(skipped)}\n")
    faults = judge(asked, accepted_findings(), datetime.date.today())
    sys.stdout.write("".join(f"{fault}\n" for fault in faults))
    sys.stdout.write(f"{len(asked)} packages audited, {len(faults)} to see to\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
