"""What task.toml and schedule.toml of a new task say: settings that suit its base and the number of its rows."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pilocal.base.base import Base
from pilocal.base.recipe import BATCH_SIZE, FINAL, SHOTS, Recipe, recipe_for, size_of
from pilocal.task import METRICS, STARTER
from pilocal.task.text import counted

TASK_TOML = """\
# Every key and its default: pilocal/task/SETTINGS.md. `pilocal check` reads this file strictly.
name = {name}
model = {model} # a folder, a .gguf file, "starter", "smollm2", "ollama:llama3.2:1b", or a Hub id
template = "template.md" # the text that every request repeats
train = "{folder}train.jsonl" # one {{"query": "...", "answer": "..."}} per line; a few hundred at least
valid = "{folder}valid.jsonl"
test = "{folder}test.jsonl"
metric = "{metric}" # or {others}
schedule = "schedule.toml" # how the prompt fades; --schedule FILE takes another

[training]
# Made {why}.
# The learning rate is {known}; pilocal/base/README.md has the table.
steps = {steps}
batch_size = {batch_size}
learning_rate = {learning_rate}
direct_drop = false # true also trains the ablation: as many steps, each with the whole prompt
"""

GENERATION = """
[generation]
max_tokens = {max_tokens} # the longest answer has {longest} tokens
"""

SERVING = """
[serving]
default_system = false # leaves out the {tokens} tokens that the chat template writes by itself
"""

SYNTH = """
[synth]
generator = "base" # writes queries about what stands in the template; your own go into queries.jsonl
"""

SCHEDULE = """\
# The prompt fades in four stages. Most steps are in the last: they are the cheapest, and it is what will be served.
{why}decay = "linear"
stages = 4
shots = {shots}
final = {final}
"""

FEWER_SHOTS = "# The shots are fewer than {usual}: {why} for more.\n"

LENGTHS = 16
"""The limit of an answer's tokens is a multiple of it, and twice as much at least."""

COMMENTS = 27
"""The column of the comments behind short lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a new task is given, beside its template and its records."""

    name: str
    model: str
    base: Base | None
    """The base, where it is here."""
    metric: str
    rows: int
    """For training, at a guess where they are still to be made."""
    shots: int
    """Solved examples in the first stage."""
    longest: int = 0
    """Tokens of the longest answer; 0 where that is not known."""
    made: bool = False
    """Whether `pilocal synth` makes the rows."""

    @property
    def size(self) -> float | None:
        """The parameters of the base; None where they are not known."""
        return size_of(self.model, self.base)

    @property
    def recipe(self) -> Recipe:
        """How such a base is trained."""
        return recipe_for(self.size)

    @property
    def steps(self) -> int:
        """The optimizer steps."""
        return self.recipe.steps(self.rows)

    @property
    def why(self) -> str:
        """What the steps of the training follow from."""
        size = self.size
        base = "a base of unknown size" if size is None else f"a base of {_short(size)} parameters"
        rows = f"{self.rows:,} training rows" + (" that synth may make" if self.made else "")
        return f"for {base} and {rows}, of which each is seen {self.steps * BATCH_SIZE / max(1, self.rows):.1f} times"

    @property
    def said(self) -> str:
        """All of that in a line."""
        shots = counted(self.shots, "shot")
        return f"{self.steps} steps of {BATCH_SIZE} rows at {_rate(self.recipe)}, {shots} at first, {self.why}"

    @property
    def task_toml(self) -> str:
        """The text of task.toml."""
        text = TASK_TOML.format(
            name=_quoted(self.name),
            model=_quoted(self.model),
            folder="synth/" if self.made else "",
            metric=self.metric,
            others=", ".join(metric for metric in METRICS if metric != self.metric),
            why=self.why,
            known=self.recipe.known,
            steps=self.steps,
            batch_size=BATCH_SIZE,
            learning_rate=_rate(self.recipe),
        )
        if self.longest:
            limit = LENGTHS * max(2, self.longest * 5 // 4 // LENGTHS + 1)
            text += GENERATION.format(max_tokens=limit, longest=self.longest)
        if self.base and self.model != STARTER and (tokens := self.base.default_system_tokens):  # the starter has none
            text += SERVING.format(tokens=tokens)
        return "".join(map(_aligned, (text + (SYNTH if self.made else "")).splitlines(keepends=True)))

    @property
    def schedule_toml(self) -> str:
        """The text of schedule.toml."""
        few = f"{self.rows} training rows are too few" if self.rows <= SHOTS else "the base's context is too short"
        why = FEWER_SHOTS.format(why=few, usual=SHOTS) if self.shots < SHOTS else ""
        return SCHEDULE.format(why=why, shots=self.shots, final=FINAL)


def _rate(recipe: Recipe) -> str:
    """Return a learning rate as it is usually written.

    >>> _rate(recipe_for(2e6))
    '2e-3'
    """
    return f"{recipe.learning_rate:.0e}".replace("e-0", "e-")


def _aligned(line: str) -> str:
    """Return a line whose comment, if one follows something, stands in the column of the others."""
    setting, sign, comment = line.partition(" # ")
    return f"{setting:<{COMMENTS}}{sign}{comment}" if sign and not line.startswith("#") else line


def _short(size: float) -> str:
    """Return a number of parameters in few signs.

    >>> _short(2_097_152), _short(8.03e9), _short(494e6)
    ('2M', '8B', '494M')
    """
    return f"{size / 1e9:.2g}B" if size >= 1e9 else f"{size / 1e6:.0f}M"


def _quoted(text: str) -> str:
    """Return a text as a string of TOML, whose escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
