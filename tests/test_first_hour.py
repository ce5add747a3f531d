"""From a log to a served model: the commands that `pilocal init` names, one after the other, and no editor between."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import httpx
import pytest

from pilocal.flow.run import Run
from pilocal.run_folder.log import read_log
from pilocal.task import load_task
from tests import forked
from tests.made_logs import house
from tests.serving import running
from tests.test_logs_folder import SPLITS, lines, write

ROWS = 160
"""Of 2,000 in the measured proof. They name every word of a smaller glossary often enough, and init gives them the
fewest steps; the template has its 900 tokens, and three variants, as there."""


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the task's folder after `init`, `check` and `run`, and what `check` said."""
    folder = tmp_path_factory.mktemp("road")
    _, rows = house(ROWS, entries=24, notes=7)
    log = write(folder / "log.jsonl", rows)
    done = forked.pilocal("init", folder / "task", "--from-logs", log, "--variants", "--model", "starter")
    assert done.returncode == 0, done.stderr
    named = re.findall("`pilocal ([^`]*)`", done.stdout.splitlines()[-1])
    assert [command.split()[0] for command in named] == ["check", "run", "serve"]
    assert shlex.split(named[2])[1] == str(folder / "task" / "run")
    shown = ""
    for command in named[:2]:
        done = forked.pilocal(*shlex.split(command))
        assert done.returncode == 0, done.stderr
        shown = shown or done.stdout
    return folder / "task", shown


@pytest.mark.timeout(1800)
def test_every_row_is_used_or_listed_with_its_reason(road: tuple[Path, str]) -> None:
    task, _ = road
    used = [record["source"] for split in SPLITS for record in lines(task / f"{split}.jsonl")]
    listed = [line for line in lines(task / "left_out.jsonl") if not line["kept"]]
    assert all(line["reason"] for line in listed)
    rows = used + [f"log.jsonl:{line['line']}" for line in listed]
    assert sorted(rows) == sorted(f"log.jsonl:{number}" for number in range(1, ROWS + 1))
    assert len(used) > 0.8 * ROWS
    assert {(int(source.rpartition(":")[2]) - 1) % 10 for source in used} >= {0, 1, 2, 3}  # of every variant


def test_the_settings_are_those_that_the_starter_learns_with(road: tuple[Path, str]) -> None:
    task, shown = road
    assert "learning_rate" not in shown
    assert "What a request saves" in shown
    last = read_log(task / "run" / "stages" / "3" / "metrics.jsonl")[-1]
    assert last.step == load_task(task).training.steps
    scores = Run(task / "run").metrics["arms"]
    assert scores["base_query_only"]["score"] == 0
    assert min(scores[arm]["score"] for arm in ("internalized", "shipped")) >= 0.8


def test_the_served_model_answers_the_bare_query_and_the_old_prompt(road: tuple[Path, str], tmp_path: Path) -> None:
    task, _ = road
    loaded = load_task(task)
    asked = [example for example in loaded.train if not example.history][:4]
    with running([task / "run"], tmp_path, "--context", 2048) as server:
        for before in ([], [{"role": "system", "content": loaded.template}]):
            replies = []
            for example in asked:
                messages = [*before, {"role": "user", "content": example.query}]
                body = {"model": loaded.name, "messages": messages, "temperature": 0}
                replies.append(httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json())
            said = [reply["choices"][0]["message"]["content"] for reply in replies]
            assert said == [example.answer for example in asked]
            assert max(reply["usage"]["prompt_tokens"] for reply in replies) < 40
