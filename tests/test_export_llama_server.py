"""`pilocal export --format llama-server`: what the script starts, and that it answers as pilocal's own server does."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pilocal.base.base import Base
from pilocal.errors import ExportError, InputError, PilocalError
from pilocal.export.llama_server import QUERY, write_llama_server
from pilocal.run_folder.shipped import Shipped, read_shipped
from tests.rival import VARIABLE, llama_server, started
from tests.served import EXAMPLES, make_run
from tests.serving import ask, running
from tests.tiny import make_adapter

ODD = ["two words", "o'clock", 'say "so"', '"quoted", all', "a, b", "$HOME `x` \\", "-dash", "new\nline", "größe;&"]
"""Names of folders, each a trap for a shell or for llama.cpp's lists."""


@pytest.fixture
def tasks(runs: list[Path], tmp_path: Path) -> list[Shipped]:
    """Two tasks with an adapter each, in folders of their own, and one that is fused."""
    return [read_shipped(shutil.copytree(run, tmp_path / run.name)) for run in runs]


def started_with(script: Path) -> tuple[Path, list[str]]:
    """Run a script with a program that tells where it was started and with what."""
    program = script.parent / "tell"
    program.write_text('#!/bin/sh\npwd -P\nprintf "%s\\0" "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "LLAMA_SERVER": str(program), "CDPATH": "/usr"}
    command = [f"./{script.name}", "--port", "8081"]
    done = subprocess.run(command, cwd=script.parent, env=environment, capture_output=True, text=True, check=True)
    where = script.parent.resolve()
    assert done.stdout.startswith(f"{where}\n")
    return where, done.stdout.removeprefix(f"{where}\n").split("\0")[:-1]


def given(words: list[str], option: str) -> list[str]:
    return [after for before, after in pairwise(words) if before == option]


def listed(field: str) -> list[str]:
    """Read a list as llama.cpp does."""
    return next(csv.reader([field]))


@pytest.mark.parametrize("name", ODD)
def test_one_run_is_started_from_any_folder(name: str, runs: list[Path], tmp_path: Path) -> None:
    task = read_shipped(shutil.copytree(runs[0], tmp_path / name))
    script, _ = write_llama_server([task], [24])
    where, words = started_with(script)
    assert given(words, "--model") == ["base-f16.gguf"]
    assert [(where / each).is_file() for each in given(words, "--lora")] == [True]
    assert words[-2:] == ["--port", "8081"]
    assert (given(words, "--parallel"), given(words, "--ctx-size")) == (["16"], ["32768"])
    assert (given(words, "--cache-ram"), given(words, "--threads-http")) == (["0"], ["128"])
    assert "--chat-template-file" not in words


@pytest.mark.parametrize("name", ODD)
def test_every_run_s_adapter_is_loaded_and_off_until_it_is_named(name: str, runs: list[Path], tmp_path: Path) -> None:
    first = read_shipped(shutil.copytree(runs[0], tmp_path / "first"))
    other = read_shipped(shutil.copytree(runs[1], tmp_path / name))
    where, words = started_with(write_llama_server([first, other], [24, 8])[0])
    assert "--lora" not in words
    paths = []
    for field in given(words, "--lora-scaled"):
        (item,) = listed(field.replace("\n", "\0"))
        path, scale = item.replace("\0", "\n").split(":")
        assert scale == "0"
        paths.append((where / path).resolve())
    assert paths == [task.folder.resolve() / "adapter.gguf" for task in (first, other)]


def requests_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))["requests"]


def test_each_request_has_its_adapter_its_form_and_what_stays_of_its_prompt(tasks: list[Shipped]) -> None:
    first = replace(tasks[0], grammar='root ::= "ZOR" | "it\'s"')
    second = replace(tasks[1], residue_template="Say 'so'.\nStop.")
    script, path = write_llama_server([first, second], [24, 8])
    user = {"role": "user", "content": QUERY}
    assert requests_of(path) == {
        "colours": {
            "messages": [user],
            "lora": [{"id": 0, "scale": 1.0}],
            "temperature": 0,
            "max_tokens": 24,
            "grammar": first.grammar,
        },
        "lights": {
            "messages": [{"role": "system", "content": "Say 'so'.\nStop."}, user],
            "lora": [{"id": 1, "scale": 1.0}],
            "temperature": 0,
            "max_tokens": 8,
        },
        "base": {"messages": [user], "lora": [{"id": 0, "scale": 0.0}], "temperature": 0},
    }
    (shown,) = [line for line in script.read_text().splitlines() if line.startswith("#   curl ")]
    command = ["sh", "-c", f'set -- {shown.removeprefix("#   ")}; printf %s "$4"']
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == requests_of(path)["colours"]


