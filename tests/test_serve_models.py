"""One base, many adapters: every answer comes from its own weights, and files that do not belong are refused."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.errors import Faults, InputError, ModelError
from pilocal.llamacpp.chat import ChatTemplate
from pilocal.llamacpp.model import Model
from pilocal.llamacpp.sequences import Weights
from pilocal.run_folder.gguf_header import read_header
from pilocal.run_folder.shared_base import choose_base
from pilocal.run_folder.shipped import BARE_BASE as BASE
from pilocal.run_folder.shipped import Shipped
from pilocal.server.engines import Engines
from pilocal.server.options import ServeOptions
from tests.served import make_run
from tests.tiny import make_adapter, make_base

CONTEXT = 256
QUERIES = ("turn on the kitchen light", "what is red?", "play jazz", "12 + 30", "good night", "what is red and blue?")
STRENGTHS = (0.0, 0.25, 1.0, 2.0)


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
def engines(tasks: list[Shipped]) -> Iterator[Engines]:
    """Little room: what is kept has to leave, and requests have to start again."""
    options = ServeOptions(context=CONTEXT, threads=1, parallel=8, cache=0)
    with Engines(choose_base(tasks)[0], tasks, options) as engines:
        yield engines


@pytest.fixture(scope="module")
def cut(tasks: list[Shipped]) -> Iterator[Callable[[str], list[int]]]:
    gguf = choose_base(tasks)[0]
    with Model(gguf, vocabulary_only=True) as model:
        chats = ChatTemplate(model.tokenizer, gguf)
        yield lambda query: chats.tokens([{"role": "user", "content": query}])


class Request:
    """A greedy answer of a few tokens, as the engine is asked for it."""

    def __init__(self, prompt: list[int], weights: Weights, tokens: int = 5) -> None:
        self.prompt, self.weights, self.wanted = prompt, weights, tokens
        self.cancelled, self.ended = threading.Event(), threading.Event()
        self.tokens: list[int] = []
        self.reused = 0
        self.error: Exception | None = None

    def take(self, logits_V: NDArray[np.float32]) -> int | None:
        self.tokens.append(int(logits_V.argmax()))
        return self.tokens[-1] if len(self.tokens) < self.wanted else None

    def end(self, error: Exception | None) -> None:
        self.error = error
        self.ended.set()


def submit(engines: Engines, prompt: list[int], name: str, strength: float = 1.0, tokens: int = 5) -> Request:
    engine, weights = engines.find(name, strength)
    request = Request(prompt, weights, tokens)
    engine.submit(request)
    return request


def answer(request: Request) -> list[int]:
    assert request.ended.wait(120)
    assert request.error is None
    return request.tokens


Said = dict[tuple[str, float, str], list[int]]


@pytest.fixture(scope="module")
def alone(tasks: list[Shipped], cut: Callable[[str], list[int]]) -> Said:
    """What every adapter says in a llama.cpp of its own, each time with an empty cache."""
    from llama_cpp import Llama

    weights = [(task.name, strength, task) for task in tasks[:2] for strength in STRENGTHS]
    weights += [(task.name, 1.0, task) for task in tasks[2:]] + [(BASE, 1.0, tasks[0])]
    said: Said = {}
    for name, strength, task in weights:
        gguf = task.folder / (task.fused or task.base) if name != BASE else task.folder / task.base
        lora = str(task.adapter_path) if task.adapter_path and name != BASE else None
        llama = Llama(
            str(gguf), n_ctx=CONTEXT, n_threads=1, n_threads_batch=1, lora_path=lora, lora_scale=strength, verbose=False
        )
        for query in QUERIES:
            llama.reset()
            llama._ctx.kv_cache_clear()
            tokens = llama.generate(cut(query), temp=0.0, top_k=1, repeat_penalty=1.0)
            said[name, strength, query] = [next(tokens) for _ in range(5)]
        llama.close()
    return said


def test_every_answer_is_its_own_adapter_s_among_others_of_all_strengths_that_hang_up(
    engines: Engines, cut: Callable[[str], list[int]], alone: Said
) -> None:
    draw = random.Random(0)
    for query in QUERIES:  # else a mixed-up answer could not be told
        assert (
            len({tuple(said) for (_, strength, asked), said in alone.items() if (strength, asked) == (1, query)}) == 10
        )
        assert alone["task-0", 0.0, query] == alone[BASE, 1.0, query]
    kinds, same, whole = list(alone), 0, 0
    for _ in range(35):
        asked = []
        for _ in range(60):
            name, strength, query = draw.choice(kinds)
            request = submit(engines, cut(query), name, strength)
            if draw.random() < 0.1:
                request.cancelled.set()
            asked.append(((name, strength, query), request))
        for kind, request in asked:
            said = answer(request)
            if request.cancelled.is_set():
                assert said == alone[kind][: len(said)]
            else:
                whole += 1
                same += said == alone[kind]
                assert said[0] == alone[kind][0]
    assert whole > 1800
    assert same >= 0.99 * whole  # sums in other orders may change an answer whose tokens are as likely
    counts = engines.all()[BASE].counts
    assert counts.reused > 0
    assert engines.all()[BASE].sequences.evicted > 0


def test_a_cancelled_request_ends_at_the_next_batch(engines: Engines, cut: Callable[[str], list[int]]) -> None:
    request = submit(engines, cut("good night"), "task-0", tokens=200)
    while len(request.tokens) < 3:
        assert not request.ended.wait(0.001)
    request.cancelled.set()
    assert request.ended.wait(60)
    assert 3 <= len(request.tokens) < 200


def test_a_request_that_fails_ends_alone(engines: Engines, cut: Callable[[str], list[int]], alone: Said) -> None:
    class Failing(Request):
        def take(self, logits_V: NDArray[np.float32]) -> int | None:
            raise ValueError("no token")

    engine, weights = engines.find("task-1", 1.0)
    failing = Failing(cut("good night"), weights)
    other = submit(engines, cut("good night"), "task-1")
    engine.submit(failing)
    assert failing.ended.wait(60)
    assert str(failing.error) == "no token"
    assert answer(other) == alone["task-1", 1.0, "good night"]


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
    with pytest.raises(ModelError, match=rf"^{path}: llama\.cpp refuses the file: .*tensor"):
        Engines(task.folder / task.base, [task], ServeOptions(context=CONTEXT, threads=1))


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
