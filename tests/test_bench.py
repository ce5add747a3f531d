from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.bench.latency import Weights, measure
from pilocal.bench.prompts import Prompts, read_prompts
from pilocal.errors import ModelError, RunError
from pilocal.evaluate.arms import SHIPPED
from pilocal.export.fused import export_fused
from pilocal.export.lora import export_adapter
from pilocal.llamacpp.batch_engine import Answered, BatchEngine
from pilocal.llamacpp.context import BATCH, Context
from pilocal.llamacpp.engine import Engine
from pilocal.llamacpp.model import Model
from pilocal.progress import silent
from pilocal.prompt.render import Record, render
from pilocal.prompt.tokens import end_tokens, prompt_tokens
from pilocal.run_folder.shipped import Shipped, read_shipped
from pilocal.starter.episodes import FIRST_TEST_SEED, invent
from pilocal.task import Example
from tests.forked import pilocal
from tests.tiny import make_adapter

MOST = 16
"""Tokens of an answer."""


@pytest.fixture(scope="module")
def records() -> tuple[str, list[Example]]:
    """A template and queries that the starter can answer from it."""
    episode, rng = invent(FIRST_TEST_SEED + 1), Random(0)
    asked = [episode.ask(rng) for _ in range(24)]
    return episode.template, [Example(id=str(i), query=query, answer=answer) for i, (query, answer) in enumerate(asked)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, starter: Base, records: tuple[str, list[Example]]) -> Path:
    """What is left of a run when only its export was kept."""
    template, examples = records
    folder = tmp_path_factory.mktemp("bench") / "run"
    export_fused(starter, None, folder / "export" / "base.gguf", "f16")
    adapter = make_adapter(folder.parent / "adapter", starter, scale=20.0)
    export_adapter(starter, adapter, folder / "export" / "adapter.gguf", name="a")
    shipped = Shipped(
        folder=folder / "export",
        name="smart-home",
        base="base.gguf",
        adapter="adapter.gguf",
        base_sha256="",
        template=template,
        shots=2,
    )
    shipped.save(examples)
    return folder


@pytest.fixture(scope="module")
def prompts(starter: Base, records: tuple[str, list[Example]]) -> Prompts:
    tokenizer = starter.tokenizer
    template, examples = records
    full, bare = ([prompt_tokens(render(text, [], each)["messages"][:-1], tokenizer) for each in examples]
                  for text in (template, ""))  # fmt: skip
    return Prompts(full, bare, MOST)


def one_by_one(run: Path, prompts: Sequence[Sequence[int]], starter: Base, adapter: Path | None) -> list[list[int]]:
    ends = end_tokens(starter.tokenizer)
    with Engine(run / "export" / "base.gguf", 1024, adapter) as engine:
        timed = engine.answer(prompts, ends=ends, max_tokens=MOST, warm=False, progress=silent, name="")
    return timed.answers


@pytest.fixture(scope="module")
def expected(run: Path, prompts: Prompts, starter: Base) -> list[list[int]]:
    return one_by_one(run, prompts.full, starter, None)


def same(answered: Sequence[Answered], expected: Sequence[Sequence[int]]) -> int:
    return sum(list(got.tokens) == list(answer) for got, answer in zip(answered, expected, strict=True))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("clients", [1, 4, 16])
def test_many_clients_get_the_answers_of_one(
    clients: int, warm: bool, run: Path, prompts: Prompts, expected: list[list[int]]
) -> None:
    assert len({tuple(answer) for answer in expected}) > 12
    longest = max(map(len, prompts.full)) + MOST
    prefix = len(prompts.prefix) if warm else 0
    assert len(prompts.prefix) > 200
    with (
        Model(run / "export" / "base.gguf") as model,
        BatchEngine(model, clients=clients, longest=longest, prefix=prefix, threads=1) as engine,
    ):
        answered, _ = engine.answer(prompts.full, max_tokens=MOST)
    # Batches of another size round in another way, which may turn a tie.
    assert same(answered, expected) >= len(expected) - 1
    assert all(0 < each.ttft <= each.total for each in answered)


