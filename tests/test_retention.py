"""Retention: what an adapter changes on prompts that have nothing to do with its task, and the gate of an export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.base.reference import LoadReference, MlxReference, ReferenceModel, kept_loader
from pilocal.cli.tables import proof_lines
from pilocal.errors import ExportError, InputError, PilocalError
from pilocal.evaluate.retention import GENERAL, Pair, summarize
from pilocal.flow import references
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps, step_named
from pilocal.flow.setups import training_setup
from pilocal.progress import silent
from pilocal.prompt.tokens import end_tokens, prompt_tokens
from pilocal.run_folder.adapter import read_adapter
from pilocal.task import Example, Lora, load_task
from pilocal.task.examples import load_unrelated
from pilocal.training.backend import Backend
from tests.test_flow import flow, make_task
from tests.test_shipping import export
from tests.test_tables import whole
from tests.tiny import put_back

PROMPTS = tuple(Example(id=str(i), query=query, answer="") for i, query in enumerate(("hello", "what is 2?", "a b c")))


def test_the_general_prompts_are_forty_and_different() -> None:
    prompts = load_unrelated(GENERAL)
    assert len({prompt.query for prompt in prompts}) == len(prompts) == 40
    assert not any(prompt.answer for prompt in prompts)


def pair(base: Base, adapter: Path, load: LoadReference = MlxReference) -> Pair:
    return Pair(base=base, adapter=adapter, load=load, max_tokens=6, batch_size=2, progress=silent)


def zeros(adapter: Path, folder: Path) -> Path:
    whole = read_adapter(adapter)
    tensors = {name: value * np.float32(not name.endswith("lora_b")) for name, value in whole.tensors.items()}
    replace(whole, tensors=tensors).write(folder)
    return folder


def torch_loader(base: Base, tmp_path: Path) -> LoadReference:
    pytest.importorskip("torch")
    task = load_task(make_task(tmp_path / "for-torch", base.folder))
    object.__setattr__(task, "lora", Lora(rank=4, scale=2.0))
    setup = training_setup(task, base, Backend(name="torch", device="cpu"))
    return lambda base, adapter: setup.reference(adapter)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_an_adapter_that_adds_nothing_changes_nothing_and_another_one_does(
    backend: str, tiny_base: Base, tiny_adapter: Path, tmp_path: Path
) -> None:
    load = MlxReference if backend == "mlx" else torch_loader(tiny_base, tmp_path)
    for adapter, changes in ((zeros(tiny_adapter, tmp_path / "zeros"), False), (tiny_adapter, True)):
        both = pair(tiny_base, adapter, load)
        lines = both.compare(PROMPTS, both.base_says(PROMPTS))
        found = summarize(lines, PROMPTS)
        assert (found["kl"] > 1e-3) is (found["kl_max"] > 1e-3) is changes
        if not changes:
            assert found["same_answers"] == 1
            assert found["kl"] < 1e-9


def test_base_and_adapter_are_each_loaded_once(tiny_base: Base, tiny_adapter: Path) -> None:
    loaded: list[Path | None] = []

    def load(base: Base, adapter: Path | None) -> ReferenceModel:
        loaded.append(adapter)
        return MlxReference(base, adapter)

    asked = (*PROMPTS[:2], replace(PROMPTS[2], answer="so"))
    kept, fresh = (pair(tiny_base, tiny_adapter, each) for each in (kept_loader(load), MlxReference))
    assert kept.compare(asked, kept.base_says(asked)) == fresh.compare(asked, fresh.base_says(asked))
    assert loaded == [None, tiny_adapter]


@pytest.mark.parametrize(
    ("backend", "accelerated", "in_torch"),
    [
        (Backend(), False, False),
        (Backend(name="torch", device="cpu"), False, False),
        (Backend(name="torch", device="cuda"), False, True),
        (Backend(name="torch", device="cuda"), True, False),
        (Backend(name="torch", device="cuda", weights="nf4"), False, False),
    ],
)
def test_pytorch_measures_where_it_alone_has_an_accelerator(
    backend: Backend, accelerated: bool, in_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    context: Any = SimpleNamespace(backend=backend)
    monkeypatch.setattr(references, "has_accelerator", lambda context: accelerated)
    assert (references.trainer_loader(context) is not MlxReference) is in_torch


def test_the_distance_is_that_over_the_base_s_own_answers(tiny_base: Base, tiny_adapter: Path) -> None:
    import mlx.core as mx

    from pilocal.base.load import load_base

    both = pair(tiny_base, tiny_adapter)
    said = both.base_says(PROMPTS)
    lines = both.compare(PROMPTS, said)
    tokenizer = tiny_base.tokenizer
    models = [load_base(tiny_base), load_base(tiny_base, tiny_adapter)]
    kls: list[list[float]] = []
    for prompt, answer, line in zip(PROMPTS, said, lines, strict=True):
        asked = prompt_tokens([{"role": "user", "content": prompt.query}], tokenizer)
        told = [*answer, min(end_tokens(tokenizer))][:6]
        kls.append([])
        best = []
        for place in range(len(told)):
            logits = [model(mx.array([*asked, *told[:place]])[None])[0, -1].astype(mx.float32) for model in models]
            base, other = (np.array(each - mx.logsumexp(each), dtype=np.float64) for each in logits)
            kls[-1].append(float((np.exp(base) * (base - other)).sum()))
            best.append((int(base.argmax()), int(other.argmax())))
        assert line["same"] is all(one == two for one, two in best)
        assert line["nats"] == pytest.approx(sum(kls[-1]), rel=1e-3)
        assert line["tokens"] == len(told)
    found = summarize(lines, PROMPTS)
    flat = [kl for row in kls for kl in row]
    assert found["kl"] == pytest.approx(np.mean(flat), rel=1e-3)
    assert found["kl_max"] == pytest.approx(max(flat), rel=1e-3)
    assert found["worst"]["query"] == PROMPTS[int(np.argmax([np.mean(row) for row in kls]))].query


def test_prompts_with_an_answer_are_scored_before_and_after(tiny_base: Base, tiny_adapter: Path) -> None:
    both = pair(tiny_base, tiny_adapter)
    said = both.base_says(PROMPTS)
    texts = [line["base"] for line in both.compare(PROMPTS, said)]
    known = (*(Example(id=p.id, query=p.query, answer=t) for p, t in zip(PROMPTS[:2], texts, strict=False)), PROMPTS[2])
    lines = both.compare(known, said)
    assert ["adapter" in line for line in lines] == [True, True, False]
    scores = summarize(lines, known)["scores"]
    assert scores["prompts"] == 2
    assert scores["exact_match"]["base"] == 1
    expected = np.mean([line["adapter"].strip() == line["base"].strip() for line in lines[:2]])
    assert scores["exact_match"]["adapter"] == expected < 1


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_task(tmp_path_factory.mktemp("retention") / "task", tiny_base.folder, steps=4)
    flow(folder)
    return folder


@pytest.fixture
def task(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """The finished task, put back afterwards."""
    with put_back(finished, tmp_path / "aside") as folder:
        yield folder


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "metrics.json").read_text())["retention"]
    return found


def test_a_run_says_what_its_adapter_changes_elsewhere(finished: Path) -> None:
    found = summary(finished)
    assert found["prompts"] == 40
    assert 0 < found["kl"] <= found["kl_max"]
    assert 0 <= found["same_answers"] <= 1
    assert "scores" not in found
    (part,) = proof_lines({"retention": found})
    whole(part, "40 unrelated prompts: ")


def settings(folder: Path, old: str, new: str) -> None:
    text = (folder / "task.toml").read_text()
    assert old in text
    (folder / "task.toml").write_text(text.replace(old, new))


def test_the_base_s_answers_are_kept_for_another_adapter(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (task / "run" / "retention" / "base.json").read_bytes()
    first = summary(task)
    monkeypatch.setattr("pilocal.evaluate.retention.Pair.base_says", lambda *_: pytest.fail("answered already"))
    settings(task, "learning_rate = 1e-3", "learning_rate = 5e-3")
    assert {step for step, ran in flow(task).items() if ran} == {
        "train",
        "direct_drop",
        "retention",
        "export",
        "evaluate",
    }
    assert (task / "run" / "retention" / "base.json").read_bytes() == before
    assert summary(task)["kl"] > first["kl"]


@pytest.mark.parametrize(
    ("stopped", "after", "left"),
    [("unrelated: base", 5, 40), ("unrelated: base", 20, 24), ("unrelated: probabilities", 50, 48)],
)
def test_a_measurement_that_is_killed_goes_on_and_ends_the_same(
    stopped: str, after: int, left: int, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilocal.evaluate.retention.GROUP", 16)
    files = [task / "run" / "retention" / name for name in ("base.json", "adapter.json")]
    settings(task, "[lora]", "[evaluation]\nunrelated_tokens = 5\n[lora]")
    assert flow(task)["retention"]
    undisturbed = [path.read_bytes() for path in files]
    shutil.rmtree(task / "run" / "retention")
    times = 0

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        nonlocal times
        times += what == stopped
        if times == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flow(task, progress=stop)
    said: list[str] = []
    flow(task, progress=lambda what, done, total, note="": said.append(what))
    assert [path.read_bytes() for path in files] == undisturbed
    assert said.count(stopped) == left


def own_prompts(folder: Path, *lines: Any) -> None:
    (folder / "own.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    settings(folder, "[lora]", '[evaluation]\nunrelated = "own.jsonl"\n[lora]')


def test_the_user_s_own_prompts_take_the_place_of_the_general_ones(task: Path) -> None:
    own_prompts(task, {"query": "hello"}, {"query": "and?", "answer": "yes", "accepts": ["sure"]}, {"query": "bye"})
    redone = {step for step, ran in flow(task).items() if ran}
    assert redone == {"retention", "evaluate"}
    found = summary(task)
    assert (found["prompts"], found["scores"]["prompts"]) == (3, 1)
    (part,) = proof_lines({"retention": found})
    whole(part, "contains on the 1 of them with an answer: base 0.000, adapter 0.000")
    state = json.loads((task / "run" / "run.json").read_text())
    assert "unrelated" in state["inputs"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question": "hello"}, "own.jsonl:2: the record has no query"),
        ("hello", "own.jsonl:2: the record has no query"),
        ({"query": " "}, "own.jsonl:2: the query is empty"),
        ({"query": ["hello"]}, "own.jsonl:2: the query must be text, not a list"),
        ({"query": "hello", "answer": 3}, "own.jsonl:2: the answer must be text; got 3"),
        ({"query": "hello", "answer": "!?"}, "own.jsonl:2: every answer would hold this one"),
        ({"query": "hello", "accepts": ["a"]}, "own.jsonl:2: accepts is a list of texts beside an answer"),
        ({"query": "hello", "answer": "a", "accepts": "b"}, "own.jsonl:2: accepts is a list of texts beside an answer"),
        ({"query": "word " * 2000}, "tokens over what the model's context leaves for a prompt"),
    ],
)
def test_a_prompt_of_the_user_s_that_is_none_is_one_line_before_any_work(
    line: Any, said: str, tiny_base: Base, tmp_path: Path
) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    own_prompts(folder, {"query": "hello"}, line)
    with pytest.raises(InputError) as caught:
        flow(folder)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (folder / "run" / "templates").exists()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[evaluation]\nunrelated = "none.jsonl"\n', "none.jsonl: no such file"),
        ("[evaluation]\nunrelated_tokens = 0\n", "unrelated_tokens must be at least 1"),
        ("[evaluation]\nunrelated_tokens = 1020\n", "'What is the capital of Italy?' is"),
        ('[evaluation]\nunrelated = " "\n', "unrelated must not be empty"),
        ("[evaluation]\nunrelted = 3\n", "unknown key unrelted in [evaluation]; did you mean unrelated"),
    ],
)
def test_a_setting_that_is_none_is_one_line(table: str, said: str, tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    settings(folder, "[lora]", f"{table}[lora]")
    with pytest.raises(PilocalError) as caught:
        flow(folder)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_adapter_that_forgets_more_than_is_allowed_is_not_exported(task: Path) -> None:
    found = summary(task)
    settings(task, "accept_loss = true", f"retention = {found['kl'] / 2:.9f}\naccept_loss = false")
    with pytest.raises(
        ExportError, match=r"\[export\] retention: refused: .* on 40 unrelated prompts, where .* allowed"
    ):
        flow(task)
    assert not list((task / "run" / "export").glob("*.gguf"))
    settings(task, f"retention = {found['kl'] / 2:.9f}", f"retention = {found['kl'] * 2:.9f}")
    settings(task, "accept_loss = false", "gate_rows = 64")
    try:
        flow(task)
    except ExportError as error:
        assert "retention" not in str(error)  # the other gate, which this adapter may not pass either


def test_it_is_exported_where_the_loss_is_accepted(task: Path) -> None:
    limit = f"{summary(task)['kl'] / 2:.9f}"
    settings(task, "accept_loss = true", f"retention = {limit}\naccept_loss = true")
    said: list[str] = []
    with open_task(task, task / "schedule.toml", task / "run", Listeners(warn=said.append)) as context:
        run_steps(context, step_named("export"))
    assert len([line for line in said if "[export] retention" in line and line.endswith("accepted")]) == 1
    assert list((task / "run" / "export").glob("*.gguf"))
    allowed = f"{summary(task)['kl'] * 2:.9f}"
    settings(task, f"retention = {limit}", f"retention = {allowed}")
    said.clear()
    with open_task(task, task / "schedule.toml", task / "run", Listeners(warn=said.append)) as context:
        run_steps(context, step_named("export"))
    assert not [line for line in said if "retention" in line]


def test_another_form_is_refused_as_well_and_what_was_served_stays(task: Path) -> None:
    before = (task / "run" / "export" / "shipped.json").read_bytes()
    settings(task, "accept_loss = true", "retention = 1e-9\naccept_loss = false")
    for form in (("--format", "peft"), ("--format", "fused", "--quant", "f16"), ()):
        done = export(task / "run", *form)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("[export] retention: refused: ")
    assert (task / "run" / "export" / "shipped.json").read_bytes() == before
    done = export(task / "run", "--format", "peft", "--accept-loss")
    assert done.returncode == 0, done.stderr
    assert "accepted" in done.stderr


def test_a_limit_of_nothing_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    settings(folder, "accept_loss = true", "retention = 0")
    with pytest.raises(InputError, match=r"task.toml:\d+: retention must be above 0; leave it out for no limit; got 0"):
        load_task(folder)
