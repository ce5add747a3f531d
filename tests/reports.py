"""What the tests of the report share: a page as a browser reads it, and files as a run leaves them."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pilocal
from pilocal.flow.listeners import Listeners
from pilocal.flow.run import run_task
from tests.test_flow import make_task


def make_reported(folder: Path, base: Path) -> Path:
    """Make a task with a query that has two answers, and run it; return its folder."""
    task = make_task(folder, base)
    with (task / "train.jsonl").open("a") as file:
        file.write('{"query": "red", "answer": "<b>MIP</b>"}\n')
    heard = Listeners(warn=list[str]().append)
    run_task(task, task / "schedule.toml", task / "run", until="evaluate", listeners=heard)
    return task


def copy_of(task: Path, folder: Path) -> Path:
    """Copy a task with its run, which then may be changed; return the run."""
    run = shutil.copytree(task, folder / "task") / "run"
    change(run / "run.json", lambda state: state["task"].update(folder=str(run.parent)))
    return run


VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """A page as a browser reads it: its elements in order, and what is written in each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return self.texts["body"][0]


def page_of(run: Path, **how: Any) -> Page:
    return Page(pilocal.Run(run).report(**how).read_text(encoding="utf-8"))


def change(path: Path, how: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    how(values)
    path.write_text(json.dumps(values))


def compare_json(run: Path, **more: Any) -> dict[str, Any]:
    """A comparison as `pilocal compare` writes it, of this run's task."""
    metrics = json.loads((run / "metrics.json").read_text())
    arm = {"score": 0.5, "interval": [0.25, 0.75], "by_seed": [0.5]}
    direct = {"arm": "direct", "title": "direct: the query alone", "prompt_tokens": 7.0, "pi_score": 0.5, **arm}
    direct |= {"training": {"tokens": 1000, "computed_tokens": 1, "seconds": 1.0, "ends": []}}
    direct |= {"break_even": {"requests": 12, "requests_cached": None}}
    model = json.loads((run / "run.json").read_text())["model"]
    shown = {"task": "tiny", "model": model, "metric": metrics["metric"], "n": metrics["n"], "seeds": [0], "steps": 7}
    points = [{"schedule": "direct", "strength": strength, **arm} for strength in (0.5, 1)]
    curves: dict[str, Any] = {"curve": [], "strengths": points, "residue": [], "law": {}, "prices": None, "slices": {}}
    return {**shown, "arms": [direct], **curves, **more}


def commands_of(page: Page) -> list[list[str]]:
    return [shlex.split(line) for line in page.texts["code"] if line.startswith("pilocal ")]


def missing_of(page: Page) -> list[str]:
    kinds = [each.get("class") for each in page.all("p")]
    return [said for said, kind in zip(page.texts["p"], kinds, strict=True) if kind == "missing"]
