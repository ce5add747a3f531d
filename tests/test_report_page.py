"""The report in a real browser, without a screen and without any network: widths, themes, print."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

import pilocal
from pilocal.base.base import Base
from pilocal.report.theme import DARK, LIGHT
from tests.reports import change, copy_of
from tests.test_flow import make_task

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="needs chromium")]

WIDE_PARTS = "[...document.querySelectorAll('section > *')].filter(e => e.getBoundingClientRect().right > innerWidth)"
"""What reaches beyond the screen."""

CLIPPED = "[...document.querySelectorAll('.box')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.ariaLabel)"
"""The boxes that scroll sideways."""


@pytest.fixture(scope="module")
def report(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a word that nobody can break, and with a long hash."""
    run = copy_of(reported, tmp_path_factory.mktemp("page"))
    long = "word" * 100
    change(run / "metrics.json", lambda metrics: metrics["retention"]["worst"].update(query=long))
    change(run / "run.json", lambda state: state.update(warnings=[long]))
    return pilocal.Run(run).report()


@pytest.fixture
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        # Chromium's own sandbox cannot start as root.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def colour(text: str) -> str:
    """Return the colour that a browser computes as the theme writes it.

    >>> colour("rgb(245, 247, 249)")
    '#f5f7f9'
    """
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", text)[:3])


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize(("scheme", "theme"), [("light", LIGHT), ("dark", DARK)])
def test_the_page_opens_offline_and_fits(browser: Any, report: Path, scheme: str, theme: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = list[str](), list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(f"{WIDE_PARTS}.length") == 0
    body = "getComputedStyle(document.body)"
    assert colour(page.evaluate(f"{body}.backgroundColor")) == theme["page"]
    assert colour(page.evaluate(f"{body}.color")) == theme["ink"]
    assert colour(page.evaluate("getComputedStyle(document.querySelector('svg.chart text')).fill")) == theme["ink"]
    line = "[...document.querySelectorAll('svg.chart path')].find(e => e.style.stroke.includes('series0'))"
    assert colour(page.evaluate(f"getComputedStyle({line}).stroke")) == theme["series0"]
    first = page.locator("svg.chart").first.bounding_box()
    assert first["y"] < 400
    assert first["x"] + first["width"] <= width
    assert first["height"] > 200
    scrolling = page.evaluate(CLIPPED)
    assert bool([label for label in scrolling if "test queries" in label]) == (width == 400)


def test_the_page_of_a_check_opens_offline_and_fits(browser: Any, tiny_base: Base, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder)
    with (task / "template.md").open("a") as file:
        file.write("word" * 100 + "\n")
    plan = pilocal.check(task, schedule=task / "schedule.toml", probe=False, gap=True)
    path = plan.write_page(tmp_path / "check.html")
    for scheme, theme, width in (("light", LIGHT, 1280), ("dark", DARK, 400)):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        said, asked = list[str](), list[str]()
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(path.as_uri())
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(f"{WIDE_PARTS}.length") == 0
        gone = "getComputedStyle(document.querySelector('del'))"
        assert colour(page.evaluate(f"{gone}.color")) == theme["soft"]
        assert page.evaluate(f"{gone}.textDecorationLine") == "line-through"
        page.emulate_media(media="print")
        assert colour(page.evaluate("getComputedStyle(document.body).color")) == LIGHT["ink"]


def test_print_is_light_and_shows_whole_tables(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 700, "height": 900}, color_scheme="dark")
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    assert colour(page.evaluate("getComputedStyle(document.body).color")) == LIGHT["ink"]
    assert page.evaluate("document.documentElement.scrollWidth") == 700
    cut = "[...document.querySelectorAll('.box')].filter(e => e.scrollHeight > e.clientHeight + 1)"
    assert page.evaluate(f"{cut}.length") == 0


def test_tables_that_scroll_can_be_reached_with_the_keyboard(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.goto(report.as_uri())
    boxes = page.locator(".box").count()
    reached = set()
    for _ in range(boxes):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.ariaLabel"))
    assert reached == set(page.evaluate("[...document.querySelectorAll('.box')].map(e => e.ariaLabel)"))
