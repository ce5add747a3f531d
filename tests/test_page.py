"""The server's page in a real browser, without a screen and without any network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from playwright.sync_api import expect, sync_playwright

from pilocal.base.base import Base
from tests.served import make_run
from tests.serving import KEY, Server, running
from tests.test_serve_slots import DATED, NAMES, SLOTTED, VALUES
from tests.tiny import make_adapter

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="needs chromium")]
MARKUP = "<b>red</b><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Path:
    root = tmp_path_factory.mktemp("page")
    adapter = make_adapter(root / "adapter", starter, rank=4, scale=2.0)
    return make_run(root / "colours", starter, adapter).folder.parent


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running([run], tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def page() -> Iterator[Any]:
    """An empty tab that fails its test when the page complains, breaks its own policy or asks another host."""
    with sync_playwright() as playwright:
        # Chromium's own sandbox cannot start as root.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.said = said  # type: ignore[attr-defined]
        yield page
        browser.close()
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in asked), asked


def results(page: Any, arm: str) -> dict[str, str]:
    names = ("answer", "tokens", "first", "total")
    return {name: page.text_content(f"#{arm} .{name}") for name in names}


def ask(page: Any, query: str) -> None:
    page.fill("#query", query)
    page.click("#go")
    expect(page.locator("#say")).to_have_text("Done.")


def milliseconds(text: str) -> int:
    number, unit = text.split()
    assert unit == "ms"
    return int(number.replace(",", ""))


def test_both_answers_stand_side_by_side_with_tokens_and_times(server: Server, page: Any) -> None:
    page.goto(server.url)
    expect(page.locator("#task option")).to_have_text("colours")
    assert page.title() == "pilocal"
    assert page.is_hidden("#lock")
    ask(page, "tell me red")
    bare, full = results(page, "bare"), results(page, "full")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for shown, headers in ((bare, {}), (full, {"X-Pilocal-Fallback": "full-prompt"})):
            reply = client.chat.completions.create(
                model="colours",
                messages=[{"role": "user", "content": "tell me red"}],
                temperature=0,
                extra_headers=headers,
            )
            assert reply.usage is not None
            assert shown["answer"] == reply.choices[0].message.content
            assert int(shown["tokens"]) == reply.usage.prompt_tokens
            assert 0 < milliseconds(shown["first"]) <= milliseconds(shown["total"])
    assert int(full["tokens"]) > 3 * int(bare["tokens"])
    boxes = [page.locator(f"#{arm}").bounding_box() for arm in ("bare", "full")]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    page.set_viewport_size({"width": 360, "height": 800})
    boxes = [page.locator(f"#{arm}").bounding_box() for arm in ("bare", "full")]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.said == []


def test_an_answer_is_text_and_never_markup(server: Server, page: Any) -> None:
    """The answer comes from the wire, so that markup is in it for certain."""
    part = json.dumps({"choices": [{"index": 0, "delta": {"content": MARKUP}}]})
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            status=200,
            headers={"Content-Type": "text/event-stream", "X-Pilocal-Prompt-Tokens": "7"},
            body=f"data: {part}\n\ndata: [DONE]\n\n",
        ),
    )
    page.goto(server.url)
    expect(page.locator("#task option")).to_have_text("colours")
    ask(page, MARKUP)
    assert results(page, "bare")["answer"] == MARKUP
    assert page.locator("#bare b").count() == 0
    assert page.title() == "pilocal"
    assert page.said == []


def test_a_request_that_is_refused_is_told_and_the_page_goes_on(server: Server, page: Any) -> None:
    page.goto(server.url)
    expect(page.locator("#task option")).to_have_text("colours")
    page.fill("#query", "word " * 600)
    page.click("#go")
    expect(page.locator("#say.error")).to_contain_text("maximum context length is 512 tokens")
    ask(page, "tell me blue")
    assert results(page, "full")["total"].endswith(" ms")


def test_a_server_with_a_key_is_asked_with_it(run: Path, tmp_path: Path, page: Any) -> None:
    file = tmp_path / "key.txt"
    file.write_text(KEY)
    with running([run], tmp_path, "--api-key-file", file) as server:
        page.goto(server.url)
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key", "wrong")
        page.fill("#query", "tell me red")
        page.click("#go")
        expect(page.locator("#say")).to_contain_text("wants an API key")
        page.fill("#key", KEY)
        ask(page, "tell me red")
        assert results(page, "bare")["tokens"].isdigit()


def test_a_task_with_slots_has_a_field_for_each(run: Path, starter: Base, tmp_path: Path, page: Any) -> None:
    """A value may have several lines; the fields keep what is in them while tasks of the same slots are chosen."""
    adapter = make_adapter(tmp_path / "adapter", starter, rank=4, scale=2.0)
    gguf = run / "export" / "base-f16.gguf"
    dated: dict[str, Any] = {"template": DATED, "slots": NAMES, "examples": SLOTTED, "gguf": gguf}
    runs = [run, *(make_run(tmp_path / name, starter, adapter, **dated).folder.parent for name in ("diary", "notes"))]
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.method == "POST" else None)
    with running(runs, tmp_path) as server:
        page.goto(server.url)
        expect(page.locator("#task option")).to_have_text(["colours", "diary", "notes"])
        assert page.is_hidden("#slots")
        page.select_option("#task", "diary")
        expect(page.locator("#slots label")).to_have_text([*NAMES])
        for name, value in VALUES.items():
            page.get_by_label(name, exact=True).fill(value)
        page.select_option("#task", "notes")
        ask(page, "tell me red")
        assert [each["pilocal_slots"] for each in asked] == [VALUES, VALUES]
        assert results(page, "bare")["tokens"].isdigit()
        page.select_option("#task", "colours")
        assert page.is_hidden("#slots")
        ask(page, "tell me red")
        assert "pilocal_slots" not in asked[-1]
        (listed,) = [each for each in httpx.get(f"{server.url}/v1/models").json()["data"] if each["id"] == "diary"]
        assert listed["pilocal_slots"] == [*NAMES]
    assert page.said == []


def test_the_policy_lets_the_page_reach_nothing_but_its_server(server: Server) -> None:
    policy = httpx.get(server.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
