"""Shadow requests: answers are compared with the full prompt's, as texts and by the task's metric."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pilocal.base.base import Base
from pilocal.run_folder.shipped import Shipped, read_shipped
from pilocal.server.agreement import SECONDS, compare, serving_metrics
from pilocal.task import Scoring
from tests.served import make_run
from tests.serving import ASKED, KEY, Server, post, running
from tests.test_page import BROWSER, page  # noqa: F401
from tests.tiny import make_adapter


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> dict[str, Shipped]:
    """The same adapter for tasks that are scored otherwise; one was exported before exports named the metric."""
    root = tmp_path_factory.mktemp("shadow")
    adapter = make_adapter(root / "adapter", starter, rank=4, scale=2.0)
    made: dict[str, Shipped] = {}
    metrics: dict[str, dict[str, Any]] = {
        "contains": {"metric": "contains"},
        "exact": {"metric": "exact_match"},
        "old": {},
        'odd "\\ <b>': {"metric": "bleu"},
    }
    for number, (name, changes) in enumerate(metrics.items()):
        gguf = made["contains"].folder / made["contains"].base if made else None
        made[name] = make_run(root / str(number), starter, adapter, gguf=gguf, **{"name": name, **changes})
    return made


@pytest.fixture(scope="module")
def server(shipped: dict[str, Shipped], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    runs = [task.folder.parent for task in shipped.values()]
    with running(runs, folder, "--shadow-share", 1) as server:
        yield server


def tallies(server: Server) -> dict[str, dict[str, Any]]:
    found = httpx.get(f"{server.url}/shadow").json()
    assert found["share"] == 1
    return {each["task"]: each for each in found["tasks"]}


def compared(server: Server, task: str, count: int) -> dict[str, Any]:
    """Return a task's tally once it has so many."""
    deadline = time.monotonic() + 60
    while (found := tallies(server).get(task, {"compared": 0}))["compared"] < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def said(server: Server, task: str, query: str, headers: dict[str, str] | None = None, **more: Any) -> str:
    body = {"model": task, "messages": [{"role": "user", "content": query}], "temperature": 0, "max_tokens": 8, **more}
    return str(post(server, body, headers).json()["choices"][0]["message"]["content"])


def test_agreement_by_the_metric_is_counted_beside_equal_texts(server: Server) -> None:
    full = said(server, "exact", "tell me red", {"X-Pilocal-Fallback": "full-prompt"})
    own = said(server, "exact", "tell me red")
    found = compared(server, "exact", 1)
    assert found == {"task": "exact", "compared": 1, "same": int(own.strip() == full.strip()), "agree": found["same"]}
    # Words in another order, case and frame: not the same, and still the same to the metric.
    grammar = 'root ::= "The answer is ZOR." | "zor"'
    said(server, "contains", "tell me red", grammar=grammar, logit_bias={})
    compared(server, "contains", 1)
    text = httpx.get(f"{server.url}/metrics").text
    for name in ("exact", "contains"):
        tally = tallies(server)[name]
        for agrees, count in (("true", tally["agree"]), ("false", tally["compared"] - tally["agree"])):
            line = f'pilocal_shadow_metric_requests_total{{agrees="{agrees}",task="{name}"}} {float(count)}'
            assert (line in text) is (count > 0)


def test_an_export_that_names_no_metric_is_served_and_compared_as_text(server: Server) -> None:
    said(server, "old", "tell me red")
    found = compared(server, "old", 1)
    assert found["agree"] is None
    assert not re.search(
        r'pilocal_shadow_metric_requests_total\{[^}]*task="old"', httpx.get(f"{server.url}/metrics").text
    )


