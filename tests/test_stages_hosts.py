"""Claims about the stages' data sets for hosts: valid lines, the limits of each, and what is warned of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilocal.base.base import Base
from pilocal.errors import InputError
from pilocal.flow.formats import HOSTS, Host, StageSet, write_hosted
from pilocal.flow.formats.bedrock import bedrock_record
from pilocal.flow.formats.write import write_format, write_stages
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps, step_named
from pilocal.prompt.preamble import Preamble
from pilocal.prompt.render import render
from pilocal.task import Example, Training
from tests.test_cli import pilocal
from tests.test_flow import make_task
from tests.test_stages_format import EXAMPLES, TEXT, faults, folder, stage_set, stages

__all__ = ["folder"]


def bedrock_faults(line: str) -> list[str]:
    """Return what AWS's validator of Nova's data sets would refuse of a line."""
    record = json.loads(line)
    found = [f"unknown key {key}" for key in record.keys() - {"schemaVersion", "system", "messages"}]
    if record.get("schemaVersion") != "bedrock-conversation-2024":
        found.append("another schema")
    if "system" in record and [list(part) for part in record["system"]] != [["text"]]:
        found.append("the system message is not one text")
    roles = [message["role"] for message in record["messages"]]
    if len(roles) < 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        found.append("roles do not alternate")
    return found + [fault for message in record["messages"] for fault in content_faults(message)]


def content_faults(message: dict[str, Any]) -> list[str]:
    if message.keys() != {"role", "content"} or [list(part) for part in message["content"]] != [["text"]]:
        return ["content is not one text"]
    return [] if message["content"][0]["text"] else ["empty text"]


def alternating_faults(line: str) -> list[str]:
    """Return what Together and Fireworks would refuse beside what OpenAI does."""
    roles = [message["role"] for message in json.loads(line)["messages"]]
    turns = roles[1:] if roles[0] == "system" else roles
    return [] if turns == ["user", "assistant"] * (len(turns) // 2) else ["roles do not alternate"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ({"messages": []}, "another schema"),
        ({"schemaVersion": "bedrock-conversation-2024", "messages": [{"role": "user", "content": [{"text": "a"}]}]},
         "roles do not alternate"),
        ({"schemaVersion": "bedrock-conversation-2024", "system": "a", "messages": []},
         "the system message is not one text"),
        ({"schemaVersion": "bedrock-conversation-2024", "messages": [{"role": "user", "content": "a"}]},
         "content is not one text"),
        ({"schemaVersion": "bedrock-conversation-2024",
          "messages": [{"role": "user", "content": [{"text": "a"}], "weight": 0}]}, "content is not one text"),
    ],
)  # fmt: skip
def test_the_validator_of_bedrock_finds_every_kind_of_fault(line: dict[str, Any], fault: str) -> None:
    try:
        assert fault in bedrock_faults(json.dumps(line))
    except (TypeError, AttributeError):
        pytest.fail("the validator stumbles")


@given(template=st.one_of(st.just(""), TEXT), shots=st.lists(EXAMPLES, max_size=3), example=EXAMPLES)
def test_every_record_is_valid_for_bedrock_together_and_fireworks_and_says_the_same(
    template: str, shots: list[Example], example: Example
) -> None:
    record = render(template, shots, example)
    written = bedrock_record(record)
    assert bedrock_faults(json.dumps(written)) == []
    said = [("system", part["text"]) for part in written.get("system", ())]
    said += [(message["role"], message["content"][0]["text"]) for message in written["messages"]]
    assert said == [(message["role"], message["content"]) for message in record["messages"]]
    for name in ("together", "fireworks"):
        line = json.dumps(HOSTS[name].line(record))
        assert (faults(line, 1 + len(example.learned)), alternating_faults(line)) == ([], [])


@pytest.mark.parametrize("form", ["bedrock", "together", "fireworks"])
def test_every_host_gets_a_file_for_every_trained_stage_and_its_own_settings(folder: Path, form: str) -> None:
    done = stages(folder, form, "--json")
    made = folder / "run" / form
    order = json.loads(done.stdout)[form]
    assert [line["stage"] for line in order] == [1, 2]
    for line in order:
        for split in ("train", "valid"):
            lines = (made / line[split]).read_text().splitlines()
            assert lines
            assert not any(bedrock_faults(each) if form == "bedrock" else alternating_faults(each) for each in lines)
    wanted: dict[str, dict[str, Any]] = {
        "bedrock": {"hyperParameters": {"epochCount": "1"}},
        "together": {"job": {"n_epochs": 1, "train_on_inputs": False}},
        "fireworks": {"job": {"epochs": 1}},
    }
    assert wanted[form].items() <= order[0].items()
    assert "warning" not in done.stderr
    assert HOSTS[form].how[0] in (made / "how.txt").read_text()


def written(host: Host, tmp_path: Path, *some: StageSet) -> tuple[list[dict[str, Any]], list[str]]:
    said: list[str] = []
    order = write_hosted(host, some, tmp_path, Training(batch_size=8), said.append, Preamble())
    return order.stages, said


def test_what_a_host_would_refuse_is_warned_of_with_its_limit(tmp_path: Path) -> None:
    for name, rows, limit in (("openai", 9, "10"), ("bedrock", 7, "8"), ("fireworks", 2, "3")):
        _, said = written(HOSTS[name], tmp_path / name, stage_set(rows=rows))
        assert said == [
            f"{tmp_path / name}: {HOSTS[name].title} wants at least {limit} training examples; these are {rows}"
        ]
        assert not written(HOSTS[name], tmp_path / name, stage_set(rows=rows + 1))[1]
    assert not written(HOSTS["together"], tmp_path, stage_set(rows=1))[1]
    _, said = written(HOSTS["bedrock"], tmp_path, stage_set(rows=19_990, valid=11))
    assert said == [f"{tmp_path}/3: Amazon Bedrock takes at most 20,000 rows, those for validation included; "
                    "these are 20,001"]  # fmt: skip
    _, said = written(HOSTS["bedrock"], tmp_path, replace(stage_set(), longest=32_001))
    assert said == [f"{tmp_path}/3: Amazon Bedrock takes rows of at most 32,000 tokens; the longest has about 32,001"]
    _, said = written(replace(HOSTS["together"], most_bytes=50), tmp_path, stage_set(rows=2, valid=1))
    assert [line.split("; ")[1].split(" has")[0] for line in said] == ["train.jsonl", "valid.jsonl"]


def test_texts_that_bedrock_refuses_are_found_wherever_they_stand(tmp_path: Path) -> None:
    example = Example(id="x", query="say <image>", answer="User: no")
    rows = [render("", [], Example(id="y", query="a", answer="b"))] * 8 + [render("Bot: be kind.", [], example)] * 2
    _, said = written(HOSTS["bedrock"], tmp_path, replace(stage_set(), train=rows))
    assert {line.split("'")[1] for line in said} == {"<image>", "User:", "Bot:"}
    assert all(line.endswith("train.jsonl, 2 lines, the first is 9") for line in said)
    assert not written(HOSTS["openai"], tmp_path, replace(stage_set(), train=rows))[1]


def test_epochs_stay_within_what_bedrock_takes_and_long_rows_get_room_at_fireworks(tmp_path: Path) -> None:
    (line,), _ = written(HOSTS["bedrock"], tmp_path, stage_set(steps=100, rows=40))
    assert (line["epochs"], line["schedule_epochs"], line["hyperParameters"]) == (5, 20.0, {"epochCount": "5"})
    (line,), _ = written(HOSTS["openai"], tmp_path, stage_set(steps=100, rows=40))
    assert line["epochs"] == 20
    for longest, job in ((6000, {"epochs": 2}), (8000, {"epochs": 2, "max_context_length": 10_240})):
        (line,), _ = written(HOSTS["fireworks"], tmp_path, replace(stage_set(), longest=longest))
        assert line["job"] == job


def test_answers_that_are_only_shown_are_warned_of_where_a_host_learns_them(tiny_base: Base, tmp_path: Path) -> None:
    said = list[str]()
    folder = make_task(tmp_path / "task", tiny_base.folder)
    turns = [("user", "x"), ("assistant", "wrong"), ("user", "red?"), ("assistant", "ZOR")]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    messages[1]["weight"] = 0
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"messages": messages}) + "\n")
    with open_task(folder, folder / "schedule.toml", folder / "run", Listeners(warn=said.append)) as context:
        run_steps(context, step_named("stages"))
        write_format(context, "together")
        assert said == []
        write_format(context, "bedrock")
    assert said == [f'{folder}/train.jsonl: Amazon Bedrock has no weights: it also learns the answers of "weight": 0 '
                    "in 1 rows; leave these rows out, or the turns"]  # fmt: skip


def test_a_format_that_is_none_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such format; got 'bedrok'; did you mean bedrock"):
        write_stages(tmp_path, "bedrok")
    done = pilocal("stages", tmp_path, "--format", "fireworks-ai")
    assert (done.returncode, "Did you mean fireworks?" in done.stderr) == (2, True)
