"""`pilocal init` with logs and prompts: bad input is one line and writes nothing, and a terminal is asked."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from pilocal.errors import InputError
from pilocal.task import load_task
from tests.made_logs import query, rules, said, user
from tests.test_logs_folder import SPLITS, answered, chat, init, made, rng, two_prompts, write


def bad_logs(tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    draw = rng()
    text = rules(draw)
    one = write(tmp_path / "one.jsonl", [answered(text, "a", "b")])
    nothing = write(tmp_path / "nothing.jsonl", [[user(query(draw)), said(draw)] for _ in range(30)])
    begun = write(tmp_path / "begun.jsonl", [[user(f"please {query(draw)}"), said(draw)] for _ in range(30)])
    same = write(tmp_path / "same.jsonl", [answered(text, "the same", "b")] * 30)
    words = tmp_path / "words.jsonl"
    words.write_text("started\ndone\n")
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"time": 1}\n{"level": "info"}\n')
    packed = tmp_path / "log.zip"
    packed.write_bytes(b"PK\x03\x04" + b"\0" * 40)
    empty = tmp_path / "empty"
    empty.mkdir()
    return {
        "one row": ([one], "one row: what recurs shows in several"),
        "no prompt": ([nothing], "no prompt recurs in its 30 rows: 95% of them share a beginning of 0 characters"),
        "a beginning": ([begun], "share a beginning of 7 characters; got 'please '"),
        "one query": ([same], "1 of 30 rows are left, of 1 different queries; three are needed"),
        "no JSON": ([words], "words.jsonl:1: the log is not JSON"),
        "other objects": ([mixed], "none of 2 rows can be used; this one: no request in it (its keys are time)"),
        "zip": ([packed], "this is a zip, Excel or Word file"),
        "no file": ([tmp_path / "none.jsonl"], "no such file"),
        "no data": ([empty], "no data in this folder"),
        "one of two": ([one, words], "words.jsonl:1: the log is not JSON"),
        "column": (
            [one, "--columns", "query=mesages,answer=x"],
            "no such column; got 'mesages'; did you mean messages?",
        ),
        "a base": ([one, "--model", "./none"], "what recurs shows in several"),
    }


def test_bad_logs_are_one_clear_line_and_nothing_is_written(tmp_path: Path) -> None:
    before = None
    for what, (arguments, line) in bad_logs(tmp_path).items():
        before = before or sorted(tmp_path.iterdir())
        with_model = arguments if "--model" in arguments else [*arguments, "--model", "starter"]
        result = init(tmp_path / "task", "--from-logs", *with_model)
        assert isinstance(result.exception, InputError), what
        assert line in str(result.exception), what
        assert len(str(result.exception).splitlines()) == 1
        assert sorted(tmp_path.iterdir()) == before, what


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    log, _, _ = two_prompts(tmp_path)
    folder = tmp_path / "task"
    folder.mkdir()
    made(folder, log)  # an empty folder is filled
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for arguments in (["--from-logs", log], ["--from-prompt", log], []):
        assert "already exists and is not empty" in str(init(folder, *arguments).exception)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--from-logs", "a", "--from-prompt", "b"], "--from-logs or --from-prompt, not both"),
        (["--redact"], "--redact needs --from-logs"),
        (["--model", "starter"], "--model needs --from-logs or --from-prompt"),
        (["--from-prompt", "b", "--template", "2"], "--template needs --from-logs"),
        (["more.jsonl"], "unexpected argument more.jsonl"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], line: str, tmp_path: Path) -> None:
    result = init(tmp_path / "task", *arguments)
    assert result.exit_code == 2
    assert line in result.output


def test_a_prompt_alone(tmp_path: Path) -> None:
    draw = rng()
    text = rules(draw)
    (tmp_path / "prompt.txt").write_text(f"\ufeff{text}\r\n")
    result = init(tmp_path / "task", "--from-prompt", tmp_path / "prompt.txt", "--model", "starter")
    assert result.exception is None
    assert f"`pilocal synth {tmp_path / 'task'}`" in result.output
    task = load_task(tmp_path / "task", data=False)
    assert task.template == text
    assert task.synth.generator == "base"
    assert [task.files[split].relative_to(tmp_path / "task").parent.name for split in SPLITS] == ["synth"] * 3
    for name, data in {"empty": b" \n", "binary": b"\xff\xfe\0"}.items():
        (tmp_path / name).write_bytes(data)
        assert isinstance(init(tmp_path / "other", "--from-prompt", tmp_path / name).exception, InputError)
    assert not (tmp_path / "other").exists()


def test_three_questions_on_a_terminal(tmp_path: Path) -> None:
    draw = rng()
    first, second = rules(draw), rules(draw)
    rows = [chat((first, second)[n % 3 == 0], user(f"{query(draw)} a{n}@b.org"), said(draw)) for n in range(90)]
    log = write(tmp_path / "log.jsonl", rows)
    terminal, inside = pty.openpty()
    code = "import pilocal.cli; pilocal.cli.main()"
    command = [sys.executable, "-c", code, "init", str(tmp_path / "task"), "--from-logs", str(log)]
    with subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside) as process:
        os.close(inside)
        shown = b""
        answers = {b"Which template?": b"2\n", b"Which base?": b"1\n", b"Take them out?": b"y\n"}
        while True:
            try:
                shown += os.read(terminal, 4096)
            except OSError:
                break
            for question in [each for each in answers if each in shown]:
                os.write(terminal, answers.pop(question))
    os.close(terminal)
    assert process.returncode == 0, shown
    assert not answers
    assert load_task(tmp_path / "task").template == second
    assert "@b.org" not in (tmp_path / "task" / "train.jsonl").read_text()
