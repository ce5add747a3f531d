"""Queries from a generator: what it is shown, what counts as a query, and endpoints that fail in every way."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.compress.entries import read_entries
from pilocal.errors import InputError, RunError
from pilocal.retrieve.ngrams import NgramVectors
from pilocal.synth import endpoint as endpoints
from pilocal.synth import synthesize
from pilocal.synth.endpoint import KEY
from pilocal.synth.generator import ALIKE, MEAN_THE_SAME, STYLES, Sieve, Wish, generate
from pilocal.synth.teacher import Teacher
from pilocal.task import load_task
from pilocal.task.text import key_of
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


@pytest.mark.parametrize("fault", ["429", "500", "hang", "budget", "budget_tokens"])
def test_whatever_an_endpoint_does_nothing_is_lost_and_the_end_is_the_same(
    fault: str, bare_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "PATIENCE", 0.3)
    whole = shutil.copytree(bare_task, tmp_path / "whole")
    paid = list[str]()

    def reply(body: dict[str, Any], count: int) -> Reply:
        request = body["messages"][0]["content"]
        if fault in ("429", "500", "hang") and count > 4 and not healed:
            if fault == "hang":
                sleep(0.5)
            return int(fault) if fault != "hang" else 500, {"Retry-After": "1"}, ""
        paid.append(request)
        return lines_for(request)

    healed = list[bool]()
    with serving(reply) as (url, _):
        limit = {"budget": 4} if fault == "budget" else {"budget_tokens": 1} if fault == "budget_tokens" else {}
        line = "the budget of" if limit else "no answer after 6 tries"
        with pytest.raises(RunError, match=line) as raised:
            synthesize(with_generator(bare_task, url, per_entry=6, **limit))
        assert "\n" not in str(raised.value) and "what was made is kept" in str(raised.value)
        healed.append(True)
        synthesize(with_generator(bare_task, url, per_entry=6))
        assert len(paid) == len(set(paid)) > 4
        synthesize(with_generator(whole, url, per_entry=6))
    for path in (whole / "synth").iterdir():
        assert path.read_bytes() == (bare_task / "synth" / path.name).read_bytes(), path.name


def lines_for(request: str) -> Reply:
    """Six requests that depend on what is asked for alone."""
    word = hashlib.sha256(request.encode()).hexdigest()
    return completion("\n".join(f"{i}. {word[9 * i : 9 * i + 9]} {chr(98 + i) * 7}?" for i in range(1, 7)))


def test_a_query_that_is_nearly_another_does_not_pass() -> None:
    vectors = NgramVectors(["When do you open?", "Is there parking?"])
    sieve = Sieve({key_of("When do you open on Sundays?")}, [(vectors, ALIKE)])
    assert not sieve.passes("when do you open on  sundays?")
    assert not sieve.passes("When do you open on Sundays")
    assert sieve.passes("Where can I park my car?")
    assert not sieve.passes("Where can I park my car")
    assert Sieve(set(), [(NgramVectors([]), ALIKE)]).passes("anything")


def test_queries_that_mean_the_same_do_not_both_pass() -> None:
    places = {"where may i park": [1.0, 0.0], "is there a car park": [0.99, 0.141], "when do you open": [0.0, 1.0]}

    def embed(queries: Sequence[str]) -> NDArray[np.float32]:
        return np.array([places[query] for query in queries], dtype=np.float32)

    sieve = Sieve(set(), [(NgramVectors([]), ALIKE), (embed, MEAN_THE_SAME)])
    assert [sieve.passes(query) for query in places] == [True, False, True]


def test_every_entry_that_lacks_queries_is_shown_until_it_has_enough() -> None:
    template = "Answer for the shop.\n- Opening hours: 9 to 5.\n- Parking: behind the house."
    first, second = read_entries(template)[1:]
    asked = list[str]()

    def write(requests: Sequence[str]) -> list[str]:
        asked.extend(requests)
        numbers = range(len(asked) - len(requests), len(asked))
        return [f"Sure:\n1. Is it {'xyzuvw'[n] * 9} there?\n2. {'abcdef'[n] * 9}, please" for n in numbers]

    like = ["are you there?", "who are you?"]
    sieve = Sieve(set(), [(NgramVectors(like), ALIKE)])
    made = list(generate(template, [(first, 3), (second, 1)], like, write, sieve, seed=0))
    asked_for = [[entry.number for entry in entries] for entries, _ in made]
    assert asked_for == [[first.number], [first.number, second.number], [second.number], [first.number]]
    assert len({query for _, query in made}) == 4
    assert len(asked) == 3 + 1
    assert all("Answer for the shop." in request and "are you there?" in request for request in asked)
    assert not any(first.text in request and second.text in request for request in (asked[0], asked[2], asked[3]))
    assert [(first.text in part, second.text in part) for part in asked] == [(1, 0), (1, 1), (0, 1), (1, 0)]
    assert STYLES[0] in asked[0]
    assert STYLES[1] in asked[3]
    assert Wish((first,), STYLES[0]).request("Answer for the shop.", like) == asked[0]


def style_of(request: str) -> str:
    return next(style for style in STYLES if style in request)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 14])
def test_queries_of_an_entry_are_of_three_styles_and_a_third_ask_for_another_entry_too(count: int) -> None:
    template = "Answer for the shop.\n" + "".join(f"- Fact {i} is {i}.\n" for i in range(9))
    entries = read_entries(template)[1:]
    asked = list[str]()

    def write(requests: Sequence[str]) -> list[str]:
        first = len(asked)
        asked.extend(requests)
        words = [f"q{n:03}" for n in range(first, len(asked))]
        return ["\n".join(f"{word} {chr(97 + i) * 6}" for i in range(6)) for word in words]

    made = list(generate(template, [(entry, count) for entry in entries], [], write, Sieve(set(), []), seed=1))
    for entry in entries:
        mine = [(one, query) for one, query in made if one[0] == entry]
        assert len(mine) == count
        assert [len(one) for one, _ in mine].count(2) == count // 3
        assert len({style_of(asked[int(query[1:4])]) for _, query in mine}) >= min(3, count)
    pairs = {one for one, _ in made if len(one) == 2}
    assert all(len(set(pair)) == 2 for pair in pairs)
    assert len(pairs) == len(entries) * min(count // 3, 2)


def test_what_a_style_wrote_too_much_of_is_taken_where_others_wrote_nothing() -> None:
    (entry,) = read_entries("Dogs may enter.")
    texts = iter(["\n".join(f"{chr(97 + i) * 8} {i}" for i in range(6)), "Sorry:", "", "None:"])
    made = list(generate("Dogs may enter.", [(entry, 5)], [], lambda some: [next(texts)], Sieve(set(), []), seed=0))
    assert len(made) == 5 and {entries for entries, _ in made} == {(entry,)}


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


def with_generator(folder: Path, url: str, per_entry: int = 2, budget: int = 100, budget_tokens: int = 10**6) -> Path:
    text = (folder / "task.toml").read_text().split("[synth]")[0]
    synth = f'[synth]\nper_entry = {per_entry}\ngenerator = "{url}"\ngenerator_model = "m"\nbudget = {budget}\n'
    synth += f"budget_tokens = {budget_tokens}\n"
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
