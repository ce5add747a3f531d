"""The whole flow on a tiny model: every step real, every step skipped the second time, changes redo what depends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pilocal.base.base import Base
from pilocal.errors import InputError, PilocalError, RunError
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.plan import plan_run
from pilocal.flow.runner import run_steps, step_named
from pilocal.flow.steps import EDIT, MIX, ON_POLICY, STEPS, STRENGTH, TEACHER
from pilocal.progress import Progress
from pilocal.prompt.tokens import token_counter
from pilocal.run_folder.rows import read_records
from pilocal.run_folder.shipped import read_shipped

ASKED_FOR = (TEACHER, MIX, EDIT, ON_POLICY, STRENGTH)
NAMES = [step.name for step in STEPS if step not in ASKED_FOR]

SCHEDULE = """\
[[stage]]
tau = 1.0
shots = 2
share = 0.4
[[stage]]
tau = 0.5
shots = 1
share = 0.3
[[stage]]
tau = 0.0
shots = 0
share = 0.3
"""

TASK = """\
name = "tiny"
model = "{base}"
[training]
steps = {steps}
batch_size = 4
learning_rate = 1e-3
checkpoint_every = 2
[lora]
rank = 2
[generation]
max_tokens = 4
timed_requests = 2
[export]
accept_loss = true
"""


def make_task(folder: Path, base: Path | str, *, steps: int = 7) -> Path:
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text(TASK.format(base=base, steps=steps))
    (folder / "template.md").write_text(
        "Answer with the code of the colour.\n- red ZOR\n- blue MIP\n- green KEL\nPlease be kind. Say nothing else.\n"
    )
    (folder / "schedule.toml").write_text(SCHEDULE)
    for split, asks in (
        ("train", ("what is {}?", "and {}?", "{}")),
        ("valid", ("code of {}",)),
        ("test", ("tell {}",)),
    ):
        pairs = (("red", "ZOR"), ("blue", "MIP"), ("green", "KEL"))
        records = [{"query": ask.format(word), "answer": code} for ask in asks for word, code in pairs]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def flow(folder: Path, last: str = "evaluate", progress: Progress = lambda *_, **__: None) -> dict[str, bool]:
    done: dict[str, bool] = {}
    listeners = Listeners(progress=progress, step=lambda result: done.update({result.name: not result.skipped}))
    with open_task(folder, folder / "schedule.toml", folder / "run", listeners) as context:
        run_steps(context, step_named(last))
    return done


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_task(tmp_path_factory.mktemp("flow") / "task", tiny_base.folder)
    assert flow(folder) == dict.fromkeys(NAMES, True)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the finished task in the place of the original, so that the run still belongs to it."""
    aside = finished.parent / "aside"
    shutil.copytree(finished, aside)
    yield finished
    shutil.rmtree(finished)
    aside.rename(finished)


def test_a_second_run_does_nothing(copy: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in (copy / "run").rglob("*") if path.suffix and path.suffix != ".json"
    }
    assert flow(copy) == dict.fromkeys(NAMES, False)
    assert before
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.is_file())


@pytest.mark.parametrize(
    ("name", "old", "new", "redone"),
    [
        ("template.md", "kind", "very kind", set(NAMES) - {"index"}),
        ("train.jsonl", "and red?", "and then red?", set(NAMES) - {"compress"}),
        ("test.jsonl", "tell red", "tell me red", set(NAMES) - {"compress", "index"}),
        ("task.toml", "max_tokens = 4", "max_tokens = 5", {"evaluate"}),
        ("task.toml", "[lora]", "direct_drop_steps = 3\n[lora]", {"direct_drop", "evaluate"}),
        ("task.toml", "rank = 2", "rank = 3", {"train", "direct_drop", "retention", "export", "evaluate"}),
        ("task.toml", "[lora]", "[evaluation]\nunrelated_tokens = 5\n[lora]", {"retention", "evaluate"}),
        ("task.toml", "accept_loss = true", 'accept_loss = true\nquant = "f16"', {"export", "evaluate"}),
    ],
)
def test_a_changed_input_redoes_exactly_what_depends_on_it(
    copy: Path, name: str, old: str, new: str, redone: set[str]
) -> None:
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new))
    assert {step for step, ran in flow(copy).items() if ran} == redone


