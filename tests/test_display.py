"""What a log file says of long work, where no bar can be drawn."""

from __future__ import annotations

import pytest

from pilocal.cli import display


def test_long_work_gets_a_line_from_time_to_time_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("pilocal.cli.display.time.monotonic", lambda: now)
    with display.progress_bars() as (progress, _):
        for step in range(10):
            progress("train", step, 10, "loss 0.5")
            now += 10
        progress("train", 10, 10)
    assert capsys.readouterr().err.splitlines() == [f"train: {step} of 10; loss 0.5" for step in (3, 6, 9)]


def test_short_work_gets_none(capsys: pytest.CaptureFixture[str]) -> None:
    with display.progress_bars() as (progress, _):
        for step in range(11):
            progress("train", step, 10)
    assert capsys.readouterr().err == ""
