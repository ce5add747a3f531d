"""What a log file says of long work, where no bar can be drawn."""

from __future__ import annotations

import io
import queue
from pathlib import Path

import pytest
from rich.console import Console

from pilocal.cli import display
from pilocal.cli.live import TrainingView
from tests.watched import make_watched


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


class Heard(io.StringIO):
    """A stream whose lines another thread can wait for, one by one; pytest's capture loses what comes as it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def write(self, text: str) -> int:
        for line in text.splitlines():
            self.lines.put(line)
        return len(text)


def test_work_that_reports_nothing_gets_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may compile or download for minutes before it reports anything."""
    now, heard = 0.0, Heard()
    monkeypatch.setattr("sys.stderr", heard)
    monkeypatch.setattr("pilocal.cli.display.time.monotonic", lambda: now)
    monkeypatch.setattr("pilocal.cli.display.BEAT", 1e-3)
    said = list[str]()

    def at(seconds: float) -> None:
        nonlocal now
        now = seconds
        said.append(heard.lines.get(timeout=300))

    with display.displaying() as (shown, _):
        at(30)
        shown.begin("export")
        at(60)
        shown.report("gate", 1, 5)
        at(90)
        at(120)
        shown.finish()
        at(150)
    assert said == [
        "at work for 30 s",
        "export: at work for 30 s",
        "gate: 1 of 5",
        "gate: 1 of 5; at work for 60 s",
        "at work for 30 s",
    ]


def test_a_training_is_told_in_plain_lines_with_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = make_watched(tmp_path / "run")
    monkeypatch.setattr(display, "EVERY", 0.0)
    with display.displaying(run) as (shown, _):
        shown.begin("train")
        shown.report("train", 12, 30, "loss 1.88")
        shown.report("train", 13, 30, "loss 1.88")
    (first, *_) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: stage")]
    assert first.startswith(
        "train: stage 2 of 3 (tau 0.5, 2 shots), step 12 of 30; loss 1.88, 500 tokens/s, peak 3.00 GiB; "
        "about 16 s left for the stage, 20 s for the training; then export, evaluate"
    )


@pytest.mark.parametrize(
    ("width", "encoding"), [(20, "utf-8"), (40, "utf-8"), (100, "utf-8"), (200, "utf-8"), (40, "ascii"), (100, "ascii")]
)
def test_a_terminal_shows_the_training_and_the_work_whatever_its_width(
    width: int, encoding: str, tmp_path: Path
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    view = TrainingView(make_watched(tmp_path / "run"))
    screen = display._Screen(console, view)
    console.print(screen.render())
    screen.begin("train")
    screen.report("train", 12, 30, "not shown twice")
    console.print(screen.render())
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)
    assert max(map(len, shown.splitlines())) <= width
    words = " ".join(shown.split())
    for said in ("stage 2 of 3", "12 of 30", "tokens/s", "3.00 GiB", "16 s", "evaluate"):
        assert said in words
    assert "not shown twice" not in words
    screen.report("train", 30, 30)
    screen.finish()
    screen.begin("export")
    console.print(screen.render())


def test_a_training_is_not_shown_before_there_is_a_run(tmp_path: Path) -> None:
    view = TrainingView(tmp_path / "none")
    assert view.state("train") is None
    assert TrainingView(None).state("train") is None
    assert TrainingView(make_watched(tmp_path / "run")).state("export") is None


def test_a_process_that_only_helps_another_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(display, "EVERY", 0.0)
    lines = display._Lines(Console(stderr=True), TrainingView(tmp_path), waits=True)
    lines.look()
    assert capsys.readouterr().err == ""
    lines.begin("compress")
    lines.look()
    assert capsys.readouterr().err == "compress: at work for 1 s\n"
