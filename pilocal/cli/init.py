"""init: creates a task folder to start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pilocal.cli.lists import FOLDER
from pilocal.errors import InputError
from pilocal.run_folder.shipped import check_name
from pilocal.task import METRICS

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
@click.argument("more", metavar="[FILE]...", nargs=-1, type=FOLDER)
@click.option(
    "--from-logs",
    metavar="FILE...",
    multiple=True,
    type=FOLDER,
    help="Make the task of logged requests: JSON, CSV, or a dataset's folder. Several files may follow.",
)
@click.option("--from-prompt", metavar="FILE", type=FOLDER, help="Make a task of a prompt alone, for `pilocal synth`.")
@click.option(
    "--columns", default="", metavar="query=NAME,answer=NAME", help="What a log calls both; also system=NAME."
)
@click.option("--template", type=click.IntRange(1), help="Which of several prompts in the logs. By default the first.")
@click.option("--variants", is_flag=True, help="Take the rows of the prompt's variants, too.")
@click.option("--redact/--no-redact", default=None, help="Take secrets and e-mail addresses out. By default they stay.")
@click.option(
    "--rows", default=100_000, show_default=True, type=click.IntRange(3), help="The most rows that are taken."
)
@click.option("--model", help="The base. By default the largest that is installed and fits this machine.")
@click.option("--metric", type=click.Choice(list(METRICS)), help="How answers are scored. By default they decide.")
def init(folder: Path, more: tuple[Path, ...], **options: Any) -> None:
    """Create a task folder: of logs, of a prompt alone, or with a small example of every file.

    From logs, the prompt that recurs becomes the template, and rows become training, validation and test records. What
    is left out is in DIR/left_out.jsonl, with its reason. On a terminal, without further options, up to three questions
    are asked.
    """
    logs, prompt = options["from_logs"], options["from_prompt"]
    if logs and prompt:
        raise click.UsageError("--from-logs or --from-prompt, not both")
    if more and not logs:
        raise click.UsageError(f"unexpected argument {more[0]}")
    if not logs:
        _check_unused(options)
    if logs or prompt:
        from pilocal.cli.import_logs import import_logs, import_prompt

        if not logs:
            import_prompt(folder, prompt, _name(folder.resolve().name), options)
            return
        if more and folder.is_file() and not more[-1].is_file():  # --from-logs a b DIR
            folder, more = more[-1], (folder, *more[:-1])
        import_logs(folder, (*logs, *more), _name(folder.resolve().name), options)
        return
    _write_example(folder)


def _check_unused(options: Mapping[str, Any]) -> None:
    """Raise click.UsageError for an option that only logs, or a prompt, have a use for."""
    names = ["columns", "template", "variants", "redact", *([] if options["from_prompt"] else ["model", "metric"])]
    if given := [name for name in names if options[name] not in (None, False, "")]:
        raise click.UsageError(f"--{given[0]} needs --from-logs" + (" or --from-prompt" if len(names) > 4 else ""))


def _write_example(folder: Path) -> None:
    from pilocal.logs.folder import from_examples

    pairs = [pair for one, other in WHEEL for pair in ((one, other), (other, one))]
    records = {
        split: [(ask.format(colour), opposite) for ask in asks for colour, opposite in pairs]
        for split, asks in ASKS.items()
    }
    from_examples(folder, _name(folder.resolve().name), TEMPLATE, records)
    click.echo(f"{folder}: fill in template.md and the .jsonl files, then `pilocal check {folder}`")
