"""Queries from a generator: what it is shown, what counts as a query, and endpoints that fail in every way."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.compress.entries import read_entries
from pilocal.errors import InputError, RunError
from pilocal.retrieve.ngrams import NgramVectors
from pilocal.synth import endpoint as endpoints
from pilocal.synth import synthesize
from pilocal.synth.endpoint import KEY, Endpoint
from pilocal.synth.generator import STYLES, Sieve, Wish, generate
from pilocal.synth.recombine import key_of
from pilocal.synth.teacher import Teacher
from pilocal.task import load_task
from tests.test_flow import make_task

Reply = tuple[int, dict[str, str], str]
"""Status, headers and body."""


def completion(text: str | None) -> Reply:
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}}]})


@contextmanager
def serving(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[tuple[str, list[tuple[dict[str, Any], str]]]]:
    """An endpoint on loopback; yields its address and what it was sent, each body with its Authorization."""
    sent: list[tuple[dict[str, Any], str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent.append((body, self.headers.get("Authorization", "")))
            status, headers, text = reply(body, len(sent))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", sent
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited between tries, without waiting."""
    waited = list[float]()
    monkeypatch.setattr(endpoints, "sleep", waited.append)
    return waited


def test_an_endpoint_is_asked_again_while_that_may_help(pauses: list[float]) -> None:
    replies: list[Reply] = [(429, {"Retry-After": "7"}, ""), (503, {}, ""), (200, {}, "no json"), completion("fine")]
    with serving(lambda body, count: replies[count - 1]) as (url, sent):
        assert Endpoint(url, "m", budget=10)(["hello"]) == ["fine"]
    assert [body["messages"] for body, _ in sent] == [[{"role": "user", "content": "hello"}]] * 4
    assert sent[0][0]["model"] == "m"
    assert pauses == [7.0, 2.0, 4.0]


def test_what_does_not_help_is_one_line() -> None:
    with serving(lambda body, count: (401, {}, "")) as (url, sent):
        with pytest.raises(RunError, match=r"/v1: the endpoint refuses; got '401 Unauthorized'; check the address"):
            Endpoint(url, "m", budget=10)(["hello"])
        assert len(sent) == 1
    with pytest.raises(RunError, match=r"no answer after 6 tries; got .*refused.*; start the endpoint"):
        Endpoint(url, "m", budget=10)(["hello"])  # it is gone by now
    with serving(lambda body, count: completion(None)) as (url, sent):
        with pytest.raises(RunError, match="no answer after 6 tries; got 'no chat completion'"):
            Endpoint(url, "m", budget=10)(["hello"])
        with pytest.raises(RunError, match="the budget of requests is used up; got 3; raise"):
            Endpoint(url, "m", budget=3)(["hello"])
        assert len(sent) == 6 + 3


def test_a_query_that_is_nearly_another_does_not_pass() -> None:
    sieve = Sieve({key_of("When do you open on Sundays?")}, NgramVectors(["When do you open?", "Is there parking?"]))
    assert not sieve.passes("when do you open on  sundays?")
    assert not sieve.passes("When do you open on Sundays")
    assert sieve.passes("Where can I park my car?")
    assert not sieve.passes("Where can I park my car")
    assert Sieve(set(), NgramVectors([])).passes("anything")


def test_every_entry_that_lacks_queries_is_shown_until_it_has_enough() -> None:
    template = "Answer for the shop.\n- Opening hours: 9 to 5.\n- Parking: behind the house."
    first, second = read_entries(template)[1:]
    asked = list[str]()

    def write(requests: Sequence[str]) -> list[str]:
        asked.extend(requests)
        numbers = range(len(asked) - len(requests), len(asked))
        return [f"Sure:\n1. Is it {'xyzuvw'[n] * 9} there?\n2. {'abcdef'[n] * 9}, please" for n in numbers]

    like = ["are you there?", "who are you?"]
    made = list(generate(template, [(first, 3), (second, 1)], like, write, Sieve(set(), NgramVectors(like))))
    assert [entry.number for entry, _ in made] == [first.number] * 2 + [second.number] + [first.number]
    assert len({query for _, query in made}) == 4
    assert len(asked) == 2 + 1
    assert all(template in request and "are you there?" in request for request in asked)
    assert [first.text in request.split("One part of them is:")[1] for request in asked] == [True, False, True]
    assert STYLES[0] in asked[0]
    assert STYLES[1] in asked[2]
    assert Wish(first, STYLES[0]).request(template, like) == asked[0]


