"""What the last tokens buy: one adapter, asked with each part of the template."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.comparison import compare
from pilocal.comparison.arms import parse_arms
from pilocal.comparison.columns import residue_cells
from pilocal.comparison.design import Design
from pilocal.comparison.markdown import markdown
from pilocal.errors import InputError
from tests.forked import pilocal
from tests.test_compare import DESIGN
from tests.test_flow import make_task

RATES = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def task(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_task(tmp_path_factory.mktemp("residue") / "task", tiny_base.folder, steps=6)


@pytest.fixture(scope="module")
def asked(task: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A comparison that asks one adapter with three parts of the template."""
    folder = tmp_path_factory.mktemp("asked") / "out"
    return task, folder, compare(task, residual(RATES), run=folder)


def residual(rates: tuple[float, ...]) -> Design:
    return replace(DESIGN, arms=parse_arms(("direct",)), residue=rates, curve=())


def test_one_adapter_is_asked_with_every_part_of_the_template(asked: tuple[Path, Path, dict[str, Any]]) -> None:
    _, folder, table = asked
    points = table["residue"]
    assert [(point["arm"], point["rate"]) for point in points] == [("direct", rate) for rate in RATES]
    assert points[0]["template_tokens"] == 0 < points[1]["template_tokens"] < points[2]["template_tokens"]
    assert points[0]["prompt_tokens"] < points[1]["prompt_tokens"] < points[2]["prompt_tokens"]
    rows = {row["arm"]: row for row in table["arms"]}
    assert points[0]["prompt_tokens"] == rows["direct"]["prompt_tokens"]
    assert points[0]["score"] == rows["direct"]["score"]  # the same question again
    assert all(len(point["by_seed"]) == 2 for point in points)
    text = (folder / "compare.md").read_text()
    assert text == markdown(table)
    assert "Score of direct over what is left of the template:" in text
    assert "prompt tokens that remain" in (folder / "residue.svg").read_text()
    assert residue_cells(table)[1][1][0] == "0.5"


def test_what_was_asked_at_a_rate_is_known_again(asked: tuple[Path, Path, dict[str, Any]]) -> None:
    task, folder, table = asked
    done: list[str] = []
    again = compare(task, residual((*RATES, 0.7)), run=folder, report=lambda name, _: done.append(name))
    assert done == ["direct-seed0-at0.7", "direct-seed3-at0.7"]
    assert [point for point in again["residue"] if point["rate"] != 0.7] == table["residue"]


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ((0.5, 0.5), "--residue: rates are distinct numbers from 0 to 1; got (0.5, 0.5); write 0,0.05,0.1,0.2"),
        ((1.5,), "--residue: rates are distinct numbers from 0 to 1"),
        ((float("nan"),), "--residue: rates are distinct numbers from 0 to 1"),
        ((2.0,), "--residue: rates are distinct numbers from 0 to 1"),
        ((0.0, 0.01), "--residue: rules leaves nothing for 0.01 of the template; got 0.01; take another rate"),
    ],
)
def test_a_rate_that_cannot_be_made_is_one_line_before_any_work(
    rates: tuple[float, ...], said: str, task: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        compare(task, residual(rates), run=tmp_path / "out", report=lambda name, _: pytest.fail(name))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out").exists() == ("leaves nothing" in said)  # which the compressor has to say


def test_the_command_asks_with_what_stays(task: Path, tmp_path: Path) -> None:
    law = tmp_path / "law.toml"
    law.write_text('decay = "linear"\nstages = 2\nshots = 1\nuntil_tau = 0.5\nuntil_shots = 1\n')
    options = ("--schedule", law, "--run", tmp_path / "out", "--arms", "direct", "--seeds", "0", "--residue", "1")
    done = pilocal("compare", task, *options)
    assert done.returncode == 0, done.stderr
    assert "Score of direct over what is left of the template" in done.stdout
    table = json.loads((tmp_path / "out" / "compare.json").read_text())
    rows = {row["arm"]: row["prompt_tokens"] for row in table["arms"]}
    assert rows["query-only"] == rows["direct"]  # both have what stays
    assert table["residue"][0]["prompt_tokens"] == rows["full-prompt"]  # the whole template and the shot that stays
    assert pilocal("compare", task, "--residue", "a").returncode == 2


def test_the_residue_is_asked_of_the_schedule_that_an_arm_trains() -> None:
    assert Design(arms=parse_arms(("drop@0.5", "direct"))).residue_arm == "drop"
    assert Design(arms=parse_arms(("query-only",))).residue_arm == "linear"
