"""What becomes of the findings of pip-audit: `python -m tests.audit`."""

from __future__ import annotations

import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import audit
from tests.audit import accepted_findings, judge

TODAY = datetime.date(2026, 12, 1)
FOUND: dict[str, Any] = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.1"]}
INSTALLED: list[dict[str, Any]] = [
    {"name": "clean", "version": "1", "vulns": []},
    {"name": "bad", "version": "2.0", "vulns": [FOUND]},
]


def test_a_finding_is_a_fault_until_it_is_accepted() -> None:
    assert judge(INSTALLED, {}, TODAY) == ["bad 2.0: PYSEC-1; mended in 2.1"]
    for name in ("PYSEC-1", "CVE-1"):
        assert judge(INSTALLED, {("bad", name): TODAY}, TODAY) == []
    was = {("bad", "CVE-1"): datetime.date(2026, 11, 30)}
    assert judge(INSTALLED, was, TODAY) == ["bad 2.0: PYSEC-1; mended in 2.1; it was accepted until 2026-11-30"]


def test_an_acceptance_of_nothing_is_to_be_deleted_unless_nobody_looked() -> None:
    accepted = {("clean", "CVE-2"): TODAY, ("gone", "CVE-3"): TODAY, ("bad", "CVE-1"): TODAY}
    (said,) = judge(INSTALLED, accepted, TODAY)
    assert said == "accepted.toml accepts CVE-2 of clean, which is not found any more"


def answered(monkeypatch: pytest.MonkeyPatch, dependencies: list[dict[str, Any]]) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, json.dumps({"dependencies": dependencies}), "")

    monkeypatch.setattr(subprocess, "run", run)


def test_an_audit_that_looked_nothing_up_never_passes_for_a_clean_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered(monkeypatch, [{"name": "bad", "skip_reason": "Dependency not found"}])
    assert (audit.main([]), audit.main(["--strict"])) == (0, 1)
    assert capsys.readouterr().out.count("not audited: pip-audit could look up no package") == 2
    answered(monkeypatch, [*INSTALLED, {"name": "own", "skip_reason": "Dependency not found"}])
    assert audit.main([]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == ["not looked up: own", "bad 2.0: PYSEC-1; mended in 2.1", "2 packages audited, 1 to see to"]


def test_what_is_accepted_has_a_reason_and_a_day(tmp_path: Path) -> None:
    assert all(until > datetime.date(2026, 1, 1) for until in accepted_findings().values())
    path = tmp_path / "accepted.toml"
    path.write_text('[[accepted]]\npackage = "a"\nid = "CVE-1"\nreason = "unused"\nuntil = 2027-01-01\n')
    assert accepted_findings(path) == {("a", "CVE-1"): datetime.date(2027, 1, 1)}
    for line in ('reason = ""', "until = 2027-01-01"):
        path.write_text(f'[[accepted]]\npackage = "a"\nid = "CVE-1"\n{line}\n')
        with pytest.raises(ValueError, match="an entry has id, package, reason, until"):
            accepted_findings(path)
