"""Asking every arm: the same test queries, answered in MLX or in llama.cpp, and timed in llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from pilocal.evaluate.arms import ARMS, Arm, Program, Prompt, Variant
from pilocal.evaluate.asking import Asker, Same


@dataclass(frozen=True, slots=True)
class TestSet:
    """The test set as prompts, in the same order throughout."""

    full: Sequence[Sequence[int]]
    """Tokens of template, shots and query."""
    bare: Sequence[Sequence[int]]
    """Tokens of the query alone."""

    def prompts(self, arm: Arm) -> Sequence[Sequence[int]]:
        """Return the prompts that an arm is asked with."""
        return self.full if arm.prompt is Prompt.FULL else self.bare


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the weights are that answer, apart from the base in MLX."""

    adapter: Path
    """The internalized adapter's folder."""
    direct_drop: Path | None
    """The ablation's adapter, if it was trained."""
    base_gguf: Path
    """The base as llama.cpp runs it, of the same type as the shipped file."""
    shipped_gguf: Path
    """What llama.cpp serves: the base and the adapter in one, or the base."""
    shipped_adapter: Path | None
    """The adapter's GGUF if the base is served with it."""
    same_base: bool = False
    """Whether `base_gguf` holds the numbers that the backend computes with."""

    @property
    def arms(self) -> list[Arm]:
        """The arms that these files can answer, in the order of the table."""
        return [arm for arm in ARMS if not arm.optional or self.mlx_adapter(arm.variant)]

    def mlx_adapter(self, variant: Variant) -> Path | None:
        """Return the adapter that MLX puts on the base, or None for the bare base."""
        return {Variant.ADAPTER: self.adapter, Variant.DIRECT_DROP: self.direct_drop}.get(variant)

    def same(self, arm: Arm, said: Mapping[tuple[Variant, Prompt], list[str]]) -> Same | None:
        """Return an arm's model in llama.cpp if it holds the very numbers; `said` is what it has answered there."""
        if not self.same_base or arm.variant is not Variant.BASE:
            return None
        return Same(self.base_gguf, said.get((arm.variant, arm.prompt)))

    def gguf(self, variant: Variant) -> tuple[Path, Path | None]:
        """Return the GGUF file of a variant and that of the adapter beside it."""
        return (self.shipped_gguf, self.shipped_adapter) if variant is Variant.SHIPPED else (self.base_gguf, None)


@dataclass(frozen=True, slots=True)
class Answered:
    """What every arm said, before anything is scored."""

    answers: dict[str, list[str]]
    """By arm, one for each test query."""
    costs: dict[str, dict[str, float]]
    """By arm: prompt_tokens (mean), ttft_ms and latency_ms if the arm was timed, and what `Said.facts` says."""


def answer(files: ModelFiles, test: TestSet, asker: Asker) -> Answered:
    """Answer the whole test set with every arm, each in its own program; `asker` knows the base.

    Times are medians in llama.cpp, in milliseconds. An arm that answers in MLX is timed on the first `timed_requests`
    queries. Raises ModelError if a file cannot be loaded, RunError if there is not enough memory.
    """
    # This is the order of the answers in answers.jsonl: MLX first, with the ablation last among these.
    asked = sorted(files.arms, key=lambda arm: (arm.program is not Program.MLX, arm.optional))
    answers: dict[str, list[str]] = {arm.name: [] for arm in asked}
    costs = {arm.name: {"prompt_tokens": mean(map(len, test.prompts(arm)))} for arm in files.arms}
    said: dict[tuple[Variant, Prompt], list[str]] = {}
    for variant in (Variant.BASE, Variant.SHIPPED):
        gguf, adapter = files.gguf(variant)
        with asker.engine(gguf, test.full, adapter) as engine:
            for arm in (arm for arm in files.arms if arm.variant is variant and arm.timed):
                if arm.program is Program.MLX:
                    costs[arm.name] |= asker.times(engine, test.prompts(arm), arm.title)
                    continue
                answers[arm.name], times = asker.in_llama(engine, test.prompts(arm), arm.title, warm=arm.warm)
                costs[arm.name] |= times
                said[arm.variant, arm.prompt] = answers[arm.name]
    for arm in (arm for arm in asked if arm.program is Program.MLX):
        adapter, same = files.mlx_adapter(arm.variant), files.same(arm, said)
        found = asker.in_backend(adapter, test.prompts(arm), arm.title, same)
        answers[arm.name] = found.answers
        costs[arm.name] |= found.facts
    return Answered(answers, costs)
