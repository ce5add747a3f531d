"""The page of `pilocal watch`: who may look, and what a browser shows of a run that goes on."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from pilocal.watch.app import Viewer, make_app
from pilocal.watch.picture import POINTS, loss_picture, means
from pilocal.watch.watcher import Watcher
from tests.watched import make_watched, step_line, write_lines, write_live

ROOT = Path(__file__).parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COMMAND = [sys.executable, "-c", "import pilocal.cli; pilocal.cli.main()", "watch"]
HOSTILE = '<img src="x" onerror="document.title=1"> & "q"'


@contextmanager
def watching(run: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen([*COMMAND, str(run), "--port", "0"], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stderr is not None
        found = re.search(r"watching .* at (http://127\.0\.0\.1:\d+/); ", process.stderr.readline())
        assert found
        yield found[1], process
    finally:
        process.kill()
        process.communicate()


def refused(*arguments: object) -> str:
    """Return the one line with which the command is refused."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_watched(tmp_path / "run")


def test_only_this_machine_s_own_pages_may_look_and_nobody_may_write(run: Path) -> None:
    with watching(run) as (url, process):
        for path in ("", "state", "loss.svg"):
            reply = httpx.get(url + path)
            assert reply.status_code == 200
            assert reply.headers["cross-origin-resource-policy"] == "same-origin"
            assert "default-src 'none'" in reply.headers.get("content-security-policy", "default-src 'none'")
            for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
                other = httpx.get(url + path, headers=headers)
                assert other.status_code == 403
                assert "colours" not in other.text
            for method in ("POST", "PUT", "DELETE"):
                assert httpx.request(method, url + path).status_code == 405
        assert httpx.get(f"{url}../run.json").status_code == 404
        assert httpx.get(url, headers={"Origin": url.rstrip("/")}).status_code == 200
        policy = httpx.get(url).headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "connect-src 'self'" in policy
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read() == "the page is closed; the run was not touched\n"
        assert process.wait(20) == 130


def test_what_cannot_be_watched_is_one_line(run: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == f"{tmp_path / 'none'}: no run has begun here; point at the folder of --run"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line, fix = refused(run, "--port", port), "choose another with --port; 0 takes a free one"
        assert line == f"127.0.0.1:{port}: cannot listen there: Address already in use; {fix}"
    (run / "run.json").write_text("{")
    assert "damaged run.json" in refused(run, "--json")


def test_the_state_as_json_needs_no_page(run: Path) -> None:
    done = subprocess.run([*COMMAND, str(run), "--json"], capture_output=True, text=True, cwd=ROOT, check=True)
    with watching(run) as (url, _):
        state = httpx.get(f"{url}state").json()
    import json

    printed = json.loads(done.stdout)
    assert printed.keys() == state.keys()
    for moving in ("steps", "work"):
        del printed[moving], state[moving]
    assert printed == state


def test_the_picture_has_the_borders_and_few_points(run: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = [[step_line(step, valid_loss=1.5) for step in range(a, a + 5000)] for a in (1, 5001)]
    drawn = loss_picture(lines, HOSTILE)
    assert b"validation loss" in drawn
    assert b"<img" not in drawn
    short = loss_picture([part[:3] for part in lines], "")
    assert len(drawn) > 0
    assert len(loss_picture([[step_line(1)]], "")) < len(short) < 100_000
    assert len(list(means(lines[0], 10_000 // POINTS))) == POINTS // 2


def test_a_run_that_has_taken_no_step_has_no_picture(tmp_path: Path) -> None:
    viewer = Viewer(Watcher(make_watched(tmp_path / "run", steps=0)))
    assert viewer.picture() is None


def test_without_matplotlib_the_page_says_how_to_get_the_picture(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.testclient import TestClient

    from pilocal.server.access import Access

    monkeypatch.setattr("pilocal.packages.is_installed", lambda name: name != "matplotlib")
    client = TestClient(make_app(Viewer(Watcher(run)), Access()))
    reply = client.get("/loss.svg")
    assert (reply.status_code, reply.text.count("\n")) == (501, 1)
    assert "pip install 'pilocal[plot]'" in reply.text


@pytest.fixture
def page() -> Iterator[Any]:
    """An empty tab that fails its test when the page complains, breaks its policy or asks another host."""
    if BROWSER is None:
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 900})
        said, asked = list[str](), list[str]()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        yield page
        browser.close()
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in asked), asked
    assert said == []


@pytest.mark.browser
def test_the_page_follows_a_run_through_whatever_happens(tmp_path: Path, page: Any) -> None:
    run = make_watched(tmp_path / "run", task={"name": HOSTILE, "folder": "x"})
    with watching(run) as (url, _):
        page.goto(url)
        expect(page.locator("#task")).to_have_text(HOSTILE)
        expect(page.locator("#said")).to_have_text("train goes on")
        expect(page.locator("#figures")).to_contain_text("12 of 30")
        expect(page.locator("#figures")).to_contain_text("about 16 s")
        expect(page.locator("#figures")).to_contain_text("then export, evaluate, not counted")
        expect(page.locator("#stages tr")).to_have_count(3)
        expect(page.locator("#stages tr.now")).to_contain_text("2 of 10")
        expect(page.locator("#lines tr")).to_have_count(8)
        expect(page.locator("#steps tr.now")).to_contain_text("train")
        if page.locator("#picture").is_visible():
            page.wait_for_function("document.getElementById('picture').naturalWidth > 0")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        write_lines(run, 1, [step_line(step) for step in range(11, 16)], '{"half')
        expect(page.locator("#figures")).to_contain_text("15 of 30")
        expect(page.locator("#faults")).to_be_hidden()
        run.rename(tmp_path / "away")
        expect(page.locator("#said.gone")).to_contain_text("is not there any more")
        expect(page.locator("#figures")).to_contain_text("15 of 30")
        (tmp_path / "away").rename(run)
        write_live(run, ended="interrupted")
        expect(page.locator("#said.stopped")).to_contain_text("stopped: interrupted")
        write_live(run, step="evaluate", what="base: bare query", done=3, total=12)
        expect(page.locator("#what")).to_have_text("base: bare query")
        expect(page.locator("#note")).to_contain_text("3 of 12")
        assert page.title() == f"{HOSTILE}: running"
