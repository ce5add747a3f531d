"""`--fallback-on low-confidence`: what an adapter is not sure of, the base answers with the full prompt."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pilocal.base.base import Base
from pilocal.errors import Faults, RunError
from pilocal.evaluate.confidence import Source, speak
from pilocal.progress import silent
from pilocal.prompt.tokens import prompt_tokens
from pilocal.run_folder.calibration import Calibration
from pilocal.run_folder.shipped import Shipped, read_shipped
from pilocal.server.confidence import read_thresholds
from tests.served import make_run
from tests.serving import ASKED, CONTEXT, ROOT, Server, full_chat, post, running
from tests.tiny import make_adapter

ARM, FULL = "X-Pilocal-Arm", {"X-Pilocal-Fallback": "full-prompt"}
ON = ("--fallback-on", "low-confidence")
QUERIES = ("tell me red", "hello", "what is 2 and 3?", "turn on the kitchen light", "blue", "who are you?")
ENDS = {str(token): -100 for token in (2041, 2045, 2046)}
"""What keeps an answer from ending."""


def calibration(threshold: float | None, *, wrong: int = 2) -> Calibration:
    return Calibration(threshold=threshold, examples=9, wrong=wrong, unsure=1, score=0.7, score_with_fallback=0.8)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> dict[str, Shipped]:
    """One adapter under several names: never sure, always sure, sometimes, and formed answers."""
    root = tmp_path_factory.mktemp("confidence")
    adapter = make_adapter(root / "adapter", starter, rank=4, scale=2.0)
    made: dict[str, Shipped] = {}
    for name in ("never", "always", "sometimes", "formed"):
        gguf = made["never"].folder / made["never"].base if made else None
        changes: Any = {"grammar": 'root ::= ("ZOR" | "MIP" | "KEL")'} if name == "formed" else {}
        made[name] = make_run(root / name, starter, adapter, gguf=gguf, **changes)
    between = sorted(confidences(made["never"], starter).values())
    thresholds = {"never": 1.0, "always": -1e9, "sometimes": (between[2] + between[3]) / 2, "formed": 1.0}
    for name, threshold in thresholds.items():
        calibration(threshold).save(made[name].folder)
    return made


def confidences(task: Shipped, base: Base) -> dict[str, float]:
    """How sure the adapter is of greedy answers of twelve tokens, as the evaluation computes it."""
    prompts = [prompt_tokens([{"role": "user", "content": query}], base.tokenizer) for query in QUERIES]
    source = Source(gguf=task.base_path, adapter=task.adapter_path, max_tokens=12)
    found = [each.confidence for each in speak(source, prompts, silent, "")]
    return {query: sure for query, sure in zip(QUERIES, found, strict=True) if sure is not None}


@pytest.fixture(scope="module")
def server(shipped: dict[str, Shipped], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with running([task.folder.parent for task in shipped.values()], folder, *ON, "--log-contents") as server:
        yield server


def asked(server: Server, model: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
    body = {"model": model, "messages": ASKED, "temperature": 0, "max_tokens": 12, **more}
    reply = post(server, body, headers)
    assert reply.status_code == 200, reply.text
    return reply


def said(reply: Any) -> list[str]:
    return [choice["message"]["content"] for choice in reply.json()["choices"]]


def streamed(reply: Any) -> str:
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    assert reply.text.endswith("data: [DONE]\n\n")
    return "".join(each["choices"][0]["delta"].get("content") or "" for each in events if each["choices"])


def unsure(server: Server, task: str) -> dict[str, float]:
    """What /metrics counts of a task, by arm."""
    prefix = "pilocal_low_confidence_requests_total{"
    lines = [line for line in httpx.get(f"{server.url}/metrics").text.splitlines() if line.startswith(prefix)]
    mine = [line for line in lines if f'task="{task}"' in line]
    return {line.split('arm="')[1].split('"')[0]: float(line.split()[-1]) for line in mine}


def test_an_answer_under_the_threshold_is_the_full_prompt_s(server: Server) -> None:
    before = unsure(server, "never").get("full-prompt", 0)
    reply, full, bare = asked(server, "never"), asked(server, "never", FULL), asked(server, "always")
    assert [each.headers[ARM] for each in (reply, full, bare)] == ["full-prompt", "full-prompt", "internalized"]
    assert said(reply) == said(full) != said(bare)
    assert reply.headers["X-Pilocal-Prompt-Tokens"] == full.headers["X-Pilocal-Prompt-Tokens"]
    assert reply.json()["usage"] == full.json()["usage"]
    fallen, by_header, own = server.entries[-3:]
    assert fallen["arm"] == "full-prompt"
    assert fallen["confidence"] == pytest.approx(own["confidence"], abs=0.01)
    assert fallen["prompt"] == by_header["prompt"] != own["prompt"]
    assert fallen["answer"] == said(full)[0]
    assert "confidence" not in by_header
    assert unsure(server, "never")["full-prompt"] == before + 1
    assert unsure(server, "always") == {}


def test_the_threshold_parts_the_sure_from_the_others(
    server: Server, shipped: dict[str, Shipped], starter: Base
) -> None:
    known = confidences(shipped["sometimes"], starter)
    middle = sorted(known.values())
    for query, sure in known.items():
        reply = asked(server, "sometimes", messages=[{"role": "user", "content": query}])
        assert reply.headers[ARM] == ("full-prompt" if sure <= middle[2] else "internalized"), query
        assert server.entries[-1]["confidence"] == pytest.approx(sure, abs=0.01)


@pytest.mark.parametrize("model", ["never", "always"])
def test_a_stream_is_told_once_it_is_known_who_answers(server: Server, model: str) -> None:
    whole = asked(server, model)
    more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    reply = asked(server, model, **more)
    assert reply.headers[ARM] == whole.headers[ARM]
    assert streamed(reply) == said(whole)[0]
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    assert events[-1]["usage"] == whole.json()["usage"]
    likely = asked(server, model, stream=True, logprobs=True)
    parts = [json.loads(line[6:]) for line in likely.text.splitlines() if line.startswith("data: {")]
    told = [one["token"] for part in parts for one in (part["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert "".join(told).strip() == said(whole)[0].strip()


def test_several_answers_fall_back_together_by_the_mean_of_them(server: Server) -> None:
    more: dict[str, Any] = {"n": 3, "temperature": 1.5, "seed": 5}
    reply = asked(server, "never", **more)
    assert reply.headers[ARM] == "full-prompt"
    assert said(reply) == said(asked(server, "never", FULL, **more))
    assert len(said(reply)) == 3
    own = asked(server, "always", **more)
    assert own.headers[ARM] == "internalized"
    sure = server.entries[-1]["confidence"]
    seen = asked(server, "always", **more, logprobs=True).json()["choices"]
    means = [[one["logprob"] for one in choice["logprobs"]["content"]] for choice in seen]
    assert all(means)
    # Ends are not told as tokens, but count: the mean lies near.
    assert sure == pytest.approx(sum(sum(each) / len(each) for each in means) / 3, abs=1.0)
    assert streamed(asked(server, "never", **{**more, "n": 1, "stream": True}))


def test_forms_hold_for_whoever_answers(server: Server) -> None:
    reply = asked(server, "formed", temperature=1)
    assert reply.headers[ARM] == "full-prompt"
    assert said(reply)[0] in ("ZOR", "MIP", "KEL")
    reply = asked(server, "never", grammar='root ::= "yes" | "no"')
    assert reply.headers[ARM] == "full-prompt"
    assert said(reply)[0] in ("yes", "no")
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    reply = asked(
        server,
        "never",
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert reply.headers[ARM] == "full-prompt"
    assert json.loads(said(reply)[0])["a"] in (1, 2)


def test_old_callers_fall_back_and_what_has_no_full_prompt_stays(server: Server) -> None:
    reply = asked(server, "never", messages=full_chat("tell me red"))
    assert reply.headers[ARM] == "full-prompt"
    assert said(reply) == said(asked(server, "never"))
    before = unsure(server, "never")
    ends_with_the_model = [*ASKED, {"role": "assistant", "content": "ZOR"}]
    assert asked(server, "never", messages=ends_with_the_model).headers[ARM] == "internalized"
    assert unsure(server, "never")["internalized"] == before.get("internalized", 0) + 1
    raw = post(server, {"model": "never", "prompt": "red", "max_tokens": 4}, path="completions")
    assert (raw.status_code, raw.headers[ARM]) == (200, "internalized")
    assert "confidence" not in server.entries[-1]


def test_a_strength_is_the_caller_s_own_choice(server: Server) -> None:
    strength = {"X-Pilocal-Adapter-Scale": "1"}
    reply = asked(server, "never", strength)
    assert reply.headers[ARM] == "internalized"
    assert said(reply) == said(asked(server, "always"))
    assert "confidence" not in server.entries[-2]


def test_a_full_prompt_that_does_not_fit_leaves_the_bare_answer(server: Server, starter: Base) -> None:
    """The first is too long itself. The second's answer would be cut, where the bare one is whole."""

    def chat(words: int) -> list[Any]:
        return [{"role": "user", "content": "tell me" + " red" * words}]

    def long(room: int) -> list[Any]:
        """Return a query whose full prompt leaves about so much room."""
        each = (len(prompt_tokens(chat(20), starter.tokenizer)) - len(prompt_tokens(chat(10), starter.tokenizer))) // 10
        full = int(asked(server, "always", FULL).headers["X-Pilocal-Prompt-Tokens"])
        return chat((CONTEXT - full - room) // each)

    body = {"model": "never", "messages": long(-8), "max_tokens": 1}
    assert post(server, body, FULL).status_code == 400
    tight = asked(server, "never", FULL, messages=long(12), max_tokens=1)
    assert 4 <= CONTEXT - int(tight.headers["X-Pilocal-Prompt-Tokens"]) < 25
    for room, tokens, arm in ((-8, 30, "internalized"), (12, 30, "internalized"), (12, 4, "full-prompt")):
        for stream in (False, True):
            reply = asked(server, "never", messages=long(room), logit_bias=ENDS, max_tokens=tokens, stream=stream)
            assert reply.headers[ARM] == arm
            assert server.entries[-1]["completion_tokens"] == tokens


def test_a_client_that_hangs_up_takes_its_fallback_with_it(server: Server) -> None:
    before = unsure(server, "never")
    body = {"model": "never", "messages": ASKED, "stream": True, "max_tokens": 400, "logit_bias": ENDS}
    with (
        pytest.raises(httpx.ReadTimeout),
        httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=httpx.Timeout(10, read=0.05)),
    ):
        pass
    deadline = time.monotonic() + 60
    while server.entries[-1]["status"] != 499:
        assert time.monotonic() < deadline
    assert unsure(server, "never") == before
    assert asked(server, "never").headers[ARM] == "full-prompt"


