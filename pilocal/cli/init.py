"""init: creates a task folder to start from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pilocal.cli.lists import FOLDER
from pilocal.errors import InputError
from pilocal.run_folder.shipped import check_name
from pilocal.task import METRICS

TASK_TOML = """\
# Every key and its default: pilocal/task/SETTINGS.md. `pilocal check {name}` reads this file strictly.
name = "{name}"
model = "starter"          # or a folder, a .gguf file, "ollama:llama3.2:1b", or a Hub id such as Qwen/Qwen3-0.6B
template = "template.md"   # the text that every request repeats today
train = "train.jsonl"      # one {{"query": "...", "answer": "..."}} per line; a few hundred at least
valid = "valid.jsonl"
test = "test.jsonl"
metric = "exact_match"     # or {others}

[training]
steps = 200
"""

TEMPLATE = """\
You turn a colour into its complement. Answer with one word.
- red is opposite green
- blue is opposite orange
- yellow is opposite purple
Replace this text with your own template.
"""

WHEEL = ("red", "green"), ("blue", "orange"), ("yellow", "purple")

ASKS = {
    "train": ("what is opposite {}?", "the complement of {}", "{}", "and {}?", "name the opposite of {}"),
    "valid": ("which colour faces {}?",),
    "test": ("tell me the complement of {}",),
}


def _name(folder: str) -> str:
    """Return the name of a folder's task: its own, unless the server has no such name.

    >>> _name("smart-home"), _name("base")
    ('smart-home', 'my-task')
    """
    try:
        check_name(folder, folder)
    except InputError:
        return "my-task"
    return folder


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
def init(folder: Path) -> None:
    """Create a task folder with a small example of every file; replace them with yours."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(folder, "already exists and is not empty", fix="choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    name = _name(folder.resolve().name)
    others = ", ".join(metric for metric in METRICS if metric != "exact_match")
    (folder / "task.toml").write_text(TASK_TOML.format(name=name, others=others), encoding="utf-8")
    (folder / "template.md").write_text(TEMPLATE, encoding="utf-8")
    pairs = [pair for one, other in WHEEL for pair in ((one, other), (other, one))]
    for split, asks in ASKS.items():
        records = [{"query": ask.format(colour), "answer": opposite} for ask in asks for colour, opposite in pairs]
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    click.echo(f"{folder}: fill in template.md and the .jsonl files, then `pilocal check {folder}`")