def test_a_fused_run_has_neither_an_adapter_nor_the_base(tasks: list[Shipped]) -> None:
    script, path = write_llama_server([tasks[2]], [24])
    _, words = started_with(script)
    assert given(words, "--model") == ["fused-f16.gguf"]
    assert not [word for word in words if word.startswith("--lora")]
    assert requests_of(path).keys() == {"melted"}
    assert "lora" not in requests_of(path)["melted"]


def test_a_base_of_the_user_s_own_stays_where_it_is_and_is_asked_as_trained(tasks: list[Shipped]) -> None:
    base = tasks[0].base_path.rename(tasks[0].folder.parent / "the base.gguf")
    (tasks[0].folder / "chat_template.jinja").write_text("{{ messages }}")
    own = replace(tasks[0], base=str(base), base_files={base.name: "0" * 64}, chat_template="chat_template.jinja")
    _, words = started_with(write_llama_server([own], [24])[0])
    assert given(words, "--model") == [str(base)]
    assert given(words, "--chat-template-file") == ["chat_template.jinja"]


def test_what_cannot_share_a_server_is_refused_in_one_line(tasks: list[Shipped], tmp_path: Path) -> None:
    first, second, fused = tasks
    own = replace(first, base_files={"base.gguf": "0" * 64}, base=str(first.base_path))
    foreign = replace(second, base_sha256="1" * 64)
    faults: list[tuple[list[Shipped], type[PilocalError], str]] = [
        (
            [first, replace(second, residue_shots=2)],
            ExportError,
            "llama-server cannot choose shots for each query; got 2",
        ),
        (
            [first, fused],
            ExportError,
            "fused with its base, which it cannot share; got 'fused-f16.gguf'; `pilocal export",
        ),
        ([first, replace(second, name="colours")], InputError, "has the same name; got 'colours'"),
        ([first, foreign], InputError, f"{second.folder}: made from another base than {first.folder}; got"),
        (
            [own, replace(foreign, base_files=own.base_files, base=own.base)],
            InputError,
            f"its base is asked with another chat template than that of {first.folder}; got",
        ),
        (
            [first, replace(foreign, chat_template="chat_template.jinja")],
            InputError,
            ", or asked with another chat template",
        ),
    ]
    (second.folder / "chat_template.jinja").write_text("{{ messages }}")
    for pair, kind, said in faults:
        with pytest.raises(kind) as caught:
            write_llama_server(pair, [24, 24])
        assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ExportError, match="takes no colon in the path of one of several adapters"):
        write_llama_server([first, read_shipped(shutil.copytree(second.folder.parent, tmp_path / "a:b"))], [24, 24])
    assert not list(first.folder.glob("llama-server*"))


@pytest.mark.skipif(llama_server() is None, reason=f"{VARIABLE} names no llama-server, and none is on the PATH")
def test_llama_server_answers_as_our_own_server_does(starter: Base, runs: list[Path], tmp_path: Path) -> None:
    third = make_adapter(tmp_path / "adapter", starter, rank=8, scale=1.0, seed=7)
    gguf = read_shipped(runs[0]).base_path
    formed = make_run(tmp_path / 'it\'s, "so"', starter, third, gguf=gguf, grammar='root ::= ("a" | "b")+')
    tasks = [read_shipped(runs[0]), read_shipped(runs[1]), replace(formed, name="formed")]
    tasks[2].save(EXAMPLES)
    folders = [shutil.copytree(task.folder.parent, tmp_path / "runs" / f"{n}, o'{n}") for n, task in enumerate(tasks)]
    script, path = write_llama_server([read_shipped(folder) for folder in folders], [12, 12, 12])
    requests = requests_of(path)
    queries = [example.query for example in EXAMPLES] + ["say so", "turn on the light in the kitchen"]
    pairs = [(name, query) for name in requests for query in queries]
    random.Random(0).shuffle(pairs)
    answers: dict[tuple[str, str], str] = {}
    with started(script, tmp_path, "--threads", 1, "--ctx-size", 16 * 512) as server:
        for name, query in pairs:
            body = json.loads(json.dumps({"max_tokens": 12, **requests[name]}).replace(QUERY, query))
            reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
            assert reply.status_code == 200, reply.text
            answers[name, query] = reply.json()["choices"][0]["message"]["content"]
    with (
        running(folders, tmp_path, "--exact") as ours,
        openai.OpenAI(base_url=f"{ours.url}/v1", api_key="none") as client,
    ):
        expected = {pair: ask(client, pair[0], [{"role": "user", "content": pair[1]}]) for pair in pairs}
    assert answers == expected
    assert len(set(answers.values())) > len(queries)
    assert all(set(answers["formed", query]) <= set("ab") for query in queries)
