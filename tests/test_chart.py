from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from pilocal.chart import Line, line_chart
from pilocal.comparison.picture import write_curve
from pilocal.errors import RunError

LINES = [
    Line(name="linear", x=[25, 50], y=[0.3, 0.8], low=[0.2, 0.7], high=[0.4, 0.9]),
    Line(name="direct", x=[25, 50], y=[0.2, 0.7]),
]


def texts(svg: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_chart_says_what_it_shows_and_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        line_chart(tmp_path / name, LINES, title="Scores", x="examples", y="score", log_x=True, log_y=True)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert {"Scores", "examples", "score", "linear", "direct", "25", "50"} <= set(texts(tmp_path / "a.svg"))
    line_chart(tmp_path / "c.svg", LINES[:1], title="Scores", x="examples", y="score")
    assert "direct" not in texts(tmp_path / "c.svg")


def test_a_chart_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        line_chart(tmp_path / "file" / "a.svg", LINES, title="", x="", y="")


def test_the_learning_curve_has_a_line_for_every_arm(tmp_path: Path) -> None:
    points = [
        {"arm": arm, "examples": count, "score": count / 100, "interval": [count / 200, count / 50]}
        for count in (25, 50)
        for arm in ("linear", "direct")
    ]
    table = {"task": "smart-home", "seeds": [0, 1], "metric": "exact_match", "curve": points}
    write_curve(table, tmp_path / "curve.svg")
    assert {"linear", "direct", "exact_match", "25", "50"} <= set(texts(tmp_path / "curve.svg"))
