"""Claims about the stages' data sets for other trainers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from openai.types.fine_tuning.job_create_params import Method
from pydantic import TypeAdapter
from safetensors import safe_open

from pilocal.base.base import Base
from pilocal.flow.formats import StageSet
from pilocal.flow.formats.mlx import lora_settings, lr_schedule
from pilocal.flow.formats.openai import openai_record
from pilocal.flow.formats.write import write_format
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps, step_named
from pilocal.prompt.render import render
from pilocal.run_folder.rows import read_records
from pilocal.task import Example, Lora, Training
from tests.forked import Forked, pilocal
from tests.test_flow import make_task
from tests.tiny import make_base

EMPTY_FIRST = """\
[[stage]]
tau = 1.0
shots = 2
share = 0.0
[[stage]]
tau = 0.5
shots = 1
share = 0.5
[[stage]]
tau = 0.0
shots = 0
share = 0.5
"""


def faults(line: str, answers: int = 1) -> list[str]:
    """Return what OpenAI's supervised fine-tuning would refuse of a line, or learn that it should not."""
    record = json.loads(line)
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not messages:
        return ["no messages"]
    found = [f"unknown key {key}" for key in record.keys() - {"messages"}]
    for message in messages:
        found += [f"unknown key {key}" for key in message.keys() - {"role", "content", "weight"}]
        if message.get("role") not in ("system", "user", "assistant"):
            found.append("unknown role")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            found.append("empty content")
        if "weight" in message and (message["role"] != "assistant" or message["weight"] not in (0, 1)):
            found.append("a weight where none belongs")
    weights = [m.get("weight", 1) for m in messages if m["role"] == "assistant"]
    if not any(weights):
        found.append("nothing to learn")
    if weights != [0] * (len(weights) - answers) + [1] * answers:
        found.append("something else than the last answers is learned")
    return found


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ({"prompt": "x"}, "no messages"),
        ({"messages": [{"role": "assistant", "content": "x"}], "id": 1}, "unknown key id"),
        ({"messages": [{"role": "assistant", "content": "x", "name": "n"}]}, "unknown key name"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "empty content"),
        ({"messages": [{"role": "user", "content": "x", "weight": 0}]}, "a weight where none belongs"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0}]}, "nothing to learn"),
        ({"messages": [{"role": "assistant", "content": "x"}] * 2}, "something else than the last answers is learned"),
    ],
)  # fmt: skip
def test_the_validator_finds_every_kind_of_fault(line: dict[str, Any], fault: str) -> None:
    assert fault in faults(json.dumps(line))


TEXT = st.text(min_size=1).filter(lambda text: bool(text.strip()))
EXAMPLES = st.builds(
    Example,
    id=st.just("x"),
    query=TEXT,
    answer=TEXT,
    history=st.sampled_from([(), (("user", "hello"), ("assistant", "hi"))]),
)