def test_the_adapter_answers(run: Path, prompts: Prompts, starter: Base) -> None:
    adapter = run / "export" / "adapter.gguf"
    bare = prompts.bare[:8]
    adapted, plain = (one_by_one(run, bare, starter, given) for given in (adapter, None))
    assert adapted != plain
    longest = max(map(len, bare)) + MOST
    with (
        Model(run / "export" / "base.gguf", adapter) as model,
        BatchEngine(model, clients=1, longest=longest, threads=1) as engine,
    ):
        answered, _ = engine.answer(bare, max_tokens=MOST)
    assert same(answered, adapted) == len(adapted)


def test_the_computed_memory_is_llama_cpps_own(run: Path, prompts: Prompts) -> None:
    prompt = prompts.full[0]
    with (
        Model(run / "export" / "base.gguf") as model,
        BatchEngine(model, clients=1, longest=len(prompt) + MOST, threads=1) as engine,
    ):
        ((answered,), _) = engine.answer([prompt], max_tokens=MOST)
        assert engine.peak_tokens == len(prompt) + len(answered.tokens)
        assert model.kv_bytes == 4 * 4 * 32 * 2 * 2
        with Context(model, 1024) as context:
            for begin in range(0, engine.peak_tokens, BATCH):
                places = range(begin, min(begin + BATCH, engine.peak_tokens))
                context.decode([(prompt[0], place, 0, False) for place in places])
            # llama.cpp adds each token's position and sequence.
            assert 1 <= context.sequence_bytes(0) / (engine.peak_tokens * model.kv_bytes) < 1.02


def test_a_shared_prefix_is_kept_once(run: Path, prompts: Prompts) -> None:
    longest, kept = max(map(len, prompts.full)) + MOST, []
    with Model(run / "export" / "base.gguf") as model:
        for prefix in (0, len(prompts.prefix)):
            with BatchEngine(model, clients=8, longest=longest, prefix=prefix, threads=1) as engine:
                engine.answer(prompts.full[:8], max_tokens=MOST)
                kept.append(engine.peak_tokens)
    cold, warm = kept
    assert warm <= len(prompts.prefix) + 9 * (longest - len(prompts.prefix)) < cold / 3


@pytest.mark.parametrize("warm", [False, True])
def test_the_same_prompts_make_the_same_batches(warm: bool, run: Path, prompts: Prompts) -> None:
    """However long a batch takes: a synthesis that was interrupted has to end with the same bytes."""
    longest, found = max(map(len, prompts.full)) + MOST, []
    with Model(run / "export" / "base.gguf") as model:
        for _ in range(3):
            prefix = len(prompts.prefix) if warm else 0
            with BatchEngine(model, clients=5, longest=longest, prefix=prefix, threads=1) as engine:
                answered, _ = engine.answer(prompts.full, max_tokens=MOST)
                counts = engine.counts
                found.append(([each.tokens for each in answered], counts.batches, counts.computed, counts.reused))
    assert found[0] == found[1] == found[2]
    assert (found[0][3] > 0) == warm


