"""What `pilocal check` answers, on the terminal and on its page."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import pilocal
from pilocal.base.base import Base
from pilocal.errors import InputError
from pilocal.flow.check_page.marked import MOST, marked, pieces
from pilocal.flow.check_page.write import make_check
from pilocal.flow.gap import Gap
from pilocal.flow.listeners import Listeners
from pilocal.flow.plan import Plan
from pilocal.flow.run import run_task
from pilocal.flow.saving import Prices, Saving
from pilocal.flow.verdicts import Verdict, further_hints, verdicts
from pilocal.report.page import LARGEST
from pilocal.run_folder.rows import read_records
from pilocal.training.memory import Need
from tests.forked import pilocal as command
from tests.reports import Page, commands_of, missing_of
from tests.test_flow import make_task
from tests.test_report import MARKUP

PRICES = Prices(prompt=2, training=4)


@pytest.fixture(scope="module")
def task(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task with markup in its template, in a query and in an answer that contradicts another."""
    folder = make_task(tmp_path_factory.mktemp("checked") / "task", tiny_base.folder)
    seen = MARKUP.replace("\x00", "")
    with (folder / "template.md").open("a", encoding="utf-8") as file:
        file.write(f"Write {seen}\n")
    with (folder / "train.jsonl").open("a", encoding="utf-8") as file:
        for query, answer in (("red", seen), (seen, "MIP")):
            file.write(json.dumps({"query": query, "answer": answer}) + "\n")
    return folder


@pytest.fixture(scope="module")
def plan(task: Path) -> Plan:
    heard = Listeners(warn=list[str]().append)
    return pilocal.check(task, schedule=task / "schedule.toml", probe=False, gap=True, listeners=heard)


@pytest.fixture(scope="module")
def page(plan: Plan) -> Page:
    return Page(make_check(plan, PRICES))


def by_subject(plan: Plan, prices: Prices | None = None) -> Mapping[str, Verdict]:
    return {verdict.about: verdict for verdict in verdicts(plan, prices)}


def test_the_page_has_every_answer_the_stages_the_census_and_the_data(plan: Plan, page: Page) -> None:
    assert page.texts["h1"] == ["tiny"]
    assert page.texts["h2"] == [
        "In short", "What a request saves", "Stage by stage", "Can it work?", "The data", "What each stage asks",
        "From here",
    ]  # fmt: skip
    for verdict in verdicts(plan, PRICES):
        assert verdict.question in page.texts["dt"]
        assert {verdict.answer, verdict.why} <= set(page.texts["dd"])
    for stage, need in zip(plan.stages, plan.needs, strict=True):
        assert need
        assert {f"{stage.tau:.2f}", f"{stage.longest_row:,}", f"{need.peak / 2**30:.2f}"} <= set(page.texts["td"])
    assert plan.gap
    assert {entry.entry for entry in plan.gap.entries} <= set(page.texts["th"])
    assert {f"{entry.nats:+.2f}" for entry in plan.gap.entries} <= set(page.texts["td"])
    (warning,) = plan.warnings
    assert re.search(r"train.jsonl:10: a query has more than one answer, .* on line 7$", warning)
    assert warning in page.texts["li"]
    check, run = commands_of(page)
    assert check[:2] == ["pilocal", "check"]
    assert run[:2] == ["pilocal", "run"]
    assert "money, a million times" in page.texts["th"]


def test_nothing_on_the_page_comes_from_elsewhere_and_nothing_is_markup(plan: Plan, page: Page) -> None:
    text = make_check(plan)
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    names = {name for name, _ in page.elements}
    assert not {"script", "img", "iframe", "object", "embed", "base", "form", "image", "foreignobject"} & names
    assert not [each for _, each in page.elements if any(key.startswith("on") or key == "src" for key in each)]
    assert not [each for _, each in page.elements if not each.get("href", "#").startswith(("#", "data:,"))]
    assert page.text.count("onerror=alert(1)") >= 3
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h\d", name)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(page.texts["th"])


