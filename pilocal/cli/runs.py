"""ls and clean: the runs on this disk, and what can go from them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pilocal.cli.lists import FOLDER
from pilocal.task.text import byte_size

if TYPE_CHECKING:
    from pilocal.flow.cleaning import Waste


@click.command("ls")
@click.argument("folder", type=FOLDER, default=".")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON on stdout.")
def ls(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER and below it, with their scores and sizes; by default those below the current folder."""
    from pilocal.cli.run_tables import runs_table
    from pilocal.cli.tables import show
    from pilocal.flow.listing import list_runs

    found = list_runs(folder)
    if as_json:
        lines = [asdict(line) | {"folder": str(line.folder)} for line in found]
        click.echo(json.dumps(lines, indent=2, ensure_ascii=False))
    elif found:
        show(runs_table(found, folder))
    else:
        click.echo(f"{folder}: no runs here; `pilocal run TASK` makes one", err=True)


@click.command()
@click.argument("folder", type=FOLDER, default=".")
@click.option("--cache", is_flag=True, help="Also empty pilocal's cache: bases as GGUF, and what files are known by.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option("--json", "as_json", is_flag=True, help="Print what can go as JSON on stdout; deletes only with --yes.")
def clean(folder: Path, cache: bool, yes: bool, as_json: bool) -> None:
    """Delete what no later run, server or report needs from the runs in FOLDER and below it; asks first.

    Checkpoints of finished trainings, what the teacher said to them, and what an interrupted write left behind. A
    training that has to be done again asks the teacher again.
    """
    from pilocal.cli.run_tables import waste_table
    from pilocal.cli.tables import show
    from pilocal.flow.cleaning import clean as delete
    from pilocal.flow.cleaning import find_waste
    from pilocal.flow.listing import find_runs

    found = find_waste(find_runs(folder), cache=cache)
    if as_json:
        done = delete(found if yes else ())
        said = {"found": [_said(waste) for waste in found], "deleted": yes, "freed": done.bytes}
        click.echo(json.dumps(said, indent=2, ensure_ascii=False))
    elif not found:
        click.echo(f"{folder}: nothing to delete", err=True)
        return
    else:
        show(waste_table(found, folder))
        if not (yes or _agreed(sum(waste.bytes for waste in found))):
            click.echo("nothing was deleted", err=True)
            return
        done = delete(found)
        click.echo(f"{byte_size(done.bytes)} freed", err=True)
    for fault in done.faults:
        click.echo(f"left alone: {fault}", err=True)


def _agreed(bytes_: int) -> bool:
    """Ask whether to delete so much; False where nobody answers."""
    try:
        return click.confirm(f"delete {byte_size(bytes_)}?", err=True)
    except click.Abort:
        click.echo("; --yes deletes without asking", err=True)
        return False


def _said(waste: Waste) -> dict[str, Any]:
    files = [str(file) for file in waste.files]
    return {"folder": str(waste.folder), "kind": waste.kind, "bytes": waste.bytes, "files": files}
