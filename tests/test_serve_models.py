"""One base, many adapters: every answer comes from its own weights, and files that do not belong are refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException

from pilocal.base.base import Base
from pilocal.errors import Faults, InputError, ModelError
from pilocal.run_folder.gguf_header import read_header
from pilocal.run_folder.shipped import Shipped
from pilocal.server.job import CURRENT_JOB, Job
from pilocal.server.llama_server import load_llama
from pilocal.server.models import Models
from pilocal.server.weights import BASE, choose_base
from tests.served import make_run
from tests.tiny import make_adapter, make_base

CONTEXT = 256
QUERIES = ("turn on the kitchen light", "what is red?", "play jazz", "12 + 30", "good night", "what is red and blue?")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    return make_base(tmp_path_factory.mktemp("base"), starter.folder, hidden_size=128, intermediate_size=192)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, small: Base) -> list[Shipped]:
    """Eight random adapters of several ranks, and one that is fused."""
    root = tmp_path_factory.mktemp("runs")
    made: list[Shipped] = []
    for seed in range(9):
        adapter = make_adapter(root / f"adapter-{seed}", small, rank=2 + seed % 3, scale=5.0, seed=seed)
        gguf = made[0].folder / made[0].base if made else None
        made.append(make_run(root / f"task-{seed}", small, adapter, gguf=gguf, fused=seed == 8))
    return made


@pytest.fixture(scope="module")
def models(tasks: list[Shipped]) -> Models:
    base = load_llama(choose_base(tasks)[0], context=CONTEXT, threads=1)
    return Models(base, tasks, context=CONTEXT, threads=1)


def say(llama: Any, query: str) -> str:
    chat = [{"role": "user", "content": query}]
    reply = llama.create_chat_completion(chat, temperature=0, max_tokens=5)
    return str(reply["choices"][0]["message"]["content"])


def ask(models: Models, name: str, query: str) -> str:
    CURRENT_JOB.set(Job(model=name))
    return say(models(name), query)


@pytest.fixture(scope="module")
def alone(tasks: list[Shipped]) -> dict[tuple[str, str], str]:
    """What every adapter says in a llama.cpp of its own, each time with an empty cache."""
    from llama_cpp import Llama

    files = {task.name: (task.folder / (task.fused or task.base), task.adapter) for task in tasks}
    files[BASE] = (tasks[0].folder / tasks[0].base, None)
    said = {}
    for name, (gguf, adapter) in files.items():
        lora = str(gguf.parent / adapter) if adapter else None
        llama = Llama(str(gguf), n_ctx=CONTEXT, n_threads=1, n_threads_batch=1, lora_path=lora, verbose=False)
        for query in QUERIES:
            llama.reset()
            llama._ctx.kv_cache_clear()
            said[name, query] = say(llama, query)
        llama.close()
    return said


def test_no_answer_ever_comes_from_the_adapter_before(models: Models, alone: dict[tuple[str, str], str]) -> None:
    draw = random.Random(0)
    names = list(models)
    assert len(names) == 10
    for query in QUERIES:  # else a mixed-up answer could not be told
        assert len({alone[name, query] for name in names}) == 10
    switches, before = 0, ""
    for _ in range(1000):
        name, query = draw.choice(names), draw.choice(QUERIES)
        assert ask(models, name, query) == alone[name, query]
        switches += name != before
        before = name
    assert switches > 800


STRENGTHS = (0.0, 0.25, 1.0, 2.0)


@pytest.fixture(scope="module")
def weighed(tasks: list[Shipped]) -> dict[tuple[str, float, str], str]:
    """What two adapters say at some strengths in a llama.cpp of their own, each time with an empty cache."""
    from llama_cpp import Llama

    said = {}
    for task in tasks[:2]:
        for strength in STRENGTHS:
            llama = Llama(
                str(task.folder / task.base), n_ctx=CONTEXT, n_threads=1, n_threads_batch=1, verbose=False,
                lora_path=str(task.adapter_path), lora_scale=strength,
            )  # fmt: skip
            for query in QUERIES:
                llama.reset()
                llama._ctx.kv_cache_clear()
                said[task.name, strength, query] = say(llama, query)
            llama.close()
    return said


def test_no_answer_ever_comes_from_another_strength(
    models: Models, alone: dict[tuple[str, str], str], weighed: dict[tuple[str, float, str], str]
) -> None:
    draw = random.Random(1)
    for query in QUERIES:
        for name in ("task-0", "task-1"):
            assert weighed[name, 0.0, query] == alone[BASE, query]
            assert weighed[name, 1.0, query] == alone[name, query]
            assert len({weighed[name, strength, query] for strength in STRENGTHS}) > 2
    for _ in range(300):
        name, strength, query = draw.choice(("task-0", "task-1")), draw.choice(STRENGTHS), draw.choice(QUERIES)
        if draw.random() < 0.2:  # switched to, but cancelled before anything is computed
            CURRENT_JOB.set(Job(model=draw.choice(("task-0", "task-1", BASE)), strength=draw.choice((0.5, 1.0))))
            models()
        CURRENT_JOB.set(Job(model=name, strength=strength))
        assert say(models(name), query) == weighed[name, strength, query]


def test_a_kept_prefix_is_used_again_at_the_same_strength_alone(models: Models) -> None:
    kept = []
    for strength in (0.5, 0.5, 0.25, 0.5):
        CURRENT_JOB.set(Job(model="task-0", strength=strength))
        llama = models("task-0")
        kept.append(llama.n_tokens)
        say(llama, QUERIES[0])
    assert [count > 0 for count in kept[1:]] == [True, False, False]


def test_a_cancelled_job_ends_at_the_next_token(models: Models) -> None:
    class Third(Job):
        def add(self, token: int, *, last: bool) -> None:
            super().add(token, last=last)
            if len(self.tokens) == 3:
                self.cancelled.set()

    job = Third(model="task-0")
    CURRENT_JOB.set(job)
    chat = [{"role": "user", "content": "good night"}]
    models("task-0").create_chat_completion(chat, temperature=0, max_tokens=60)
    assert len(job.tokens) == 3


def test_a_job_cancelled_amid_its_prompt_ends_there_and_the_next_is_answered_as_ever(
    models: Models, alone: dict[tuple[str, str], str]
) -> None:
    job = Job(model="task-3")
    job.cancelled.set()
    CURRENT_JOB.set(job)
    with pytest.raises(HTTPException) as caught:
        say(models("task-3"), "good night")
    assert (caught.value.status_code, job.tokens, job.first_token_time) == (499, [], None)
    assert ask(models, "task-3", "good night") == alone["task-3", "good night"]


def changed(task: Shipped, folder: Path, **changes: Any) -> Shipped:
    """The task in a folder of links to its files, so that one of them can be replaced."""
    import dataclasses

    folder.mkdir(parents=True)
    for path in task.folder.iterdir():
        (folder / path.name).symlink_to(path)
    return dataclasses.replace(task, folder=folder, **changes)


def replace(task: Shipped, name: str, content: bytes) -> Path:
    path = task.folder / name
    path.unlink()
    path.write_bytes(content)
    return path


def test_the_base_of_the_tasks_with_adapters_is_the_one_that_is_loaded(tasks: list[Shipped]) -> None:
    assert choose_base(tasks)[0] == tasks[0].folder / "base-f16.gguf"
    assert choose_base(tasks[::-1])[0] == tasks[7].folder / "base-f16.gguf"
    assert choose_base(tasks[8:])[0] == tasks[8].folder / "base-f16.gguf"


def test_two_tasks_of_one_name_and_one_named_as_the_base_are_refused(tasks: list[Shipped], tmp_path: Path) -> None:
    twin = changed(tasks[1], tmp_path / "twin", name="task-0")
    with pytest.raises(InputError, match=r"task-0/export has the same name; got 'task-0'"):
        choose_base([tasks[0], twin])
    with pytest.raises(InputError, match="the bare base answers to this name"):
        choose_base([changed(tasks[1], tmp_path / "base", name="base")])


def test_runs_of_different_bases_are_refused(tasks: list[Shipped], tmp_path: Path) -> None:
    other = changed(tasks[1], tmp_path / "other", base_sha256="0" * 64)
    with pytest.raises(InputError, match=rf"other: made from another base than {tasks[0].folder}; got '0{{12}}'"):
        choose_base([tasks[0], other])


def test_a_file_made_from_another_base_is_refused(tasks: list[Shipped], starter: Base, tmp_path: Path) -> None:
    other = make_base(tmp_path / "base", starter.folder, hidden_size=64, intermediate_size=64)
    foreign = make_run(tmp_path / "foreign", other, make_adapter(tmp_path / "adapter", other))
    for name in ("adapter.gguf", "base-f16.gguf"):
        task = changed(tasks[0], tmp_path / f"with-{name}")
        path = replace(task, name, (foreign.folder / name).read_bytes())
        with pytest.raises(ModelError, match=rf"^{path}: made from another base than .*shipped.json says"):
            choose_base([task])


def test_a_file_that_does_not_name_its_base_is_refused(tasks: list[Shipped], tmp_path: Path) -> None:
    task = changed(tasks[0], tmp_path / "task")
    whole = (task.folder / "adapter.gguf").read_bytes()
    assert whole.count(b"pilocal.base.sha256") == 1
    replace(task, "adapter.gguf", whole.replace(b"pilocal.base.sha256", b"pilocal.base.sha25x"))
    with pytest.raises(ModelError, match=r"adapter\.gguf: it does not say which base it was made from"):
        choose_base([task])


def test_a_whole_model_in_the_place_of_the_adapter_is_refused(tasks: list[Shipped], tmp_path: Path) -> None:
    task = changed(tasks[0], tmp_path / "task", adapter="base-f16.gguf")
    with pytest.raises(ModelError, match=r"base-f16\.gguf: not an adapter"):
        choose_base([task])


@pytest.mark.parametrize("name", ["base-f16.gguf", "adapter.gguf"])
def test_a_file_that_is_cut_anywhere_is_refused_before_loading(tasks: list[Shipped], tmp_path: Path, name: str) -> None:
    whole = (tasks[0].folder / name).read_bytes()
    for size in (0, 3, 20, 200, len(whole) // 2, len(whole) - 40):
        task = changed(tasks[0], tmp_path / str(size))
        replace(task, name, whole[:size])
        with pytest.raises(ModelError, match=rf"{name}: (not a GGUF file|the GGUF file is cut off)"):
            choose_base([task])


def test_every_fault_of_several_runs_is_told(tasks: list[Shipped], tmp_path: Path) -> None:
    broken = [changed(task, tmp_path / task.name) for task in tasks[:2]]
    for task in broken:
        replace(task, "adapter.gguf", b"text")
    with pytest.raises(Faults) as caught:
        choose_base(broken)
    assert str(caught.value).count("not a GGUF file; got b'text'; copy, download or export it again") == 2


def test_an_adapter_of_another_shape_is_refused(tasks: list[Shipped], starter: Base, tmp_path: Path) -> None:
    other = make_base(tmp_path / "base", starter.folder, hidden_size=64, intermediate_size=64)
    foreign = make_run(tmp_path / "foreign", other, make_adapter(tmp_path / "adapter", other))
    task = changed(tasks[0], tmp_path / "task")
    path = replace(task, "adapter.gguf", (foreign.folder / "adapter.gguf").read_bytes())
    base = load_llama(task.folder / task.base, context=CONTEXT, threads=1)
    with pytest.raises(ModelError, match=rf"^{path}: llama\.cpp refuses the file: .*tensor"):
        Models(base, [task], context=CONTEXT, threads=1)


def test_bases_of_two_types_cannot_be_shared_by_adapters(tasks: list[Shipped], small: Base, tmp_path: Path) -> None:
    from pilocal.export.fused import export_fused

    task = changed(tasks[1], tmp_path / "task", base="base-q8_0.gguf")
    export_fused(small, None, task.folder / "base-q8_0.gguf", "q8_0")
    with pytest.raises(InputError, match=rf"base-q8_0\.gguf: quantized otherwise than {tasks[0].folder}"):
        choose_base([tasks[0], task])
    assert choose_base([tasks[8], task])[0] == task.folder / "base-q8_0.gguf"


def test_the_header_is_read_as_the_gguf_package_reads_it(tasks: list[Shipped]) -> None:
    from gguf import GGUFReader

    for name in ("base-f16.gguf", "adapter.gguf"):
        path = tasks[0].folder / name
        fields = {
            key: field.contents()
            for key, field in GGUFReader(path).fields.items()
            if not key.startswith("GGUF.") and "ARRAY" not in str(field.types)
        }
        assert read_header(path) == fields
        assert len(fields) > 3
