"""Scores and answers: batches say what single requests say, a warm cache what a cold one says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.base.reference import MlxReference
from pilocal.evaluate import answer as evaluation
from pilocal.evaluate.arms import BASE_FULL_PROMPT, SHIPPED
from pilocal.evaluate.asking import CLOSE, Asker, Said, Same
from pilocal.evaluate.score import summary
from pilocal.progress import silent
from pilocal.prompt.render import Message
from pilocal.prompt.tokens import end_tokens, prompt_tokens
from pilocal.task import Generation
from tests.tiny import make_adapter

TEMPLATE = """Answer with codes.
- lamp BAK
- fan DEL
- oven GIR
Begin with the word send. Put a comma between two codes."""
QUERIES = ("lamp", "please start the fan and then the oven", "oven, lamp", "fan fan", "could you open the lamp?")


@pytest.fixture(scope="module", params=["bare", "template"])
def prompts(request: pytest.FixtureRequest, starter: Base) -> list[list[int]]:
    """Prompts of different lengths that begin with one token, or with a whole template, in common."""
    system: list[Message] = [{"role": "system", "content": TEMPLATE}] if request.param == "template" else []
    tokenizer = starter.tokenizer
    return [prompt_tokens([*system, {"role": "user", "content": query}], tokenizer) for query in QUERIES]


def one_by_one(base: Base, prompts: list[list[int]], ends: frozenset[int], max_tokens: int) -> list[list[int]]:
    """Greedy answers without a cache, a batch or a shared prefix."""
    model = load_base(base)
    import mlx.core as mx

    answers = []
    for prompt in prompts:
        answer: list[int] = []
        while len(answer) < max_tokens:
            token = int(model(mx.array([*prompt, *answer])[None])[0, -1].argmax())
            if token in ends:
                break
            answer.append(token)
        answers.append(answer)
    return answers


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("base", ["starter", "tiny_base"])
def test_a_batch_says_what_single_requests_say(
    base: str, batch_size: int, prompts: list[list[int]], request: pytest.FixtureRequest
) -> None:
    from pilocal.base.generate import generate

    found: Base = request.getfixturevalue(base)
    ends = end_tokens(found.tokenizer)
    said: list[tuple[int, int]] = []
    answers = generate(
        load_base(found),
        prompts,
        ends=ends,
        max_tokens=12,
        batch_size=batch_size,
        progress=lambda _, done, total, note="": said.append((done, total)),
        name="arm",
    )
    assert answers == one_by_one(found, prompts, ends, 12)
    assert said == [(done, len(prompts)) for done in range(1, len(prompts) + 1)]


def test_an_answer_is_cut_at_max_tokens(tiny_base: Base, prompts: list[list[int]]) -> None:
    from pilocal.base.generate import generate

    answers = generate(
        load_base(tiny_base),
        prompts,
        ends=frozenset(),
        max_tokens=3,
        batch_size=2,
        progress=silent,
        name="arm",
    )
    assert [len(answer) for answer in answers] == [3] * len(prompts)


def test_a_warm_cache_says_what_a_cold_one_says(starter: Base, prompts: list[list[int]], tmp_path: Path) -> None:
    from pilocal.export.fused import export_fused
    from pilocal.llamacpp.engine import Engine

    gguf = export_fused(starter, None, tmp_path / "model.gguf", "f16")
    ends = end_tokens(starter.tokenizer)
    with Engine(gguf, 512) as engine:
        timed = [
            engine.answer(prompts, ends=ends, max_tokens=12, warm=warm, progress=silent, name="arm")
            for warm in (False, True)
        ]
    assert timed[0].answers == timed[1].answers == one_by_one(starter, prompts, ends, 12)
    for arm in timed:
        assert 0 < arm.ttft_ms <= arm.latency_ms


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("interrupted", [f"time: {BASE_FULL_PROMPT.title}", SHIPPED.title])
def test_an_interrupted_evaluation_leaves_no_engine_behind(interrupted: str, starter: Base, tmp_path: Path) -> None:
    from pilocal.export.fused import export_fused

    gguf = export_fused(starter, None, tmp_path / "model.gguf", "f16")

    def progress(what: str, done: int, total: int, note: str = "") -> None:
        if what == interrupted:
            assert str(gguf) in Path("/proc/self/maps").read_text()
            raise KeyboardInterrupt

    tokenizer = starter.tokenizer
    prompt = prompt_tokens([{"role": "user", "content": "lamp"}], tokenizer)
    adapter = make_adapter(tmp_path / "adapter", starter)
    with pytest.raises(KeyboardInterrupt) as caught:  # whose traceback keeps every local of the evaluation alive
        evaluation.answer(
            evaluation.ModelFiles(adapter, None, gguf, gguf, None),
            evaluation.TestSet([prompt], [prompt]),
            Asker(
                base=starter,
                ends=end_tokens(tokenizer),
                generation=Generation(max_tokens=1),
                progress=progress,
            ),
        )
    assert str(gguf) not in Path("/proc/self/maps").read_text()
    assert caught.tb is not None


def test_the_summary_compares_with_the_full_prompt() -> None:
    arms = {
        "base_query_only": {"score": 0.1},
        "base_full_prompt": {"score": 0.9, "prompt_tokens": 400.0, "latency_ms": 60.0},
        "base_full_prompt_cached": {"latency_ms": 15.0},
        "internalized": {"score": 0.7},
        "shipped": {"prompt_tokens": 20.0, "latency_ms": 5.0},
    }
    figures = summary(arms)
    assert figures == pytest.approx(
        {"pi_score": 0.75, "prompt_token_reduction": 0.95, "speedup": 12.0, "speedup_cached": 3.0}
    )
    arms["base_query_only"]["score"] = 0.9
    assert summary(arms)["pi_score"] is None


@pytest.mark.parametrize("alike", [True, False])
def test_without_an_accelerator_llama_cpp_answers_for_the_base_if_it_computes_the_same(
    alike: bool, starter: Base, tiny_base: Base, tmp_path: Path
) -> None:
    from pilocal.export.lossless import export_lossless

    gguf = export_lossless(starter if alike else tiny_base, tmp_path).path
    tokenizer, seen = starter.tokenizer, list[int]()
    asked = [prompt_tokens([{"role": "user", "content": f"say {word}"}], tokenizer) for word in "abcdefg"]

    class Counting(MlxReference):
        def answer(self, prompts: Sequence[Sequence[int]], **how: Any) -> list[list[int]]:
            seen.append(len(prompts))
            return super().answer(prompts, **how)

    how: dict[str, Any] = {"base": starter, "ends": end_tokens(tokenizer), "generation": Generation(max_tokens=6)}
    cpu, gpu = (Asker(**how, progress=silent, load=Counting, accelerated=there) for there in (False, True))
    said = cpu.in_backend(None, asked, "base", Same(gguf))
    assert seen == ([] if alike else [7])
    if alike:
        assert 0 < said.facts["llama_cpp_kl"] < CLOSE
    else:
        assert not said.facts
    again = cpu.in_backend(None, asked, "base", Same(gguf, said.answers))
    assert again.answers == said.answers
    for same in (Same(gguf), None):
        assert gpu.in_backend(None, asked, "base", same) == Said(said.answers)
