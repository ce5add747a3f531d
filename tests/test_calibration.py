"""The threshold of confidence: chosen on validation examples, kept with what is served, and never on the test set."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.errors import RunError
from pilocal.evaluate.confidence import Source, Spoken, are_right, calibrate, doubtful, order_of, speak
from pilocal.evaluate.scoring.metrics import Metric, make_metric
from pilocal.export.fused import export_fused
from pilocal.export.lora import export_adapter
from pilocal.flow.confidence import MOST
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps, step_named
from pilocal.llamacpp.confidence import Confidence
from pilocal.llamacpp.engine import Engine
from pilocal.progress import silent
from pilocal.prompt.tokens import end_tokens, prompt_tokens
from pilocal.run_folder.calibration import Calibration, read_calibration
from pilocal.run_folder.shipped import read_shipped
from pilocal.task import Example, Scoring
from tests.test_flow import flow, make_task
from tests.test_shipping import export
from tests.tiny import put_back

QUERIES = ("tell me red", "hello", "what is 2 and 3?", "turn on the light")


def metric(name: str = "exact_match") -> Metric:
    return make_metric(name, Scoring(), Path())


def chosen(
    confidences: Sequence[float | None], own: Sequence[float], full: Sequence[float], name: str = "exact_match"
) -> Calibration:
    """Calibrate answers with these marks, where the full prompt's have those."""
    spoken = [Spoken(str(number), sure) for number, sure in enumerate(confidences)]
    marks = np.array(own, dtype=float)[:, None]
    right = [mark >= 1 for mark in own]
    asked = doubtful(order_of(spoken), right)
    return calibrate(spoken, marks, right, np.array([[full[number]] for number in asked]).reshape(-1, 1), metric(name))


def test_the_threshold_is_the_one_that_gains_most_and_the_lowest_of_such() -> None:
    # Falling back on the two least confident gains both; on the fourth, the full prompt is wrong as well.
    found = chosen([-0.1, -3.0, -0.5, -2.0, -1.0], own=[1, 0, 1, 0, 0], full=[1, 1, 1, 1, 0])
    assert (found.threshold, found.unsure) == (-1.5, 2)
    assert (found.examples, found.wrong) == (5, 3)
    assert (found.score, found.score_with_fallback) == (0.4, 0.8)


def test_what_is_lost_on_right_answers_counts_against_a_threshold() -> None:
    # The wrong answer is the most confident but one: reaching it loses the two right ones below.
    found = chosen([-3.0, -2.0, -1.0, -0.1], own=[1, 1, 0, 1], full=[0, 0, 1, 1])
    assert (found.threshold, found.unsure, found.score, found.score_with_fallback) == (None, 0, 0.75, 0.75)
    assert found.why_none == "no threshold gains anything on the 4 validation examples"


def test_where_all_answers_are_right_nothing_is_asked_and_nothing_falls_back() -> None:
    spoken = [Spoken("a", -0.1), Spoken("b", -0.2)]
    assert doubtful(order_of(spoken), [True, True]) == []
    found = chosen([-0.1, -0.2], own=[1, 1], full=[1, 1])
    assert (found.threshold, found.wrong) == (None, 0)
    assert found.why_none == "all 2 validation answers are right"


def test_answers_as_confident_are_never_told_apart() -> None:
    found = chosen([-1.0, -1.0, -0.5], own=[0, 1, 1], full=[1, 0, 1])
    assert found.threshold is None  # both or none: one is gained, one lost
    found = chosen([-1.0, -1.0, -0.5], own=[0, 0, 1], full=[1, 0, 1])
    assert (found.threshold, found.unsure) == (-0.75, 2)


def test_a_base_that_is_better_throughout_answers_everything() -> None:
    found = chosen([-1.0, 0.0], own=[0, 0], full=[1, 1])
    assert found.unsure == 2
    assert found.threshold is not None
    assert found.threshold > 0


def test_an_answer_without_a_token_is_the_least_confident() -> None:
    found = chosen([-1.0, None, -5.0], own=[1, 0, 1], full=[1, 1, 1])
    assert (found.threshold, found.unsure) == (-5.0, 1)
    assert json.loads(json.dumps(found.threshold)) == -5.0


def test_rounding_is_no_gain() -> None:
    own = [0.1, 0.2, 0.3, 0.7, 0.6]
    found = chosen([-5, -4, -3, -2, -1], own=own, full=own)
    assert found.threshold is None