def test_one_at_a_time_it_is_the_same(shipped: dict[str, Shipped], tmp_path: Path) -> None:
    with running([shipped["never"].folder.parent], tmp_path, *ON, "--exact") as server:
        assert asked(server, "never").headers[ARM] == "full-prompt"
    with running([shipped["never"].folder.parent], tmp_path) as server:
        assert asked(server, "never").headers[ARM] == "internalized"
        assert "confidence" not in server.entries[-1]


def test_a_run_without_a_threshold_is_refused_in_one_line_that_says_how_to_make_it(
    runs: list[Path], shipped: dict[str, Shipped]
) -> None:
    command = [sys.executable, "-c", "import pilocal.cli; pilocal.cli.main()", "serve", str(runs[0]), "--port", "0"]
    done = subprocess.run([*command, *ON], check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    fix = f"`pilocal evaluate TASK --run {runs[0]}` chooses one on validation data"
    assert done.stderr == f"{runs[0]}: no confidence threshold for --fallback-on; {fix}\n"
    tasks = [read_shipped(run) for run in runs]
    with pytest.raises(Faults) as caught:
        read_thresholds([*tasks, shipped["never"]], lambda text: None)
    assert len(caught.value.faults) == 3


def test_a_task_that_no_threshold_helps_says_so_and_a_damaged_file_is_one_line(
    shipped: dict[str, Shipped], tmp_path: Path, starter: Base
) -> None:
    adapter = make_adapter(tmp_path / "adapter", starter, rank=4)
    gguf = shipped["never"].folder / shipped["never"].base
    task = make_run(tmp_path / "best", starter, adapter, gguf=gguf)
    warned: list[str] = []
    for wrong, why in ((0, "all 9 validation answers are right"), (2, "no threshold gains anything on the 9")):
        calibration(None, wrong=wrong).save(task.folder)
        assert read_thresholds([shipped["never"], task], warned.append) == {"never": 1.0}
        assert warned[-1].startswith(f"best: never falls back: {why}")
    with running([task.folder.parent], tmp_path, *ON) as server:
        assert asked(server, "best").headers[ARM] == "internalized"
    (task.folder / "confidence.json").write_text("{}")
    with pytest.raises(RunError, match=r"confidence\.json: damaged"):
        read_thresholds([task], warned.append)