def test_a_fault_of_the_engine_is_raised(run: Path, prompts: Prompts) -> None:
    prompt = prompts.full[0]
    with (
        Model(run / "export" / "base.gguf") as model,
        BatchEngine(model, clients=2, longest=len(prompt) // 2, prefix=len(prompt) // 2 - 1, threads=1) as engine,
        pytest.raises(RunError, match="longer than the room"),
    ):
        engine.answer([prompt, prompt, prompt], max_tokens=MOST)


def test_requests_are_the_runs_test_set(
    run: Path, starter: Base, records: tuple[str, list[Example]], tmp_path: Path
) -> None:
    template, examples = records
    whole = shutil.copytree(run, tmp_path / "run")
    stages: dict[int, list[Record]] = {
        0: [render(template, examples[20:22], each) for each in examples[:3]],
        2: [render("", [], each) for each in examples[:3]],
        10: [render("", [], each) for each in reversed(examples[:3])],
    }
    for number, rows in stages.items():
        folder = whole / "stages" / str(number)
        folder.mkdir(parents=True)
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = starter.tokenizer
    found = read_prompts(whole, read_shipped(whole), 4)
    for got, rows in ((found.full, stages[0]), (found.bare, stages[10])):
        assert got == [prompt_tokens(rows[i % 3]["messages"][:-1], tokenizer) for i in range(4)]
        assert all(prompt.count(tokenizer.bos_token_id) == 1 for prompt in got)
    answers = [len(tokenizer.encode(each.answer, add_special_tokens=False)) for each in examples[:3]]
    assert found.longest_answer == max(answers) + 1
    (whole / "stages" / "10" / "test.jsonl").write_text(json.dumps(stages[10][0]) + "\n")
    with pytest.raises(RunError, match="the stages' test sets differ"):
        read_prompts(whole, read_shipped(whole), 4)
    (whole / "stages" / "10" / "test.jsonl").write_text("{\n")
    with pytest.raises(RunError, match=r"10/test\.jsonl:1: damaged: not a rendered record"):
        read_prompts(whole, read_shipped(whole), 4)


def test_an_export_alone_is_enough(run: Path, starter: Base, records: tuple[str, list[Example]]) -> None:
    template, examples = records
    found = read_prompts(run, read_shipped(run), 5)
    tokenizer = starter.tokenizer
    assert found.bare == [prompt_tokens(render("", [], each)["messages"][:-1], tokenizer) for each in examples[:5]]
    for prompt, example in zip(found.full, examples, strict=False):
        text = tokenizer.decode(prompt)
        assert template.strip() in text
        assert text.count("<|start_header_id|>user") == 3  # two shots and the query
        assert text.count(example.query) == 1


def test_the_bare_query_is_first_and_cheapest(run: Path, prompts: Prompts) -> None:
    weights = Weights(run / "export" / "base.gguf", run / "export" / "base.gguf", run / "export" / "adapter.gguf")
    seen = []

    def progress(what: str, done: int, total: int, note: str = "") -> None:
        seen.append((what, done, total))

    result = measure(weights, prompts, [1, 4], threads=1, progress=progress)
    cold, warm, bare = result["arms"].values()
    assert len(seen) == 6 * len(prompts.full)
    assert seen[-1] == (f"{SHIPPED.title}, 4 at once", 24, 24)
    assert cold["prompt_tokens"] == warm["prompt_tokens"] > 10 * bare["prompt_tokens"]
    assert (cold["shared_tokens"], bare["shared_tokens"]) == (0, 0)
    assert warm["shared_tokens"] == len(prompts.prefix)
    for count in ("1", "4"):
        rows = [arm["clients"][count] for arm in (cold, warm, bare)]
        assert rows[0]["ttft_ratio"] > rows[2]["ttft_ratio"] == 1
        assert min(rows[0]["kv_bytes"], rows[1]["kv_bytes"]) > 3 * rows[2]["kv_bytes"]
        for row in rows:
            assert 0 < row["ttft_ms"]["median"] <= row["ttft_ms"]["p90"]
            assert row["ttft_ms"]["median"] < row["latency_ms"]["median"]
            assert row["requests_per_second"] > 0
    # A kept prefix is there once for all clients, beside what the last of them has left.
    assert cold["clients"]["4"]["kv_bytes"] > 2 * warm["clients"]["4"]["kv_bytes"]


def test_a_file_that_llama_cpp_cannot_load_is_refused(run: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((run / "export" / "base.gguf").read_bytes()[:100_000])
    with pytest.raises(ModelError, match=rf"^{cut}: llama\.cpp refuses the file: .* not within the file bounds"):
        Model(cut)
    with pytest.raises(ModelError, match=rf"^{cut}: llama\.cpp refuses the file: .*'adapter'"):
        Model(run / "export" / "base.gguf", cut)


def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return pilocal("bench", *arguments)


def test_the_command_prints_what_it_writes(run: Path) -> None:
    done = command(run, "--clients", "1,2", "--requests", 3, "--threads", 1, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert json.loads((run / "bench.json").read_text()) == result
    assert (result["requests"], result["threads"]) == (3, 1)
    assert list(result["arms"]["bare_query"]["clients"]) == ["1", "2"]
    assert "bare query" in (run / "bench.svg").read_text()


@pytest.mark.parametrize("clients", ["0", "4", "x", ""])
def test_clients_without_requests_are_a_misuse(clients: str, run: Path) -> None:
    done = command(run, "--clients", clients, "--requests", 3)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
