"""Comparing: every arm once, the same steps for all, the same table however often it was interrupted."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.base.reference import MlxReference
from pilocal.comparison import Prices, compare
from pilocal.comparison.arms import DEFAULT_ARMS, parse_arm, parse_arms
from pilocal.comparison.changed import changed, shuffle
from pilocal.comparison.columns import cells, curve_cells, narrow_cells
from pilocal.comparison.comparison import open_comparison
from pilocal.comparison.design import Design
from pilocal.comparison.markdown import markdown
from pilocal.comparison.results import Result
from pilocal.comparison.slices import slices
from pilocal.comparison.table import make_table
from pilocal.errors import InputError, RunError
from pilocal.prompt.tokens import tokenize
from pilocal.run_folder.adapter import read_adapter
from pilocal.task import Example, load_task
from pilocal.task.schedule import DECAYS, DecaySchedule
from tests.forked import pilocal
from tests.test_flow import make_task

ARMS = ("full-prompt-cached", "rules@0.5", "linear", "direct", "drop", "adaptive")
DESIGN = Design(
    arms=parse_arms(ARMS), seeds=(0, 3), decay_schedule=DecaySchedule(decay="linear", stages=3, shots=2), curve=(4, 6)
)
TRAINED = [(arm, seed, None) for seed in (0, 3) for arm in ("linear", "direct", "drop", "adaptive")]
CURVE = [(arm, seed, n) for seed in (0, 3) for n in (4, 6) for arm in ("direct", "linear", "adaptive")]
EVERY = [(arm, None, None) for arm in ("query-only", "full-prompt", *ARMS[:2])] + TRAINED + CURVE
PRICES = Prices(prompt=2.0, training=3.0)
Compared = tuple[Path, Path, dict[str, Any], list[Result]]


def table_of(
    task: Path, folder: Path, design: Design = DESIGN, report: Callable[[Result], None] = lambda result: None
) -> dict[str, Any]:
    with open_comparison(task, folder, design) as comparison:
        return make_table(comparison, comparison.results(report), PRICES)


@pytest.fixture(scope="module")
def compared(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("compare")
    task = make_task(folder / "task", tiny_base.folder, steps=6)
    done: list[Result] = []
    table = table_of(task, folder / "out", report=done.append)
    return task, folder / "out", table, done


def test_every_arm_is_answered_once_with_every_seed(compared: Compared) -> None:
    _, _, _, done = compared
    assert [(result.arm, result.seed, result.examples) for result in done] == EVERY
    assert all(len(result.answers) == len(result.marks) == 3 for result in done)


def test_all_schedules_get_the_same_number_of_optimizer_steps(compared: Compared) -> None:
    _, out, table, done = compared
    trained = [result for result in done if result.seed is not None]
    assert len(trained) == len(TRAINED) + len(CURVE)
    assert {result.training["ends"][-1] for result in trained} == {table["steps"]} == {6}
    for result in trained:
        run = out / "runs" / result.name
        lines = [
            json.loads(line) for path in run.glob("stages/*/metrics.jsonl") for line in path.read_text().splitlines()
        ]
        steps = [line for line in lines if "step" in line]
        assert sorted(line["step"] for line in steps) == [1, 2, 3, 4, 5, 6]
        assert result.training["tokens"] == sum(line["prompt_tokens"] + line["trained_tokens"] for line in steps)


def test_the_table_has_what_each_arm_costs_and_when_it_pays(compared: Compared) -> None:
    _, _, table, _ = compared
    rows = {row["arm"]: row for row in table["arms"]}
    assert list(rows) == ["query-only", "full-prompt", *ARMS]
    bare, full = rows["query-only"], rows["full-prompt"]
    assert bare["prompt_tokens"] < rows["rules@0.5"]["prompt_tokens"] < full["prompt_tokens"]
    assert rows["full-prompt-cached"]["prompt_tokens"] == full["prompt_tokens"]
    assert all(0 < row["ttft_ms"] <= row["latency_ms"] for row in rows.values())
    assert all(row["interval"][0] <= row["score"] <= row["interval"][1] for row in rows.values())
    for name in ("linear", "direct", "drop", "adaptive"):
        row = rows[name]
        assert row["prompt_tokens"] == bare["prompt_tokens"]
        assert row["training"]["seconds"] > 0
        saved = (full["prompt_tokens"] - row["prompt_tokens"]) * PRICES.prompt
        requests = row["break_even"]["requests_money"]
        assert (requests - 1) * saved < row["training"]["tokens"] * PRICES.training <= requests * saved
        faster = (full["latency_ms"] - row["latency_ms"]) / 1000
        requests = row["break_even"]["requests"]
        assert requests is None if faster <= 0 else (requests - 1) * faster < row["training"]["seconds"]
    assert rows["direct"]["training"]["tokens"] < rows["linear"]["training"]["tokens"]
    assert rows["adaptive"]["training"]["tokens"] <= rows["linear"]["training"]["tokens"]
    assert rows["linear"]["training"]["tokens"] < rows["drop"]["training"]["tokens"]
    assert [(point["arm"], point["examples"]) for point in table["curve"]] == [
        (arm, n) for n in (4, 6) for arm in ("linear", "direct", "adaptive")
    ]


def without_times(table: dict[str, Any]) -> dict[str, Any]:
    table = copy.deepcopy(table)
    for row in table["arms"]:
        for name in ("ttft_ms", "latency_ms", "break_even"):
            row.pop(name, None)
        row.get("training", {}).pop("seconds", None)
    return table


def test_what_is_known_is_not_done_again_and_the_table_is_the_same(compared: Compared) -> None:
    task, out, table, _ = compared
    assert table_of(task, out, report=lambda result: pytest.fail(result.name)) == table


def test_a_comparison_that_is_interrupted_ends_with_the_same_table(compared: Compared, tmp_path: Path) -> None:
    task, _, table, _ = compared
    done: list[str] = []

    def report(result: Result) -> None:
        done.append(result.name)
        if len(done) in stops:
            raise KeyboardInterrupt

    stops = (1, 4, 7, 14)
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            table_of(task, tmp_path / "out", report=report)
        assert len(done) == stop
    again = table_of(task, tmp_path / "out", report=report)
    assert without_times(again) == without_times(table)
    assert len(done) == len(set(done)) == len(EVERY)


def test_answers_outlive_a_metric_that_fails(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _, _, _ = compared
    design = replace(DESIGN, arms=parse_arms(("query-only",)), curve=())
    with open_comparison(task, tmp_path / "out", design) as comparison:
        monkeypatch.setattr(comparison.metric, "marks", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            comparison.results(lambda result: None)
    saved = json.loads((tmp_path / "out" / "results" / "query-only.json").read_text())
    assert len(saved["answers"]) == 3
    monkeypatch.setattr("pilocal.base.generate.generate", lambda *_, **__: pytest.fail("answered already"))
    with open_comparison(task, tmp_path / "out", replace(design, arms=design.arms[:1])) as comparison:
        (result,) = comparison.results(lambda result: None)
    assert result.answers == saved["answers"]
    assert len(result.marks) == 3


def test_terminal_and_markdown_show_the_same_figures(compared: Compared) -> None:
    _, _, table, _ = compared
    text = markdown(table)
    for head, rows in (cells(table), curve_cells(table)):
        assert len({len(head), *map(len, rows)}) == 1
        for row in (head, *rows):
            assert "| " + " | ".join(row) + " |" in text
    for head, rows in narrow_cells(table).values():
        assert len({len(head), *map(len, rows)}) == 1
        for arm, *figures in rows:
            (line,) = [line for line in text.splitlines() if line.startswith(f"| {arm} |")]
            assert set(figures) <= set(line.strip("| ").split(" | "))


def test_a_damaged_result_is_one_line(compared: Compared, tmp_path: Path) -> None:
    task, _, _, _ = compared
    folder = tmp_path / "out" / "results"
    design = replace(DESIGN, arms=parse_arms(("query-only",))[:1], curve=())
    table_of(task, tmp_path / "out", design)
    (folder / "query-only.json").write_text("{")
    with pytest.raises(RunError, match=r"query-only.json: damaged: .*delete this file"):
        table_of(task, tmp_path / "out", design)


def test_a_query_whose_entry_no_training_answer_shows_is_of_the_other_slice(compared: Compared) -> None:
    task = load_task(compared[0])
    assert slices(task) == {"taught": [0, 1, 2], "template-only": []}
    untaught = replace(task, train=tuple(example for example in task.train if example.answer != "MIP"))
    assert slices(untaught) == {"taught": [0, 2], "template-only": [1]}
    foreign = replace(untaught, test=(Example(id="x", query="tell", answer="no such word"),))
    assert slices(foreign) == {"taught": [0], "template-only": []}


def test_the_table_has_the_slices_where_there_are_two(compared: Compared, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", "starter", steps=6)
    lines = (task / "train.jsonl").read_text().splitlines(keepends=True)
    (task / "train.jsonl").write_text("".join(line for line in lines if "MIP" not in line))
    design = Design(
        arms=parse_arms(("query-only", "direct")), seeds=(0,), decay_schedule=DecaySchedule(decay="linear", shots=1)
    )
    table = table_of(task, tmp_path / "out", design)
    assert table["slices"] == {"taught": 2, "template-only": 1}
    for row in table["arms"]:
        parts = row["slices"]
        assert 2 * parts["taught"]["score"] + parts["template-only"]["score"] == pytest.approx(3 * row["score"])
    assert "template-only (1)" in markdown(table)


def test_the_nearest_answer_is_an_arm_and_so_is_another_number_of_shots(tiny_base: Base, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder, steps=3)
    design = replace(DESIGN, arms=parse_arms(("nearest", "full-prompt@0", "full-prompt@1")), curve=())
    done = list[Result]()
    rows = {row["arm"]: row for row in table_of(task, tmp_path / "out", design, done.append)["arms"]}
    # Each test query names the colour of three training questions; all of these have its answer.
    assert (rows["nearest"]["score"], rows["nearest"]["prompt_tokens"]) == (1.0, 0.0)
    assert "ttft_ms" not in rows["nearest"]
    tokens = [rows[name]["prompt_tokens"] for name in ("query-only", "full-prompt@0", "full-prompt@1", "full-prompt")]
    assert tokens == sorted(set(tokens))
    table_of(task, tmp_path / "out", design, lambda result: pytest.fail(result.name))
    lines = (task / "train.jsonl").read_text().replace("ZOR", "RED")
    (task / "train.jsonl").write_text(lines)
    done.clear()
    rows = {row["arm"]: row for row in table_of(task, tmp_path / "out", design, done.append)["arms"]}
    assert rows["nearest"]["score"] == pytest.approx(2 / 3)


PROOF = ("linear", "linear@0", "linear@0.5", "linear@1", "linear@1.5", "linear@null", "linear@prompt", "direct@0.5")


@pytest.fixture(scope="module")
def proved(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("proof")
    task = make_task(folder / "task", tiny_base.folder, steps=6)
    text = (task / "task.toml").read_text().replace("learning_rate = 1e-3", "learning_rate = 3e-2")
    (task / "task.toml").write_text(text)
    done: list[Result] = []
    design = replace(DESIGN, arms=parse_arms(PROOF), curve=())
    table = compare(task, design, run=folder / "out")
    with open_comparison(task, folder / "out", design) as comparison:
        done += comparison.results(lambda result: pytest.fail(result.name))
    return task, folder / "out", table, done


def test_an_adapter_at_strength_nothing_is_the_base_and_at_one_it_is_itself(proved: Compared) -> None:
    _, _, _, done = proved
    said = {(result.arm, result.seed): result.answers for result in done}
    for seed in (0, 3):
        assert said["linear@0", seed] == said["query-only", None]
        assert said["linear@1", seed] == said["linear", seed]
        assert said["linear", seed] != said["query-only", None]
        assert said["linear@null", seed] != said["linear", seed]


def test_the_old_prompt_put_back_is_the_base_s_own_full_prompt(proved: Compared) -> None:
    _, _, table, _ = proved
    rows = {row["arm"]: row for row in table["arms"]}
    assert rows["linear@prompt"]["prompt_tokens"] == rows["full-prompt"]["prompt_tokens"]
    assert rows["linear@0.5"]["prompt_tokens"] == rows["query-only"]["prompt_tokens"]
    assert all(0 < rows[arm]["ttft_ms"] <= rows[arm]["latency_ms"] for arm in PROOF)
    assert [arm for arm in PROOF if "training" in rows[arm]] == ["linear"]


def test_the_curve_of_strengths_has_every_schedule_with_several(proved: Compared) -> None:
    _, out, table, _ = proved
    assert [(point["schedule"], point["strength"]) for point in table["strengths"]] == [
        ("linear", strength) for strength in (0.0, 0.5, 1.0, 1.0, 1.5)
    ]
    rows = {row["arm"]: row for row in table["arms"]}
    assert table["strengths"][0]["score"] == rows["query-only"]["score"]
    assert "strength of the adapter" in (out / "strength.svg").read_text()
    assert "(strength.svg)" in (out / "compare.md").read_text()


def test_a_schedule_s_adapter_is_trained_once_for_all_of_its_arms(proved: Compared) -> None:
    _, out, _, _ = proved
    trained = {path.parent.parent.name for path in (out / "runs").glob("*/adapter/adapters.safetensors")}
    assert trained == {f"{name}-seed{seed}" for name in ("linear", "direct") for seed in (0, 3)}
    assert not list((out / "runs").rglob("*.gguf"))


def test_a_shuffled_adapter_has_the_same_numbers_in_an_order_of_the_seed_s(proved: Compared) -> None:
    _, out, _, _ = proved
    adapter = read_adapter(out / "runs" / "linear-seed0" / "adapter")
    first, again, other = (shuffle(adapter, seed) for seed in (0, 0, 1))
    for name, value in adapter.tensors.items():
        assert first.tensors[name].shape == value.shape
        assert sorted(first.tensors[name].ravel()) == sorted(value.ravel())
        assert np.array_equal(first.tensors[name], again.tensors[name])
        assert not np.array_equal(first.tensors[name], value)
        assert not np.array_equal(first.tensors[name], other.tensors[name])


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_llama_cpp_computes_an_adapter_at_a_strength_as_mlx_does(
    strength: float, tiny_base: Base, tiny_adapter: Path, tmp_path: Path
) -> None:
    from pilocal.export.lossless import export_lossless
    from pilocal.export.ship import ship_adapter
    from pilocal.llamacpp.engine import Engine, divergence, log_softmax

    gguf = export_lossless(tiny_base, tmp_path).path
    row = tokenize({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c d"}]},
                   tiny_base.tokenizer)  # fmt: skip
    distances = {}
    with changed(tiny_adapter, parse_arm(f"linear@{strength}"), 0) as adapter:
        lora, _ = ship_adapter(tiny_base, adapter, tmp_path, "lossless", name="x")
        with Engine(gguf, 64, lora) as engine:
            found = engine.log_probs(row.tokens[:-1], row.offset - 1)
        for name, compared_with in (("itself", adapter), ("base", None), ("whole", tiny_adapter)):
            expected = log_softmax(MlxReference(tiny_base, compared_with).logits(row))
            distances[name] = divergence(expected, found)
    others = distances["base" if strength else "whole"], distances["whole"]
    assert distances["itself"] < 0.02 * min(others)
    assert not tmp_path.joinpath("adapters.safetensors").exists()


def test_a_dora_has_no_strength(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    text = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(
        text.replace("rank = 2", 'rank = 2\nkind = "dora"').replace("[export]", '[export]\nquant = "f16"')
    )
    design = replace(DESIGN, arms=parse_arms(("linear@0.5",)), curve=())
    with pytest.raises(InputError, match=r"--arms: a DoRA has no strength: .*; got 'linear@0.5'"):
        compare(folder, design, run=tmp_path / "out")


def test_every_default_arm_is_an_arm() -> None:
    arms = parse_arms(())
    assert {arm.name for arm in arms} == set(DEFAULT_ARMS)
    assert {arm.name for arm in arms if arm.trained} == set(DECAYS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("liner", "no such arm; got 'liner'; did you mean linear?"),
        ("rules", "no such arm; got 'rules'"),
        ("rules@2", "what rules keeps must lie between 0 and 1; got '2'"),
        ("full-prompt@many", "shots are a whole number from 0; got 'many'; write full-prompt@5"),
        (
            "linear@3",
            "an adapter's strength lies between 0 and 2; got '3'; write linear@0.5, linear@prompt or linear@null",
        ),
        ("linear@nan", "an adapter's strength lies between 0 and 2; got 'nan'"),
        ("linear@", "an adapter's strength lies between 0 and 2; got ''"),
        ("liner@0.5", "no such arm; got 'liner@0.5'"),
        ("rules@half", "must lie between 0 and 1; got 'half'; write rules@0.3"),
    ],
)
def test_an_arm_that_is_none_is_one_line(name: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        parse_arm(name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--curve", "6,400"),
            "--curve: the training set does not have so many examples; got 400; write numbers between",
        ),
        (("--seeds", f"1,{2**63}"), "--seeds: seeds are different whole numbers from 0 to 9,223,372,036"),
        (("--training-price", "3"), "--training-price: needs --price; give both"),
    ],
)
def test_bad_options_are_one_line(options: tuple[str, ...], said: str, compared: Compared, tmp_path: Path) -> None:
    done = pilocal("compare", compared[0], "--run", tmp_path / "out", *options)
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_a_program_gets_the_files_that_the_command_leaves(compared: Compared) -> None:
    task, out, table, _ = compared
    found = compare(str(task), DESIGN, run=out, prices=PRICES, report=lambda name, _: pytest.fail(name))
    assert found == table == json.loads((out / "compare.json").read_text())
    assert (out / "compare.md").read_text() == markdown(table)
    assert "training examples" in (out / "curve.svg").read_text()


def test_numbers_that_are_none_are_misuse(compared: Compared) -> None:
    done = pilocal("compare", compared[0], "--seeds", "a,b")
    assert done.returncode == 2
    assert "is not a list of numbers" in done.stderr


def test_the_command_writes_the_table(compared: Compared, tmp_path: Path) -> None:
    task, _, _, _ = compared
    law = tmp_path / "law.toml"
    law.write_text('decay = "adaptive"\nstages = 2\nshots = 1\nmargin = 0.5\n')
    options = ("--schedule", law, "--run", tmp_path / "out", "--arms", "linear,adaptive", "--seeds", "0", "--json")
    done = pilocal("compare", task, *options)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert table == json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (tmp_path / "out" / "compare.md").read_text() == markdown(table)
    assert [row["arm"] for row in table["arms"]] == ["query-only", "full-prompt", "linear", "adaptive"]
    assert table["law"]["margin"] == 0.5