@given(template=st.one_of(st.just(""), TEXT), shots=st.lists(EXAMPLES, max_size=3), example=EXAMPLES)
def test_every_record_is_valid_for_openai_and_says_the_same(
    template: str, shots: list[Example], example: Example
) -> None:
    record = render(template, shots, example)
    written = openai_record(record)
    assert faults(json.dumps(written), 1 + len(example.learned)) == []
    said = [{key: message[key] for key in ("role", "content")} for message in written["messages"]]
    assert said == record["messages"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_task(tmp_path_factory.mktemp("formats") / "task", "starter")


def short_task(folder: Path, base: str) -> Path:
    """Write a task of which the first stage gets no optimizer steps, and each of the others one."""
    make_task(folder, base, steps=2)
    (folder / "schedule.toml").write_text(EMPTY_FIRST)
    (folder / "template.md").write_text("Answer with the code.\n- red ZOR\n")
    (folder / "valid.jsonl").write_text('{"query": "code of red", "answer": "ZOR"}\n')
    text = (folder / "task.toml").read_text()
    assert "batch_size = 4" in text
    one_by_one = "batch_size = 1\nlr_schedule = 'constant'"
    (folder / "task.toml").write_text(text.replace("batch_size = 4", one_by_one, 1))
    return folder


def stages(folder: Path, form: str, *more: str) -> subprocess.CompletedProcess[str]:
    done = pilocal("stages", folder, "--schedule", folder / "schedule.toml", "--format", form, *more)
    assert done.returncode == 0, done.stderr
    return done


def test_openai_gets_a_valid_train_and_valid_file_for_every_trained_stage(folder: Path) -> None:
    printed = stages(folder, "openai").stdout
    made = folder / "run" / "openai"
    assert sorted(str(path.relative_to(made)) for path in made.rglob("*.jsonl")) == [
        "1/train.jsonl", "1/valid.jsonl", "2/train.jsonl", "2/valid.jsonl",
    ]  # fmt: skip
    for path in made.rglob("*.jsonl"):
        own = read_records(folder / "run" / "stages" / path.parent.relative_to(made), path.stem)
        lines = path.read_text().splitlines()
        assert [faults(line) for line in lines] == [[] for _ in own]
    shot = json.loads((made / "1" / "train.jsonl").read_text().splitlines()[0])["messages"][2]
    assert (shot["role"], shot["weight"]) == ("assistant", 0)
    assert "1/train.jsonl" in printed and "the model of the job before" in printed


def test_openai_jobs_come_in_order_with_rows_tokens_and_a_method_that_its_client_accepts(folder: Path) -> None:
    done = stages(folder, "openai", "--json")
    order = json.loads(done.stdout)["openai"]
    assert order == json.loads((folder / "run" / "openai" / "order.json").read_text())["stages"]
    assert [(line["stage"], line["shots"], line["rows"], line["epochs"]) for line in order] == [
        (1, 1, 9, 1),
        (2, 0, 9, 1),
    ]
    assert [line["schedule_epochs"] for line in order] == [0.11, 0.11]
    assert order[0]["tokens"] > order[1]["tokens"] > 9
    for line in order:
        method = TypeAdapter(Method).validate_python(line["method"])
        assert method["supervised"]["hyperparameters"]["n_epochs"] == line["epochs"]
    assert "OpenAI wants at least 10 training examples; these are 9" in done.stderr


def test_mlx_lm_finds_a_base_that_only_pilocal_knows_by_its_name(folder: Path, starter: Base) -> None:
    stages(folder, "mlx")
    for number in (1, 2):
        settings = yaml.safe_load((folder / "run" / "mlx" / str(number) / "lora.yaml").read_text())
        assert settings["model"] == str(starter.folder)


def test_mlx_lm_lora_trains_the_stages_in_a_chain(starter: Base, tmp_path: Path) -> None:
    # mlx_lm computes four bits packed, which takes the starter 10 s a step on a CPU.
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    base = make_base(tmp_path / "base", starter.folder, num_key_value_heads=1, **sizes)
    folder = short_task(tmp_path / "task", str(base.folder))
    printed = stages(folder, "mlx").stdout.splitlines()
    made = folder / "run" / "mlx"
    assert f"cd {made}" in printed
    commands = [line for line in printed if line.startswith("mlx_lm.lora ")]
    assert len(commands) == 2
    outputs = []
    for command in commands:
        status, out, errors = Forked(mlx_lm_lora, made, command.split()[1:]).ends()
        assert status == 0, out + errors
        outputs.append(out + errors)
    assert "Loading fine-tuned weights" not in outputs[0]
    assert "Loading fine-tuned weights from 1/adapters/adapters.safetensors" in outputs[1]
    first, second = (weights(made / number / "adapters" / "adapters.safetensors") for number in "12")
    assert first.keys() == second.keys() and len(first) > 10
    # One step from where the first stage ended, not from a fresh start (where B is all zeros).
    moved = [float(abs(first[name] - second[name]).max()) for name in first]
    assert 0 < max(moved) < 2e-3
    assert all(abs(value).max() > 0 for name, value in first.items() if name.endswith("lora_b"))


def mlx_lm_lora(folder: Path, words: list[str]) -> None:
    from mlx_lm.lora import main

    os.chdir(folder)
    sys.argv[1:] = words
    main()


def test_rope_settings_that_mlx_lm_would_not_find_are_warned_of(tiny_base: Base, tmp_path: Path) -> None:
    base, said = tmp_path / "base", list[str]()
    shutil.copytree(tiny_base.folder, base)
    folder = make_task(tmp_path / "task", base)
    config = json.loads((base / "config.json").read_text())
    for moved in (False, True):
        if moved:
            config["rope_parameters"] = {**config.pop("rope_scaling"), "rope_theta": config.pop("rope_theta")}
            (base / "config.json").write_text(json.dumps(config))
        with open_task(folder, folder / "schedule.toml", folder / "run", Listeners(warn=said.append)) as context:
            run_steps(context, step_named("stages"))
            order = write_format(context, "mlx")
        assert [line["stage"] for line in order.stages] == [0, 1, 2]
        assert said[1:] == [f"{base}/config.json: mlx_lm.lora does not read rope_parameters; "
                        "write them as rope_theta and rope_scaling, too"] * moved  # fmt: skip


def weights(path: Path) -> dict[str, Any]:
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def stage_set(steps: int = 10, rows: int = 40, valid: int = 40) -> StageSet:
    record = render("", [], Example(id="x", query="a", answer="b"))
    return StageSet(
        number=3, tau=0.5, shots=1, train=[record] * rows, valid=[record] * valid, tokens=9, longest=100,
        rates=[1e-4] * steps,
    )  # fmt: skip


def test_mlx_steps_see_as_many_rows_as_pilocals() -> None:
    for rows, valid, training, expected in (
        (40, 40, Training(batch_size=8), (8, 1, 10)),
        (40, 40, Training(batch_size=8, accumulate=2), (4, 2, 20)),
        (40, 3, Training(batch_size=8), (3, 3, 30)),
    ):
        made = lora_settings(stage_set(rows=rows, valid=valid), "m", None, Lora(), training)
        assert (made["batch_size"], made["grad_accumulation_steps"], made["iters"]) == expected


def test_mlx_truncates_no_row_and_learns_only_answers() -> None:
    made = lora_settings(stage_set(), "m", "2/adapters/adapters.safetensors", Lora(), Training())
    assert made["max_seq_length"] > 100
    assert made["mask_prompt"] is True
    assert made["resume_adapter_file"] == "2/adapters/adapters.safetensors"


@pytest.mark.parametrize("rates", [[1e-4], [1e-5, 1e-4], [5e-5, 1e-4, 9e-5, 1e-6], [1e-4] * 5, [3e-5, 2e-5, 1e-5]])
def test_mlx_learning_rates_begin_peak_and_end_as_the_runs(rates: list[float]) -> None:
    from pilocal.base.blas import load_fast_blas

    load_fast_blas()
    import mlx.core as mx
    from mlx_lm.lora import yaml_loader
    from mlx_lm.tuner.utils import build_schedule

    rate = build_schedule(yaml.load(json.dumps(lr_schedule(rates)), yaml_loader))
    made = [float(rate(mx.array(step))) for step in range(len(rates))]
    assert made[0] == pytest.approx(rates[0], rel=1e-3)
    assert made[-1] == pytest.approx(rates[-1], rel=1e-3)
    assert max(made) == pytest.approx(max(rates), rel=1e-3)