def test_each_stage_shows_a_row_as_it_will_be_trained_on(task: Path, plan: Plan, tmp_path: Path) -> None:
    heard = Listeners(warn=list[str]().append)
    run_task(task, task / "schedule.toml", tmp_path / "run", until="stages", listeners=heard)
    assert len(plan.prompts) == len(plan.stages) == 3
    for number, prompt in enumerate(plan.prompts):
        records = read_records(tmp_path / "run" / "stages" / str(number), "train")
        assert tuple(records[prompt.line - 1]["messages"]) == prompt.messages
        assert 0 < prompt.tokens < plan.stages[number].longest_row
        assert prompt.messages[-2]["content"] in prompt.text
    tokens = [prompt.tokens for prompt in plan.prompts]
    assert tokens == sorted(tokens, reverse=True)


def test_what_a_stage_has_lost_is_marked(plan: Plan) -> None:
    parts = make_check(plan).split("<h3>Stage ")[1:]
    first, *_, last = (part.partition("<h3>")[0] for part in parts)
    assert "<del>" not in first
    (turns,) = re.findall("<dl.*</dl>", last, flags=re.DOTALL)
    kept = Page(f"<body>{re.sub('<del>.*?</del>', '', turns, flags=re.DOTALL)}</body>")
    shown = [said for said in kept.texts["dd"] if said]
    assert shown == [message["content"] for message in plan.prompts[-1].messages]
    gone = "".join(re.findall("<del>(.*?)</del>", last, flags=re.DOTALL))
    assert "Please be kind." in gone


def texts(count: int, seed: int) -> tuple[str, str]:
    """Return a text, and what is left of it once words were taken out."""
    rng = random.Random(seed)
    words = [rng.choice(("the", "of", "x,", "\n-", *map(str, range(50)))) for _ in range(count)]
    return " ".join(words), " ".join(word for word in words if rng.random() < 0.5)


@pytest.mark.parametrize("count", [10, 300, 4000])
def test_both_texts_can_be_read_from_the_marked_one(count: int) -> None:
    assert 4000 * 4000 / 2 > MOST > 300 * 300
    for seed in range(3):
        before, after = texts(count, seed)
        found = pieces(before, after)
        assert "".join(piece for kind, piece in found if kind != "del").split() == after.split()
        old = "".join(piece for kind, piece in found if kind != "ins")
        assert "".join(old.split()) == "".join(before.split())


def test_a_text_that_is_another_one_is_marked_whole() -> None:
    before, after = texts(4000, 0)
    assert [kind for kind, _ in pieces(before, f"{after} else")] == ["del", "ins"]
    assert marked("\u7ea2\u8272\u7684", "\u7ea2\u7684", 9) == "\u7ea2<del>\u8272</del>\u7684"


def test_a_page_of_long_prompts_stays_small(plan: Plan) -> None:
    long = "<word> " * 200_000
    prompt = replace(plan.prompts[0], messages=({"role": "user", "content": long}, *plan.prompts[0].messages))
    page = make_check(replace(plan, prompts=(prompt,) * 3))
    assert len(page.encode()) <= LARGEST
    assert "more characters)" in page


SAVING = Saving(494.4, 17.8, 840_388, 202.0, (40.0, 4.0))
NEED = Need(peak=3 * 2**30, seconds=202.0)
GAP = Gap(examples=4, full=0.1, bare=3.0, entries=())


def made(**changes: Any) -> Plan:
    return replace(Plan(2048, [], [None, NEED], 8 * 2**30, None, SAVING, gap=GAP), **changes)