@pytest.mark.parametrize("seed", range(20))
def test_no_other_threshold_would_have_scored_better(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 12))
    confidences = [float(each) for each in -draw.integers(0, 6, count) / 2]
    own, full = draw.integers(0, 2, count), draw.integers(0, 2, count)
    found = chosen(confidences, list(own), list(full))

    def score(threshold: float) -> float:
        return float(np.where(np.array(confidences) < threshold, full, own).mean())

    # Above the last wrong answer the full prompt is not asked: its answers could not be better.
    reached = max((sure for sure, mark in zip(confidences, own, strict=True) if mark < 1), default=-math.inf)
    possible = [score(each) for each in (-9.0, *(sure + 0.25 for sure in confidences if sure <= reached))]
    assert found.score_with_fallback == pytest.approx(max(possible))
    if found.threshold is not None:
        assert score(found.threshold) == pytest.approx(found.score_with_fallback)
        assert found.unsure == sum(sure < found.threshold for sure in confidences)


def test_a_metric_whose_marks_are_statistics_is_calibrated_too() -> None:
    bleu = metric("bleu")
    examples = [Example(id=str(i), query="q", answer=text) for i, text in enumerate(("a b c d e", "f g h i j", "k"))]
    answers = ["x y", "f g h i j", "k"]
    spoken = [Spoken(text, sure) for text, sure in zip(answers, (-2.0, -0.5, -1.0), strict=True)]
    marks = bleu.marks(answers, examples)
    right = are_right(answers, examples, marks, bleu)
    assert right == [False, True, True]  # "k" has no 4-grams, and can still not be better
    assert doubtful(order_of(spoken), right) == [0]
    found = calibrate(spoken, marks, right, bleu.marks(["a b c d e"], examples[:1]), bleu)
    assert found.threshold == -1.5
    assert found.score_with_fallback == pytest.approx(1)
    assert found.score < 0.9