@pytest.fixture
def bare_task(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A template and nothing else; whatever its random weights answer is taken."""
    folder = make_task(tmp_path / "task", tiny_base.folder)
    for split in ("train", "valid", "test"):
        (folder / f"{split}.jsonl").unlink()
    paths = "\n".join(f'{split} = "synth/{split}.jsonl"' for split in ("train", "valid", "test"))
    text = (folder / "task.toml").read_text().replace('name = "tiny"', f'name = "tiny"\n{paths}')
    (folder / "task.toml").write_text(text)
    monkeypatch.setattr(Teacher, "objection", lambda self, answer: None)
    return folder


def with_generator(folder: Path, url: str, per_entry: int = 2, budget: int = 100) -> Path:
    text = (folder / "task.toml").read_text().split("[synth]")[0]
    synth = f'[synth]\nper_entry = {per_entry}\ngenerator = "{url}"\ngenerator_model = "m"\nbudget = {budget}\n'
    (folder / "task.toml").write_text(text + synth)
    return folder


def lines(body: dict[str, Any], count: int) -> Reply:
    """Six requests that differ from call to call."""
    return completion("\n".join(f"{i}. {chr(97 + count) * 5} {chr(98 + i) * 7}?" for i in range(1, 7)))


def test_a_template_alone_becomes_a_task(bare_task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    with serving(lines) as (url, sent):
        report = synthesize(with_generator(bare_task, url))
        calls = len(sent)
        assert {key for _, key in sent} == {"Bearer sk-secret"}
        assert synthesize(bare_task) == report
        assert len(sent) == calls  # nothing is asked for twice
    assert report["made"]["train"]["generated"] >= 2 * 3
    task = load_task(bare_task)
    assert min(map(len, (task.train, task.valid, task.test))) >= 3
    for path in (bare_task / "synth").iterdir():
        assert "sk-secret" not in path.read_text()


def test_what_was_generated_before_a_fault_is_kept(bare_task: Path) -> None:
    with serving(lines) as (url, sent):
        with pytest.raises(RunError, match="budget"):
            synthesize(with_generator(bare_task, url, per_entry=12, budget=9))
        kept = json.loads((bare_task / "synth" / "generated.json").read_text())["texts"]
        assert len(kept) == len(sent) == 9
        synthesize(with_generator(bare_task, url, per_entry=12))
        asked = [body["messages"][0]["content"] for body, _ in sent]
        assert len(set(asked)) == len(asked) > 9


def test_a_generator_that_writes_nothing_usable_is_one_line(bare_task: Path) -> None:
    said = r"nothing that it writes is a query; got .*generated\.json"
    with (
        serving(lambda body, count: completion("I cannot do that:")) as (url, _),
        pytest.raises(InputError, match=said),
    ):
        synthesize(with_generator(bare_task, url))


def test_the_base_itself_can_write_the_queries(bare_task: Path) -> None:
    text = (bare_task / "task.toml").read_text() + '[synth]\nper_entry = 1\ngenerator = "base"\n'
    (bare_task / "task.toml").write_text(text)
    report = synthesize(bare_task)
    assert report["made"]["train"]["generated"] > 0
    assert re.search(r'"origin": "generated"', (bare_task / "synth" / "train.jsonl").read_text())


def test_an_endpoint_needs_the_name_of_a_model(bare_task: Path) -> None:
    text = (bare_task / "task.toml").read_text() + '[synth]\ngenerator = "http://127.0.0.1:1/v1"\n'
    (bare_task / "task.toml").write_text(text)
    with pytest.raises(InputError, match="generator_model must name the endpoint's model"):
        synthesize(bare_task)