def test_the_answers_say_what_is_known() -> None:
    found = by_subject(made(), PRICES)
    assert found["saves"].answer == "96% of the prompt tokens"
    assert found["pays"].answer == "after 1,764 requests"
    assert "in time here after 5,612; in money after 3,527" in found["pays"].why
    assert (found["fits"].answer, found["takes"].answer) == ("yes", "3 min 22 s")
    assert (found["can work"].answer, found["data"].answer) == ("yes", "nothing odd")
    assert [verdict.good for verdict in found.values()] == [True, True, True, None, True, True]


def test_the_answers_say_what_is_not_good_or_not_known() -> None:
    nothing = Saving(17.8, 17.8, 840_388, None)
    advice = "set [training] accumulate = 2: 7.0 GiB, the same gradient"
    plan = made(saving=nothing, advice=advice, gap=replace(GAP, bare=0.1), warnings=("a", "b"))
    plan = replace(plan, hints=(*GAP.hints, *plan.gap.hints, "another"))  # type: ignore[union-attr]
    found = by_subject(plan)
    assert [found[about].answer for about in ("saves", "pays", "fits", "takes")] == [
        "nothing",
        "never",
        "no",
        "not known",
    ]
    assert found["fits"].why.endswith(advice)
    assert found["can work"].answer == "hardly"
    assert "nothing to gain" in found["can work"].why
    assert list(further_hints(plan)) == ["another"]
    assert found["data"].answer == "2 things to look at"
    assert [verdict.good for verdict in found.values()] == [False, False, False, None, False, False]
    unasked = by_subject(made(gap=None))["can work"]
    assert (unasked.answer, unasked.good) == ("not known", None)


def test_a_page_without_a_census_says_how_to_get_one(plan: Plan) -> None:
    page = Page(make_check(replace(plan, gap=None)))
    assert [line for line in missing_of(page) if "--gap" in line]


def test_check_answers_on_one_screen_and_writes_the_page(task: Path, tmp_path: Path) -> None:
    asked = ("check", task, "--schedule", task / "schedule.toml", "--no-probe", "--gap")
    done = command(*asked, "--html", tmp_path / "new" / "check.html", COLUMNS="100")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    answers = [line.split()[0] for line in lines[: lines.index("")] if line[0] != " "]
    assert answers == ["saves", "pays", "fits", "takes", "can", "data"]
    assert "train.jsonl:10" in done.stdout
    page = tmp_path / "new" / "check.html"
    assert done.stderr.endswith(f"all of it on one page: {page}\n")
    assert Page(page.read_text(encoding="utf-8")).texts["h1"] == ["tiny"]
    page.write_text("<!DOCTYPE html> an older one")
    again = command(*asked, "--html", page, "--json")
    assert json.loads(again.stdout)["warnings"][0].endswith("first on line 7")
    assert "older" not in page.read_text(encoding="utf-8")
    assert [file.name for file in page.parent.iterdir()] == ["check.html"]


@pytest.mark.parametrize("name", ["task", "task/task.toml", "task/train.jsonl/check.html"])
def test_a_place_where_no_page_should_be_is_refused_before_any_work(task: Path, plan: Plan, name: str) -> None:
    path, before = task.parent / name, sorted(task.iterdir())
    contents = [file.read_bytes() for file in before]
    done = command("check", task, "--html", path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{path}: ")
    with pytest.raises(InputError):
        plan.write_page(path)
    assert [file.read_bytes() for file in sorted(task.iterdir())] == contents


def test_what_fails_leaves_no_page(tiny_base: Base, tmp_path: Path) -> None:
    task, page = make_task(tmp_path / "task", tiny_base.folder), tmp_path / "check.html"
    (tmp_path / "bad.toml").write_text('decay = "liner"\n')
    (done, said) = command("check", task, "--schedule", tmp_path / "bad.toml", "--html", page), "did you mean linear"
    assert (done.returncode, done.stdout, said in done.stderr) == (1, "", True)
    (task / "train.jsonl").write_text("")
    done = command("check", task, "--html", page)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{task}/train.jsonl: the file is empty")
    assert len(done.stderr.splitlines()) == 1
    assert not page.exists()