def test_who_says_the_same_is_told_by_each_metric(tmp_path: Path) -> None:
    def task(metric: str, **scoring: Any) -> Shipped:
        values: dict[str, Any] = {"base": "b", "adapter": "a", "base_sha256": "", "template": "", "shots": 0}
        return Shipped(folder=tmp_path / "export", name=metric, metric=metric, scoring=Scoring(**scoring), **values)

    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("create table t (a)")
        database.executemany("insert into t values (?)", [(1,), (2,)])
    (tmp_path / "export").mkdir()
    forever = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    warned: list[str] = []
    tasks = [task("exact_match"), task("contains"), task("bleu"), task("sqlite", database="../shop.db")]
    tasks += [task("python_tests"), task("command", command=("cat",))]
    metrics = serving_metrics(tasks, warned.append)
    assert list(metrics) == ["exact_match", "contains", "bleu", "sqlite"]
    assert warned == [
        "python_tests: --shadow-share counts equal texts alone: the metric python_tests needs the tests of a record",
        "command: --shadow-share counts equal texts alone: the metric command needs a program of your own",
    ]

    def agrees(name: str, one: str, other: str) -> bool | None:
        return compare(name, one, other, "q", metrics.get(name)).agrees

    assert agrees("exact_match", " ZOR", "ZOR\n") and not agrees("exact_match", "ZOR", "zor")
    assert agrees("contains", "It is 9:30.", "9.30") and not agrees("contains", "9:30", "9:31")
    near = "we open at nine in the morning on weekdays"
    assert agrees("bleu", near, f"{near} only") and not agrees("bleu", near, "closed")
    assert agrees("sqlite", "select a from t", "SELECT a FROM t WHERE a > 0")
    assert not agrees("sqlite", "select a from t", "select a from t where a > 1")
    assert not agrees("sqlite", "drop table t", "delete from t")
    assert agrees("sqlite", "not SQL ", "not SQL")
    began = time.monotonic()
    assert not agrees("sqlite", forever, "select a from t")
    assert time.monotonic() - began < 10 * SECONDS
    assert agrees("python_tests", "a", "a") is None
    assert agrees("command", "a", "b") is None


def test_a_metric_that_cannot_run_here_is_left_out_and_said(shipped: dict[str, Shipped], tmp_path: Path) -> None:
    from dataclasses import replace

    gone = replace(shipped["exact"], metric="sqlite", scoring=Scoring(database="gone.db"))
    newer = replace(shipped["exact"], metric="../../evil")
    warned: list[str] = []
    assert serving_metrics([gone, newer, shipped["old"]], warned.append) == {}
    assert "no such database" in warned[0]
    assert "this version has no metric ../../evil" in warned[1]
    assert "its export does not name the metric" in warned[2]


def test_the_metric_and_its_settings_travel_with_the_export(tmp_path: Path, shipped: dict[str, Shipped]) -> None:
    from dataclasses import replace

    scoring = Scoring(command=("./score.py", "-q"), timeout=3.5, strip=False)
    kept = replace(shipped["exact"], metric="command", scoring=scoring)
    kept.save_alone()
    try:
        found = read_shipped(kept.folder.parent)
        assert (found.metric, found.scoring) == ("command", scoring)
    finally:
        shipped["exact"].save_alone()
    assert '"metric"' not in (shipped["old"].folder / "shipped.json").read_text()


def test_without_a_share_nothing_is_compared_and_a_key_guards_the_tallies(
    shipped: dict[str, Shipped], tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    with running([shipped["exact"].folder.parent], tmp_path, "--api-key-file", file) as server:
        assert httpx.get(f"{server.url}/shadow").status_code == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        post(server, {"model": "exact", "messages": ASKED, "max_tokens": 1}, headers)
        assert httpx.get(f"{server.url}/shadow", headers=headers).json() == {"share": 0.0, "tasks": []}
        assert httpx.post(f"{server.url}/shadow", headers=headers).status_code == 405


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_page_shows_how_many_were_compared_and_agree(server: Server, page: Any) -> None:  # noqa: F811
    from playwright.sync_api import expect

    odd = 'odd "\\ <b>'
    said(server, odd, "tell me red")
    said(server, "old", "tell me blue")
    compared(server, odd, 1)
    page.goto(server.url)
    expect(page.locator("#drift")).to_be_visible()
    known = tallies(server)
    expect(page.locator("#drift tbody tr")).to_have_count(len(known))
    shown = [row.split("\t") for row in page.locator("#drift tbody tr").all_inner_texts()]
    by_name = {row[0]: row[1:] for row in shown}
    assert set(by_name) == set(known)
    for name, tally in known.items():
        count, same, agree = by_name[name]
        assert int(count) == tally["compared"]
        assert same == f"{tally['same']} ({100 * tally['same'] / tally['compared']:.1f}%)"
        assert agree.startswith("\N{EN DASH}" if tally["agree"] is None else f"{tally['agree']} (")
    page.select_option("#task", "exact")
    page.fill("#query", "tell me green")
    page.click("#go")
    expect(page.locator("#say")).to_have_text("Done.")
    assert page.text_content("#bare-title") == "Bare query, internalized"
    more = known.get("exact", {"compared": 0})["compared"] + 1
    row = page.locator("#drift tbody tr", has_text="exact")
    expect(row.locator("td").nth(1)).to_have_text(str(more), timeout=20_000)
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.said == []
