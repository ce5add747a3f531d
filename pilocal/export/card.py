"""The README.md of an artefact's folder: what it is, how it is called, what was measured, what made it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pilocal.prompt.preamble import NOTHING, Preamble
from pilocal.task.slots import slot_names

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a card says of a run."""

    task: str
    """The task's name."""
    base: str
    """The base's Hub id, or the path of its folder or file."""
    base_hashes: Sequence[str] = ()
    """The SHA-256 of each of its files, where it is in GGUF."""
    base_revision: str | None = None
    """The commit of its files, where they are the Hub's."""
    metrics: Mapping[str, Any] | None = None
    """The content of metrics.json."""
    gate: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    """The head and the rows of the table that compares the artefact with the model that was trained."""
    notes: Sequence[str] = ()
    """Lines below that table."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """By package."""
    residue: Preamble = NOTHING
    """What stays of the prompt in every request."""

    @property
    def chat(self) -> str:
        """The messages of a call, in Python."""
        system = {"role": "system", "content": self.residue.template}
        before = f"{system!r}, " if self.residue.template else ""
        return f'[{before}{{"role": "user", "content": {json.dumps(self.residue.user_turn, ensure_ascii=False)}}}]'


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is the same for every artefact of one format."""

    library: str
    """The Hub's name for what loads it."""
    tags: Sequence[str]
    what: str
    """Completes "... for the task NAME"."""
    how: str
    """Markdown that shows a call."""


def card(facts: Facts, kind: Kind) -> str:
    """Return the model card: Hub front matter and markdown; the licence is left to the base's.

    >>> kind = Kind(library="peft", tags=["lora"], what="A PEFT adapter", how="Load it.")
    >>> facts = Facts(task="smart-home", base="owner/model", versions={"pilocal": "0.1.0"})
    >>> text = card(facts, kind)
    >>> print(text[: text.index("##")], end="")
    ---
    base_model: "owner/model"
    library_name: "peft"
    tags: ["pilocal", "lora"]
    ---
    <BLANKLINE>
    # smart-home
    <BLANKLINE>
    A PEFT adapter for the task smart-home, made from `owner/model`. The task's recurring prompt (its instructions and
    solved examples) was trained into the weights. The licence is the base's.
    <BLANKLINE>
    >>> "Measured" in text, "pilocal 0.1.0" in text
    (False, True)
    """
    head = {"base_model": facts.base} if HUB_ID.fullmatch(facts.base) else {}
    head |= {"library_name": kind.library}
    # JSON is YAML, so no name can break out of its line.
    front = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    parts = [
        "\n".join(["---", *front, f"tags: {json.dumps(['pilocal', *kind.tags])}", "---"]),
        f"# {facts.task}",
        f"{kind.what} for the task {facts.task}, made from `{facts.base}`{_hashed(facts)}. The task's recurring "
        "prompt (its instructions and\nsolved examples) was trained into the weights. The licence is the base's.",
        "## How to call it",
        *_asked(facts.residue),
        kind.how,
    ]
    if facts.metrics:
        parts += ["## Measured", _metrics(facts.metrics)]
    if facts.gate:
        parts += ["## Beside the model that was trained", table(*facts.gate), *facts.notes]
    if facts.versions:
        parts += ["## Made with", ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + "."]
    return "\n\n".join(parts) + "\n"


def _asked(residue: Preamble) -> list[str]:
    """Return the paragraphs on what a request holds."""
    greedy = "Greedy decoding\n(temperature 0) is what the scores were measured with."
    if not residue and not residue.slots:
        alone = "Send the query alone, as one user message: no system message, no instructions, no examples."
        return [f"{alone} {greedy}"]
    said = (
        ["A short prompt stays in every request; `pilocal serve` adds it to a bare query by itself."] if residue else []
    )
    shown = []
    if residue.template:
        filled = ", with a value for each slot" if slot_names(residue.template) else ""
        said.append(f"Other programs send this system message{filled}:")
        shown.append(_fenced(residue.template))
    if residue.shots:
        many = f"{residue.shots} training examples" if residue.shots > 1 else "1 training example"
        shown.append(f"Before the query: {many} with the queries most like it, as solved turns, the most similar last.")
    if residue.user_turn != Preamble().user_turn:
        what = "Send" if not residue else "Then comes"
        shown.append(f"{what} this as one user message, with a value in the place of each `...`. {greedy}")
        shown.append(_fenced(residue.user_turn))
        shown.append("`pilocal serve` takes the values as `pilocal_slots`, too, or out of the old prompt.")
        return ["\n".join(said), *shown] if said else shown
    return ["\n".join(said), *shown, f"Then comes the query, as one user message. {greedy}"]


def _fenced(text: str) -> str:
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
    return f"{fence}text\n{text}\n{fence}"


def _hashed(facts: Facts) -> str:
    if facts.base_revision:
        return f" (revision {facts.base_revision})"
    return f" (SHA-256 {', '.join(facts.base_hashes)})" if facts.base_hashes else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table, numbers to the right.

    >>> print(table(["arm", "score"], [["bare", "0.5"]]))
    | arm | score |
    | --- | --: |
    | bare | 0.5 |
    """
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _metrics(metrics: Mapping[str, Any]) -> str:
    rows = []
    for arm, row in metrics["arms"].items():
        low, high = row.get("interval", (None, None))
        bounds = "" if low is None else f"{low:.3f} to {high:.3f}"
        tokens = f"{row['prompt_tokens']:.1f}" if "prompt_tokens" in row else ""
        rows.append([arm.replace("_", " "), f"{row['score']:.3f}", bounds, tokens])
    shown = table(["arm", str(metrics["metric"]).replace("_", " "), "95% interval", "prompt tokens"], rows)
    beside = _elsewhere(metrics.get("retention")) + _unsure(metrics.get("confidence"))
    return f"{metrics['n']} test queries that no training saw.\n\n{shown}{beside}"


def _elsewhere(found: Mapping[str, Any] | None) -> str:
    """Return a paragraph on what the adapter changes on other prompts; nothing where that was not measured."""
    if found is None:
        return ""
    lies = f"it lies {found['kl']:.2g} nats per token from the base, over the base's own answers."
    return f"\n\nOn {found['prompts']} prompts that have nothing to do with the task,\n{lies}"


def _unsure(found: Mapping[str, Any] | None) -> str:
    """Return a paragraph on the answers that are left to the full prompt; nothing where there is no threshold."""
    if found is None or found["threshold"] is None:
        return ""
    said = f"`pilocal serve --fallback-on low-confidence` leaves answers under {found['threshold']:.2g} nats per token"
    scores = f"{found['score']:.3f} becomes {found['score_with_fallback']:.3f}"
    return f"\n\n{said}\nto the full prompt: {scores} on the {found['examples']} validation examples that chose it."
