"""GenPI: the template is written from what it changes, weighed exactly, whole, resumably; and restated entries."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilocal.base.base import Base
from pilocal.errors import Faults, InputError, PilocalError
from pilocal.flow.opening import open_task
from pilocal.flow.plan import check
from pilocal.flow.template_rows import REASON, WITH, WITHOUT, generation_examples, restated, windows
from pilocal.flow.written_template import entry_f1, recovered
from pilocal.prompt.tokens import Row
from pilocal.task import Example, Training
from pilocal.training.row_order import PairedOrder, RowOrder, StagePlan
from tests.forked import pilocal as command
from tests.test_distill import stop
from tests.test_flow import flow, make_task
from tests.test_train import LORA, random_rows

GENPI = Training(objective="genpi", batch_size=8, genpi_lambda=0.7)


def by_words(text: str) -> int:
    return len(text.split())


def by_letters(text: str) -> int:
    return len(text)


@settings(max_examples=60)
@given(
    words=st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["", " ", "\n\n", "\t", "  "])), max_size=60),
    limit=st.integers(64, 300),
    count=st.sampled_from([by_words, by_letters]),
)
def test_windows_drop_nothing_and_overlap(
    words: list[tuple[int, str]], limit: int, count: Callable[[str], int]
) -> None:
    signs = ["".join(chr(0x4E00 + 50 * number + i) for i in range(length)) for number, (length, _) in enumerate(words)]
    text = "".join(f"{number:03}{signs[number]}{end}" for number, (_, end) in enumerate(words))
    parts = windows(text, count, limit)
    rest, at = text.strip(), 0
    for number, part in enumerate(parts):
        assert count(part.text) <= limit
        begin = rest.index(part.text, max(0, at - len(part.text)))
        if number:
            assert begin < at
            assert part.before
            assert rest[:begin].rstrip().endswith(part.before)
        assert begin + len(part.text) > at
        at = begin + len(part.text)
    assert at == len(rest)
    assert len(parts) <= 1 or count(text) > limit


def test_two_parts_share_an_eighth_of_a_window() -> None:
    words = [f"w{number}" for number in range(300)]
    first, second, *_ = windows(" ".join(words), by_words, 80)
    assert first.text.split() == words[:80]
    assert second.text.split()[:10] == words[70:80]
    assert second.before == " ".join(words[58:70])
    assert [part.text for part in windows("one two", by_words, 80)] == ["one two"]


def test_a_request_shows_what_the_template_changes_and_where_to_go_on() -> None:
    parts = windows(" ".join(f"w{number}" for number in range(100)), by_words, 80)
    extra = {WITHOUT: "bare", WITH: "prompted", REASON: "It has to be short."}
    first, last = generation_examples(Example(id="7", query="why?", answer="gold", extra=extra), parts, "train")
    for one in (first, last):
        assert [text in one.query for text in ("why?", "bare", "prompted", "gold")] == [True, True, True, False]
    assert "then say why" not in first.query
    assert first.answer == parts[0].text
    assert f"from where they say:\n\n{parts[1].before}" in last.query
    assert last.query.endswith("then say why the answer had to change.")
    assert last.answer == f"{parts[1].text}\n\nIt has to be short."
    (bare,) = generation_examples(Example(id="8", query="a", answer="gold"), parts[:1], "train")
    assert "gold" in bare.query
    assert "without any instructions" not in bare.query
    asked = Example(id="9", query="c", answer="d", history=(("user", "a"), ("assistant", "b")))
    assert "user: a\nassistant: b\nuser: c" in generation_examples(asked, parts, "train")[0].query
    with pytest.raises(InputError, match="train: 1: the reason must be text; got 5"):
        generation_examples(Example(id="1", query="a", answer="b", extra={REASON: 5}), parts, "train")


def of_kind(rows: list[Row], others: list[Row], batch: list[Row]) -> tuple[list[Row], list[Row]]:
    first = {row.tokens for row in rows}
    return [row for row in batch if row.tokens in first], [row for row in batch if row.tokens not in first]


@pytest.mark.parametrize(("part", "size", "each"), [(0.7, 8, 2), (0.3, 8, 6), (0.99, 8, 1), (0.01, 8, 7), (0.5, 2, 1)])
def test_every_step_has_both_kinds_each_with_its_share(part: float, size: int, each: int) -> None:
    rows, others = random_rows(1, 21), random_rows(2, 9)
    training = replace(GENPI, genpi_lambda=part, batch_size=size)
    order = StagePlan(3, rows, (), 1, Path(), others).order(training)
    assert isinstance(order, PairedOrder)
    again = StagePlan(3, rows, (), 1, Path(), others).order(training)
    seen: set[tuple[int, ...]] = set()
    for step in range(order.per_epoch):
        batch = order.rows_at(step)
        answers, written = of_kind(rows, others, batch)
        assert 1 <= len(answers) <= size - each
        assert 1 <= len(written) <= each
        weights = [sum(row.weight * len(row.completion) for row in kind) for kind in (answers, written)]
        assert weights[0] / sum(weights) == pytest.approx(part)
        assert sum(weights) == pytest.approx(sum(len(row.completion) for row in batch))
        seen |= {row.tokens for row in batch}
        assert again.rows_at(step) == batch
    assert seen == {row.tokens for row in (*rows, *others)}
    assert isinstance(StagePlan(3, rows, (), 1, Path()).order(training), RowOrder)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("part", [0.7, 0.3])
def test_the_loss_is_lambda_times_the_one_mean_and_the_rest_times_the_other(
    part: float, accumulate: int, tiny_base: Base
) -> None:
    from pilocal.training.mlx.trainer import MlxTrainer
    from pilocal.training.torch_backend.trainer import TorchTrainer

    training = replace(GENPI, genpi_lambda=part, accumulate=accumulate)
    rows, others = random_rows(1, 14, 20), random_rows(1, 6, 20)
    others = [row._replace(tokens=row.tokens + tuple(range(1, 60))) for row in others]
    batch = StagePlan(0, rows, (), 1, Path(), others).order(training).rows_at(0)
    mlx = MlxTrainer(tiny_base, LORA, training)
    kinds = [[row._replace(weight=1.0) for row in kind] for kind in of_kind(rows, others, batch)]
    single = [mlx.gradients(kind) for kind in kinds]
    expected = part * single[0][0] + (1 - part) * single[1][0]
    wanted = {name: part * value + (1 - part) * single[1][1][name] for name, value in single[0][1].items()}
    assert abs(single[0][0] - single[1][0]) > 0.01
    for trainer in (mlx, TorchTrainer(tiny_base, LORA, training, mlx.adapter(), share=True)):
        loss, found = trainer.gradients(batch)
        assert loss == pytest.approx(expected, rel=1e-4)
        for name, value in wanted.items():
            assert np.abs(found[name] - value).max() <= 1e-4 * max(1.0, np.abs(value).max()), name
    computed, padding = mlx.stage(batch[0].tokens[:20]).computed_tokens(batch)
    # Answers are not padded to the length of what writes the template.
    assert padding < 0.5 * computed
    assert computed < len(batch) * max(len(row.tokens) for row in batch)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("genpi_lambda = 1.0", 'genpi_lambda must be above 0 and below 1; 1 is "answers"'),
        ("genpi_lambda = 0", "genpi_lambda must be above 0 and below 1"),
        ("genpi_window = 63", "genpi_window must be at least 64"),
        ("batch_size = 1", 'batch_size must be at least 2 for "genpi"'),
        ("restate = -1", "restate must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(line: str, said: str, tiny_base: Base, tmp_path: Path) -> None:
    folder = with_settings(make_task(tmp_path / "task", tiny_base.folder), 'objective = "genpi"')
    text = (folder / "task.toml").read_text()
    text = text.replace("batch_size = 4\n", "") if "batch_size" in line else text
    (folder / "task.toml").write_text(text.replace("[training]", f"[training]\n{line}"))
    with pytest.raises((InputError, Faults), match=re.escape(said)):
        check(folder, probe=False)


def with_settings(folder: Path, *lines: str) -> Path:
    text = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(text.replace("[training]", "\n".join(("[training]", *lines))))
    return folder


def genpi_task(folder: Path, base: Base, *lines: str) -> Path:
    """A task whose template takes two windows; one record says what it changes and why."""
    make_task(folder, base.folder)
    words = " ".join(f"Never say {word} to anybody." for word in ("maybe", "perhaps", "sorry", "soon", "later", "well"))
    (folder / "template.md").write_text((folder / "template.md").read_text() + words + "\n")
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    records[0] |= {WITHOUT: "Red is a colour.", WITH: "ZOR", REASON: "Only the code is wanted."}
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return with_settings(folder, 'objective = "genpi"', "genpi_window = 64", *lines)


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = genpi_task(tmp_path_factory.mktemp("genpi") / "task", tiny_base)
    assert flow(folder)["evaluate"]
    return folder


def adapter(folder: Path) -> bytes:
    return (folder / "run" / "adapter" / "adapters.safetensors").read_bytes()


def test_every_stage_writes_the_template_behind_its_own_prompt(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "run/stages/0/generation.jsonl").read_text().splitlines()]
    whole = (finished / "template.md").read_text().strip("\n")
    assert len(records) == 9 * 2
    for number, record in enumerate(records):
        system, *shots, asked, answer = record["messages"]
        assert system["content"] == whole
        assert len(shots) == 2 * 2
        assert ("from where they say" in asked["content"]) == bool(number % 2)
        assert answer["content"].split("\n\nOnly the code is wanted.")[0] in whole
    assert [record["messages"][-1]["content"].endswith("Only the code is wanted.") for record in records] == [
        number == 1 for number in range(len(records))
    ]
    last = [json.loads(line) for line in (finished / "run/stages/2/generation.jsonl").read_text().splitlines()]
    assert all(len(record["messages"]) == 2 for record in last)
    assert last[0]["messages"][-1] == records[0]["messages"][-1]


def test_a_run_says_how_much_of_the_template_the_adapter_writes(finished: Path) -> None:
    assert not any(flow(finished).values())
    found = json.loads((finished / "run" / "metrics.json").read_text())["prompt_generation"]
    template = (finished / "template.md").read_text()
    assert [line["entry"] for line in found["entries"]][:2] == ["Answer with the code of the colour.", "red ZOR"]
    written = json.loads((finished / "run" / "written.json").read_text())
    assert found == recovered(template, written["adapter"], written["base"])
    assert 0 <= found["f1"] <= 1
    assert command("evaluate", finished, "--schedule", finished / "schedule.toml").stdout.count("token F1") == 1


def test_f1_tells_the_entries_that_are_there() -> None:
    template = "- red ZOR\n- blue MIP\nSay nothing else."
    found = recovered(template, "1. red ZOR\nSay nothing more.", "")
    assert [line["f1"] for line in found["entries"]] == [1.0, 0.0, 0.75]
    assert (found["f1"], found["base_f1"]) == (pytest.approx(1.75 / 3, abs=1e-4), 0.0)
    assert entry_f1("a b c d", "d c b a") == 1.0
    assert entry_f1("a b c d", "a b") == pytest.approx(2 / 3)
    assert entry_f1("\u4f60\u597d", "\u4f60\u597d") == 1.0


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_genpi_run_that_is_interrupted_ends_with_the_same_adapter(
    backend: str, finished: Path, tiny_base: Base, tmp_path: Path
) -> None:
    from pilocal.flow.run import run

    whole, killed = (genpi_task(tmp_path / name, tiny_base, "direct_drop = false") for name in ("whole", "killed"))
    for folder, places in ((whole, ()), (killed, (3, 5))):
        how = {"schedule": folder / "schedule.toml", "until": "train", "backend": backend}
        for at in places:
            with pytest.raises(KeyboardInterrupt):
                run(folder, progress=partial(stop, ("train", at)), **how)  # type: ignore[arg-type]
        run(folder, **how)  # type: ignore[arg-type]
    assert adapter(killed) == adapter(whole)
    if backend == "mlx":
        assert adapter(whole) == adapter(finished)


def test_the_plan_knows_the_rows_that_write_the_template(tiny_base: Base, tmp_path: Path) -> None:
    answers = make_task(tmp_path / "answers", tiny_base.folder)
    (answers / "template.md").write_text((genpi_task(tmp_path / "genpi", tiny_base) / "template.md").read_text())
    plans = [check(folder, schedule=folder / "schedule.toml", probe=False) for folder in (answers, tmp_path / "genpi")]
    bare = [plan.stages[-1] for plan in plans]
    assert bare[1].longest_row > bare[0].longest_row + 64
    assert bare[1].prompt_tokens == bare[0].prompt_tokens
    needs = [plan.needs[-1] for plan in plans]
    assert needs[0] and needs[1]
    assert needs[1].peak > needs[0].peak


def test_a_window_that_leaves_the_context_says_what_to_change(tiny_base: Base, tmp_path: Path) -> None:
    folder = genpi_task(tmp_path / "task", tiny_base)
    (folder / "template.md").write_text("word " * 3000)
    text = (folder / "task.toml").read_text().replace("genpi_window = 64", "genpi_window = 1024")
    (folder / "task.toml").write_text(text)
    with pytest.raises(PilocalError) as caught:
        check(folder, probe=False)
    assert re.search(
        r"tau 0, 0 shots.*over the model's context of 1024; lower \[training\] genpi_window", str(caught.value)
    )


def test_restated_entries_are_all_there_in_another_order_and_wording() -> None:
    template = "Answer briefly.\n- red ZOR\n- blue MIP\n- green KEL\nNever ask."
    entries = ["Answer briefly.", "red ZOR", "blue MIP", "green KEL", "Never ask."]
    found = list(restated(template, 7, by_words, 1000, seed=1))
    assert len(found) == 7
    for one in found:
        assert sorted(entry for entry in entries if entry in one.answer) == sorted(entries)
        assert one.answer.count("\n") == len(entries) - 1
    assert len({one.answer for one in found}) == 7
    assert len({one.query for one in found}) == 5
    assert list(restated(template, 7, by_words, 1000, seed=1)) == found
    cut = list(restated(template, 2, by_words, 5, seed=1))
    assert max(by_words(one.answer) for one in cut) <= 5
    assert all(any(entry in one.answer for one in cut) for entry in entries)
    assert len({one.id for one in cut}) == len(cut)
    assert list(restated(template, 0, by_words, 5, seed=1)) == []


@pytest.mark.parametrize("objective", ["answers", "distill", "genpi"])
def test_restated_entries_are_trained_on_with_every_objective(objective: str, tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    with_settings(folder, f'objective = "{objective}"', "restate = 3", "direct_drop = false")
    flow(folder, "train")
    with open_task(folder, folder / "schedule.toml", folder / "run") as context:
        from pilocal.flow.steps.train import _plan

        plan = _plan(context, 0, 3)
        assert len(plan.train) == 9 + 3
        assert all((row.soft is not None) == (objective == "distill") for row in plan.train)
        assert bool(plan.generation) == (objective == "genpi")
    line = json.loads((folder / "run/stages/2/restated.jsonl").read_text().splitlines()[0])
    assert "red ZOR" in line["messages"][-1]["content"]
    other = make_task(tmp_path / "other", tiny_base.folder)
    with_settings(other, f'objective = "{objective}"', "direct_drop = false")
    flow(other, "train")
    assert adapter(other) != adapter(folder)


def test_parity_says_that_it_replays_answers_alone(finished: Path) -> None:
    done = command("parity", finished / "run", "--steps", "6", "--device", "cpu")
    assert done.returncode == 1
    assert "[training] objective: parity replays the loss on answers; got 'genpi'" in done.stderr


def test_files_for_other_trainers_say_that_the_template_is_not_in_them(finished: Path) -> None:
    done = command("stages", finished, "--schedule", finished / "schedule.toml", "--format", "openai")
    assert done.returncode == 0, done.stderr
    assert "the rows that write the template are not in these files" in done.stderr
