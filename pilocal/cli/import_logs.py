"""What `pilocal init` does with logs and prompts: asks what it must, calls what makes the folder, and prints."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pilocal.cli.display import progress_bars, warning_on
from pilocal.errors import InputError
from pilocal.logs import BaseChoice, Survey, choose_base, from_logs, from_prompt, installed_bases, survey
from pilocal.logs.bases import named_base
from pilocal.logs.folder import Made, Setup, check_folder
from pilocal.logs.reading import read_columns
from pilocal.logs.sorting import Sieve
from pilocal.logs.units import word_count
from pilocal.task.text import counted

SHOWN = 8
"""Templates and bases that are listed."""


def import_prompt(folder: Path, prompt: Path, name: str, options: Mapping[str, Any]) -> None:
    """Make a task of a prompt alone and say what comes next."""
    check_folder(folder)
    setup = _setup(name, options, ask=False)
    click.echo(f"settings: {from_prompt(folder, prompt, setup).said}")
    task = shlex.quote(str(folder))
    click.echo(f"next: `pilocal synth {task}` makes the records, then `pilocal check {task}`")


def import_logs(folder: Path, paths: Sequence[Path], name: str, options: Mapping[str, Any]) -> None:
    """Make a task of logs and say what was found, what was left out, and what comes next."""
    check_folder(folder)
    columns = read_columns(options["columns"])
    ask = _may_ask(options)
    with progress_bars() as (progress, console):
        found = survey(paths, columns, progress)
    number = _choose_template(found, options, ask=ask)
    setup = _setup(name, options, ask=ask)
    redact = bool(options["redact"])
    if ask and found.sensitive:
        seen = ", ".join(f"{kind} in {count} rows" for kind, count in found.sensitive.items())
        redact = click.confirm(f"The rows hold {seen}. Take them out?", default=False)
    sieve = Sieve(template=number, variants=options["variants"], redact=redact, most=options["rows"])
    with progress_bars() as (progress, console):
        made = from_logs(folder, found, sieve, setup, progress)
        warn = warning_on(console)
        for warning in made.warnings:
            warn(warning)
    _report(folder, found, number, made)


def _may_ask(options: Mapping[str, Any]) -> bool:
    """Tell whether somebody is there to ask, who has decided nothing with an option."""
    given = any(
        options[name] not in (None, False, "") for name in ("template", "variants", "redact", "model", "metric")
    )
    return not given and all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def _choose_template(found: Survey, options: Mapping[str, Any], *, ask: bool) -> int:
    """Return the number of the template, counted from 0; raises InputError where there is none of the number."""
    count = len(found.templates)
    if count > 1:
        for line in _templates(found):
            click.echo(line)
    wanted = options["template"] or 1
    if ask and count > 1:
        wanted = click.prompt("Which template?", default=1, type=click.IntRange(1, count))
    if wanted > count:
        raise InputError("--template", f"the logs have {count} templates", got=wanted, fix="choose one of these")
    return int(wanted) - 1


def _templates(found: Survey) -> list[str]:
    """Return a line for each template."""
    lines = []
    for number, each in enumerate(found.templates[:SHOWN]):
        begins = " ".join(each.text.split())[:60]
        first = min((*found.variants(number), number))
        variant = f", a variant of template {first + 1}" if first < number else ""
        share = f"{each.rows / found.looked_at:.0%} of the rows"
        lines.append(f"template {number + 1}: {share}, {word_count(each.words)} words{variant}: {begins!r}")
    more = len(found.templates) - SHOWN
    return [*lines, f"and {more} templates of fewer rows"] if more > 0 else lines


def _setup(name: str, options: Mapping[str, Any], *, ask: bool) -> Setup:
    """Return the base and the metric, with a line on why it is that base."""
    if model := options["model"]:
        base = named_base(model)
        if base is None:
            click.echo(f"base: {model}, which is not here yet; no row is too long for now")
        return Setup(name=name, model=model, base=base, metric=options["metric"])
    bases = installed_bases()
    choice, why = choose_base(bases)
    if ask and len([each for each in bases if not each.unfit]) > 1:
        choice, why = _ask_base(bases)
    else:
        for each in [each for each in bases if each is not choice][: SHOWN - 1]:
            click.echo(f"also here: {each.said}")
    click.echo(f"base: {choice.said}: {why}")
    return Setup(name=name, model=choice.model, base=choice.base, metric=options["metric"])


def _ask_base(bases: Sequence[BaseChoice]) -> tuple[BaseChoice, str]:
    for number, each in enumerate(bases, 1):
        click.echo(f"base {number}: {each.said}")
    number = click.prompt("Which base?", default=1, type=click.IntRange(1, len(bases)))
    return bases[number - 1], "as you chose"


def _report(folder: Path, found: Survey, number: int, made: Made) -> None:
    """Print what was made."""
    template = found.templates[number]
    counts = ", ".join(f"{count} {name}" for name, count in made.counts.items())
    click.echo(f"template: {word_count(template.words)} words, {folder / 'template.md'}")
    if template.slots:
        names = ", ".join("{{" + slot.name + "}}" for slot in template.slots)
        click.echo(f"slots: {names}; their values are in the records")
    click.echo(f"records: {counts}; {counted(made.left_out, 'row')} left out, each in {folder / 'left_out.jsonl'}")
    for line in made.said:
        click.echo(f"  {line}")
    click.echo(f"metric: {made.metric}, because {made.why_metric}" if made.why_metric else f"metric: {made.metric}")
    click.echo(f"settings: {made.settings}")
    task = shlex.quote(str(folder))
    run = shlex.quote(str(folder / "run"))
    click.echo(f"next: `pilocal check {task}`, then `pilocal run {task}`, then `pilocal serve {run}`")
