from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from pilocal.chart import LONGEST_NAME, Bars, Line, Point, bars_chart, line_chart, points_chart
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


def test_bars_stand_apart_by_group_and_stay_readable_when_they_are_many(tmp_path: Path) -> None:
    names = [f"- entry {i} costs $5 and {'goes on ' * 20 * (i == 3)}\n{i}" for i in range(150)]
    for name in ("a.svg", "b.svg"):
        groups = [Bars(title="none", names=[], values=[]), Bars(title="untouched", names=["\u5e97"], values=[-0.5])]
        groups.append(Bars(title="all", names=names, values=[i / 7 for i in range(150)]))
        bars_chart(tmp_path / name, groups, title="Census", x="nats")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    shown = texts(tmp_path / "a.svg")
    assert {"Census", "nats", "untouched", "all", "\u5e97", "- entry 7 costs $5 and 7"} <= set(shown)
    assert "none" not in shown
    assert LONGEST_NAME - 2 < max(map(len, shown)) <= LONGEST_NAME
    places = [shown.index(text) for text in ("\u5e97", "untouched", "all")]
    assert places == sorted(places)
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    height = float(root.attrib["height"].removesuffix("pt"))
    assert height / len(names) > 12  # points, for letters of 8


def test_points_are_named_and_those_that_lie_on_one_another_differ(tmp_path: Path) -> None:
    points = [Point(name=f"arm {i}", x=20.0 if i else 400.0, y=1.0, low=0.9, high=1.0) for i in range(12)]
    for name in ("a.svg", "b.svg"):
        points_chart(tmp_path / name, points, title="Scores", x="tokens", y="score", arrow=(0, 1))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert {"Scores", "tokens", "score", *(point.name for point in points)} <= set(texts(tmp_path / "a.svg"))
    points_chart(tmp_path / "c.svg", points, title="Scores", x="tokens", y="score")
    assert (tmp_path / "c.svg").read_text().count("<path") < (tmp_path / "a.svg").read_text().count("<path")
    nowhere = [Point(name="nothing is sent", x=0.0, y=0.5, low=0.5, high=0.5)]
    points_chart(tmp_path / "d.svg", nowhere, title="Scores", x="tokens", y="score")
    assert "nothing is sent" in texts(tmp_path / "d.svg")


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