@pytest.fixture(scope="module")
def served(starter: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.tiny import make_adapter

    root = tmp_path_factory.mktemp("served")
    adapter = make_adapter(root / "adapter", starter, rank=4, scale=2.0)
    return {
        "gguf": export_fused(starter, None, root / "base.gguf", "f16"),
        "adapter": export_adapter(starter, adapter, root / "adapter.gguf", name="a"),
    }


@pytest.mark.parametrize("adapted", [False, True])
def test_confidence_is_the_mean_log_probability_of_what_was_said(
    starter: Base, served: dict[str, Path], adapted: bool
) -> None:
    prompts = [prompt_tokens([{"role": "user", "content": query}], starter.tokenizer) for query in QUERIES]
    adapter = served["adapter"] if adapted else None
    done: list[int] = []
    spoken = speak(
        Source(gguf=served["gguf"], adapter=adapter, max_tokens=8),
        prompts,
        lambda _, n, total, note="": done.append(n),
        "",
    )
    assert done == [1, 2, 3, 4]
    ends = end_tokens(starter.tokenizer)
    with Engine(served["gguf"], 512, adapter) as engine:
        timed = engine.answer(prompts, ends=ends, max_tokens=8, warm=False, progress=silent, name="")
        for prompt, answer, each in zip(prompts, timed.answers, spoken, strict=True):
            assert each.text == starter.tokenizer.decode(answer, skip_special_tokens=True)
            found = engine.log_probs([*prompt, *answer], len(prompt) - 1)
            said = answer if len(answer) == 8 else [*answer, int(found[-1].argmax())]
            assert len(answer) == 8 or said[-1] in ends
            values = [float(found[place][token]) for place, token in enumerate(said)]
            assert each.confidence == pytest.approx(np.mean(values), abs=5e-3)


def test_a_form_holds_for_what_is_calibrated_and_no_grammar_makes_an_answer_surer(
    starter: Base, served: dict[str, Path]
) -> None:
    prompts = [prompt_tokens([{"role": "user", "content": query}], starter.tokenizer) for query in QUERIES]
    free = speak(Source(gguf=served["gguf"], max_tokens=8), prompts, silent, "")
    source = Source(gguf=served["gguf"], grammar='root ::= "ZOR" | "MIP"', max_tokens=8)
    formed = speak(source, prompts, silent, "")
    assert {each.text for each in formed} <= {"ZOR", "MIP"}
    for one, other in zip(free, formed, strict=True):
        assert one.confidence is not None
        assert other.confidence is not None
        if one.text != other.text:
            assert other.confidence < one.confidence


def test_a_token_counts_with_the_logits_of_the_model_alone() -> None:
    confidence = Confidence()
    assert confidence.mean is None
    logits = np.array([1000, 999, -1e30], dtype=np.float32)
    confidence.add(1, logits)
    assert confidence.mean == pytest.approx(-1 - math.log(1 + math.exp(-1)))


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_task(tmp_path_factory.mktemp("calibration") / "task", tiny_base.folder, steps=4)
    flow(folder)
    return folder


@pytest.fixture
def task(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """The finished task, put back afterwards."""
    with put_back(finished, tmp_path / "aside") as folder:
        yield folder


def kept(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "confidence.json").read_text())
    return found


def evaluated(folder: Path) -> list[str]:
    """Evaluate and return what was warned of."""
    said: list[str] = []
    with open_task(folder, folder / "schedule.toml", folder / "run", Listeners(warn=said.append)) as context:
        run_steps(context, step_named("evaluate"))
    return said


def test_an_evaluation_keeps_marks_of_validation_and_ships_the_threshold(finished: Path) -> None:
    lines = kept(finished)["validation"]
    assert [line["id"] for line in lines] == ["valid-1", "valid-2", "valid-3"]
    for line in lines:
        assert line["confidence"] < 0
        assert line["mark"] in (0, 1)
    shipped = read_shipped(finished / "run")
    found = read_calibration(shipped.folder)
    assert found is not None
    assert found.examples == 3
    assert found.score == np.mean([line["mark"] for line in lines])
    metrics = json.loads((finished / "run" / "metrics.json").read_text())
    assert metrics["confidence"] == json.loads((shipped.folder / "confidence.json").read_text())
    assert {"metrics.json", "confidence.json", "export/confidence.json"} <= set(
        json.loads((finished / "run" / "run.json").read_text())["steps"]["evaluate"]["files"]
    )


def test_the_full_prompt_is_asked_only_up_to_the_surest_answer_that_is_wrong(task: Path) -> None:
    lines = sorted(kept(task)["validation"], key=lambda line: float(line["confidence"]))
    surest = lines[-1]
    assert surest["answer"].strip()
    records = [json.loads(line) for line in (task / "valid.jsonl").read_text().splitlines()]
    records[int(surest["id"].removeprefix("valid-")) - 1]["answer"] = surest["answer"].strip()
    (task / "valid.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    evaluated(task)  # validation examples train nothing: the same adapter
    again = {line["id"]: line for line in kept(task)["validation"]}
    assert again[surest["id"]]["answer"] == surest["answer"]
    assert again[surest["id"]]["mark"] == 1
    assert ["full_prompt" in again[line["id"]] for line in lines] == [True, True, False]


def test_a_lost_or_foreign_threshold_is_made_again_from_what_is_kept(
    task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (task / "run" / "export" / "confidence.json").read_bytes()
    (task / "run" / "export" / "confidence.json").unlink()
    monkeypatch.setattr("pilocal.evaluate.confidence.speak", lambda *_: pytest.fail("asked already"))
    assert [name for name, ran in flow(task).items() if ran] == ["evaluate"]
    assert (task / "run" / "export" / "confidence.json").read_bytes() == before


def test_another_form_has_no_threshold_until_it_is_evaluated(task: Path) -> None:
    done = export(task / "run", "--quant", "f16", "--accept-loss")
    assert done.returncode == 0, done.stderr
    folder = task / "run" / "export"
    assert read_calibration(folder) is None
    key = kept(task)["key"]
    flow(task)
    assert read_calibration(folder) is not None
    assert kept(task)["key"] != key


def test_validation_examples_that_cannot_be_scored_cost_the_threshold_and_nothing_else(task: Path) -> None:
    toml = (task / "task.toml").read_text()
    (task / "task.toml").write_text(toml.replace('name = "tiny"', 'name = "tiny"\nmetric = "python_tests"'))
    tests = [json.loads(line) | {"tests": "assert True"} for line in (task / "test.jsonl").read_text().splitlines()]
    (task / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in tests))
    said = evaluated(task)
    assert any("no confidence threshold" in line and "3 of 3 records have no tests" in line for line in said), said
    assert read_calibration(task / "run" / "export") is None
    metrics = json.loads((task / "run" / "metrics.json").read_text())
    assert metrics["metric"] == "python_tests"
    assert "confidence" not in metrics
    assert not any(flow(task).values())


def test_no_more_than_the_first_validation_examples_are_asked(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept(task)["validation"]
    assert len(before) < MOST
    monkeypatch.setattr("pilocal.flow.confidence.MOST", 2)
    (task / "run" / "export" / "confidence.json").unlink()
    evaluated(task)
    assert [line["id"] for line in kept(task)["validation"]] == ["valid-1", "valid-2"]
    found = read_calibration(task / "run" / "export")
    assert found is not None
    assert found.examples == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"threshold": 1}', "", '{"threshold": "x", "examples": 1, "wrong": 0,'
    ' "unsure": 0, "score": 1, "score_with_fallback": 1}'])  # fmt: skip
def test_a_damaged_threshold_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "confidence.json").write_text(text)
    with pytest.raises(RunError, match=r"confidence\.json: damaged: .*; delete this file and run `pilocal evaluate`"):
        read_calibration(tmp_path)


def test_the_export_names_the_metric_of_today(task: Path) -> None:
    assert read_shipped(task / "run").metric == "exact_match"
    toml = (task / "task.toml").read_text()
    (task / "task.toml").write_text(toml.replace('name = "tiny"', 'name = "tiny"\nmetric = "contains"'))
    assert [name for name, ran in flow(task).items() if ran] == ["evaluate"]
    assert read_shipped(task / "run").metric == "contains"
    assert not any(flow(task).values())