def test_answers_outlive_a_metric_that_fails_and_a_change_of_the_scoring(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = copy / "score.py"
    program.write_text("#!/usr/bin/env python3\nraise SystemExit('no ruler')\n")
    program.chmod(0o755)
    answers = (copy / "run" / "answers.jsonl").read_bytes()
    text = (copy / "task.toml").read_text().replace("[lora]", '[scoring]\ncommand = ["./score.py"]\n[lora]')
    (copy / "task.toml").write_text(text.replace('name = "tiny"', 'name = "tiny"\nmetric = "command"'))
    monkeypatch.setattr("pilocal.evaluate.answer.answer", lambda *_, **__: pytest.fail("answered already"))
    with pytest.raises(InputError, match="no ruler"):
        flow(copy)
    program.write_text("#!/usr/bin/env python3\nimport sys\nfor line in sys.stdin:\n    print(0.25)\n")
    assert {step for step, ran in flow(copy).items() if ran} == {"evaluate"}
    metrics = json.loads((copy / "run" / "metrics.json").read_text())
    assert {arm["score"] for arm in metrics["arms"].values()} == {0.25}
    assert (copy / "run" / "answers.jsonl").read_bytes() == answers


def test_references_that_cannot_be_scored_are_refused_before_any_work(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    toml = folder / "task.toml"
    toml.write_text(toml.read_text().replace('name = "tiny"', 'name = "tiny"\nmetric = "python_tests"'))
    with pytest.raises(InputError, match=r"3 of 3 records have no tests; the first is test-1; add"):
        flow(folder)
    assert not (folder / "run" / "templates").exists()


def test_a_lost_output_is_made_again(copy: Path) -> None:
    adapter = (copy / "run" / "adapter" / "adapters.safetensors").read_bytes()
    (copy / "run" / "adapter" / "adapters.safetensors").unlink()
    assert {step for step, ran in flow(copy).items() if ran} == {"train"}
    assert (copy / "run" / "adapter" / "adapters.safetensors").read_bytes() == adapter


def test_metrics_keep_the_contract(finished: Path) -> None:
    metrics = json.loads((finished / "run" / "metrics.json").read_text())
    assert (metrics["metric"], metrics["n"]) == ("exact_match", 3)
    assert list(metrics["arms"]) == [
        "base_query_only", "base_full_prompt", "base_full_prompt_cached", "direct_drop", "internalized", "shipped",
    ]  # fmt: skip
    for arm, row in metrics["arms"].items():
        timed = {"ttft_ms", "latency_ms"} if arm not in ("direct_drop", "internalized") else set()
        assert set(row) == {"score", "interval", "prompt_tokens"} | timed
        low, high = row["interval"]
        assert 0 <= low <= row["score"] <= high <= 1
        assert all(row[key] > 0 for key in timed)
    assert metrics["arms"]["base_full_prompt"]["prompt_tokens"] > 2 * metrics["arms"]["shipped"]["prompt_tokens"]
    assert {"pi_score", "prompt_token_reduction", "speedup", "speedup_cached"} <= set(metrics)


def test_the_stages_shrink_to_the_bare_query(finished: Path) -> None:
    sizes = []
    for stage in range(3):
        records = [one["messages"] for one in read_records(finished / "run" / "stages" / str(stage), "train")]
        assert len(records) == 9
        sizes.append(sum(len(message["content"]) for record in records for message in record))
    assert sizes[0] > sizes[1] > sizes[2]
    assert [[message["role"] for message in record] for record in records] == [["user", "assistant"]] * 9


def test_no_answer_of_validation_or_test_is_ever_a_shot(finished: Path) -> None:
    train = {json.loads(line)["query"] for line in (finished / "train.jsonl").read_text().splitlines()}
    for split in ("train", "valid", "test"):
        for record in read_records(finished / "run" / "stages" / "0", split):
            *before, query, _ = record["messages"]
            shots = [message["content"] for message in before if message["role"] == "user"]
            assert len(shots) == 2
            assert set(shots) <= train - {query["content"]}


def test_run_json_records_what_the_run_was_made_from(finished: Path) -> None:
    state = json.loads((finished / "run" / "run.json").read_text())
    assert set(state["inputs"]) == {"task", "template", "train", "valid", "test"}
    assert set(state["steps"]) == set(NAMES)
    assert {"pilocal", "mlx", "mlx-lm", "llama-cpp-python", "python"} <= set(state["versions"])


def test_what_is_served_is_found_and_its_absence_explained(finished: Path, tmp_path: Path) -> None:
    shipped = read_shipped(finished / "run")
    assert (shipped.base, shipped.adapter, shipped.fused) == ("base-q4_1.gguf", "adapter.gguf", None)
    assert (shipped.name, shipped.shots) == ("tiny", 2)
    assert [example.answer for example in shipped.examples()][:3] == ["ZOR", "MIP", "KEL"]
    with pytest.raises(RunError, match="nothing was exported here yet"):
        read_shipped(tmp_path)
    shutil.copytree(finished / "run" / "export", tmp_path / "export")
    assert read_shipped(tmp_path).template == shipped.template
    (tmp_path / "export" / "adapter.gguf").unlink()
    with pytest.raises(RunError, match=r"adapter\.gguf: the file is gone"):
        read_shipped(tmp_path)


def test_a_stopped_run_goes_on_and_ends_the_same(finished: Path, tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if what == "train" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flow(folder, "train", stop)
    assert flow(folder, "train") == {"compress": False, "index": False, "stages": False, "train": True}
    same = [root / "run" / "adapter" / "adapters.safetensors" for root in (finished, folder)]
    assert same[0].read_bytes() == same[1].read_bytes()


def test_a_prompt_longer_than_the_context_is_refused_before_training(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    (folder / "template.md").write_text("word " * 1100)
    with pytest.raises(InputError, match=r"stage 0 \(tau 1, 2 shots\): the longest row is \d+ tokens over") as caught:
        flow(folder)
    assert "context of 1024" in str(caught.value)
    assert not (folder / "run" / "stages").exists()


def test_a_pool_smaller_than_k_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    (folder / "train.jsonl").write_text('{"query": "red", "answer": "ZOR"}\n{"query": "blue", "answer": "MIP"}\n')
    with pytest.raises(InputError, match=r"train\.jsonl"):
        flow(folder)


def test_a_bank_smaller_than_k_is_refused_before_any_work(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    with (folder / "task.toml").open("a") as file:
        file.write("[retrieval]\npool = 0.2\n")
    with pytest.raises(InputError, match=r"^\[retrieval\] pool: pool = 0.2 leaves 2 of 9 training examples"):
        flow(folder)
    assert not (folder / "run" / "templates").exists()


def test_the_seed_of_the_training_draws_the_bank_and_only_a_bank_depends_on_it(tiny_base: Base, tmp_path: Path) -> None:
    keys = {}
    for pool in (1.0, 0.5):
        for seed in (0, 1):
            folder = make_task(tmp_path / f"{pool}-{seed}", tiny_base.folder)
            text = (folder / "task.toml").read_text().replace("[training]\n", f"[training]\nseed = {seed}\n")
            (folder / "task.toml").write_text(text + f"[retrieval]\npool = {pool}\n")
            with open_task(folder, folder / "schedule.toml", None) as context:
                keys[pool, seed] = step_named("index").key(context)
    assert keys[1.0, 0] == keys[1.0, 1]
    assert len(set(keys.values())) == 3


def test_queries_with_different_answers_are_warned_of_once(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    with (folder / "train.jsonl").open("a") as file:
        for query, answer in (("Red", "MIP"), ("BLUE", "KEL"), ("green ", "KEL")):
            file.write(json.dumps({"query": query, "answer": answer}) + "\n")
    said: list[str] = []
    with open_task(folder, folder / "schedule.toml", folder / "run", Listeners(warn=said.append)) as context:
        run_steps(context, step_named("stages"))
    line = "2 queries have more than one answer, such as 'red', first on line 7"
    assert said == [f"{folder / 'train.jsonl'}:10: {line}"]


def test_contradictions_are_looked_for_in_every_split_and_between_them(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    added = {
        "valid": (("code of RED", "MIP"),),
        "test": (("tell  red", "MIP"), ("tell blue ", "KEL"), ("Code of  green", "MIP"), ("Code of red", "MIP")),
    }
    for split, pairs in added.items():
        with (folder / f"{split}.jsonl").open("a") as file:
            file.writelines(json.dumps({"query": query, "answer": answer}) + "\n" for query, answer in pairs)
    said: list[str] = []
    with open_task(folder, None, None, Listeners(warn=said.append)):
        pass
    assert said == [
        f"{folder}/valid.jsonl:4: a query has more than one answer, such as 'code of red', first on line 1",
        f"{folder}/test.jsonl:4: 2 queries have more than one answer, such as 'tell red', first on line 1",
        f"{folder}: a query has different answers in train.jsonl, valid.jsonl, test.jsonl, such as 'code of green' "
        "in valid.jsonl:3 and test.jsonl:6",
    ]


@pytest.mark.parametrize("command", ["check", "stages"])
def test_answers_longer_than_max_tokens_are_counted_before_any_training(
    tiny_base: Base, tmp_path: Path, command: str
) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    answers = ("ZOR", "ZOR MIP KEL ZOR MIP KEL", "a b c d e f g h i j k l m n o p")
    for split, count in (("train", 3), ("valid", 2), ("test", 3)):
        records = [{"query": f"{split} {i}", "answer": answers[i % 3]} for i in range(count * 3)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lengths = list(map(token_counter(tiny_base.tokenizer), answers))
    toml = (folder / "task.toml").read_text()

    def warned(limit: int) -> list[str]:
        (folder / "task.toml").write_text(toml.replace("max_tokens = 4", f"max_tokens = {limit}"))
        said: list[str] = []
        with open_task(folder, folder / "schedule.toml", None, Listeners(warn=said.append)) as context:
            if command == "check":
                plan_run(context, probe=False)
            else:
                run_steps(context, step_named("stages"))
        return said

    assert lengths == sorted(lengths)
    what = f"reference answers are longer than [generation] max_tokens = {lengths[1]} and can never be matched"
    assert warned(lengths[1]) == [
        f"{folder}/valid.jsonl: 2 of 6 {what}; raise it to at least {lengths[2]}",
        f"{folder}/test.jsonl: 3 of 9 {what}; raise it to at least {lengths[2]}",
    ]
    assert (
        f"6 of 9 reference answers are longer than [generation] max_tokens = {lengths[1] - 1}"
        in warned(lengths[1] - 1)[1]
    )
    assert warned(lengths[2]) == []


def test_fewer_steps_than_stages_are_refused(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 stages need at least as many steps; got 2"):
        flow(make_task(tmp_path / "task", tiny_base.folder, steps=2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda base: (base / "config.json").unlink(), "no config.json"),
        (lambda base: (base / "config.json").write_text('{"model_type": "mamba"}'), "not supported; got 'mamba'"),
        (lambda base: (base / "config.json").write_text("{"), "damaged"),
        (lambda base: (base / "model.safetensors").unlink(), "no model*.safetensors"),
        (lambda base: (base / "model.safetensors").write_bytes(b"x" * 100), "damaged"),
        (lambda base: _cut(base / "model.safetensors"), "bytes promised"),
        (lambda base: (base / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda base: (base / "chat_template.jinja").unlink(), "no chat template"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused_in_one_line(
    tiny_base: Base, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base.folder, base)
    damage(base)
    folder = make_task(tmp_path / "task", base)
    with pytest.raises(PilocalError) as caught:
        flow(folder)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_the_training_is_shown_where_it_is_asked_for(
    kind: str, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(kind)
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = make_task(tmp_path / "task", tiny_base.folder)
    with open_task(folder, folder / "schedule.toml", folder / "run", Listeners(report_to=kind)) as context:
        run_steps(context, step_named("train"))
    reports = folder / "run" / "reports" / "train"
    assert [path.name for path in reports.iterdir()] == [kind]
    if kind == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(reports / kind)).Reload()
        assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 8))
    else:
        assert len(list(reports.rglob("*.wandb"))) == 1
