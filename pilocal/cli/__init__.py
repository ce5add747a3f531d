"""The command line: every command reads its options, calls one function and prints."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

import click

from pilocal.errors import PilocalError, did_you_mean
from pilocal.packages import missing_package

COMMANDS = {
    "init": "pilocal.cli.init",
    "synth": "pilocal.cli.synth",
    "check": "pilocal.cli.check",
    "run": "pilocal.cli.flow",
    "watch": "pilocal.cli.watch",
    "compress": "pilocal.cli.compress",
    "index": "pilocal.cli.flow",
    "stages": "pilocal.cli.flow",
    "train": "pilocal.cli.flow",
    "evaluate": "pilocal.cli.flow",
    "export": "pilocal.cli.export",
    "report": "pilocal.cli.report",
    "compare": "pilocal.cli.compare",
    "serve": "pilocal.cli.serve",
    "bench": "pilocal.cli.bench",
    "parity": "pilocal.cli.parity",
    "ls": "pilocal.cli.runs",
    "clean": "pilocal.cli.runs",
    "doctor": "pilocal.cli.doctor",
}
"""Every command and the module that defines it, in the order of the help page."""


class LazyGroup(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[cmd_name]), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, with a suggestion when there is none of that name."""
        if args and args[0] not in COMMANDS:
            raise click.UsageError(f"no such command: {args[0]}; {did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print what a report of a fault needs, and exit."""
    if not value or ctx.resilient_parsing:
        return
    from pilocal.doctor.about import version_lines

    click.echo("\n".join(version_lines()))
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version, those of mlx, llama.cpp and PyTorch, and the BLAS; then exit.",
)
def cli() -> None:
    """Put a recurring prompt into the weights of a local model, prove that nothing was lost, ship it to llama.cpp."""


def _open_streams() -> None:
    """Give a process that was started with a closed stream, as some services are, one that leads nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def main() -> None:
    """Run the command line; the one place where errors become lines and exit statuses."""
    _open_streams()
    try:
        status = cli.main(prog_name="pilocal", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except PilocalError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        click.echo(str(missing), err=True)
        sys.exit(1)
    except OSError as error:
        from pilocal.run_folder.files import disk_error

        click.echo(str(disk_error(error.filename or "pilocal", error)), err=True)
        sys.exit(1)
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "pilocal"
        click.echo(f"{where}: {error.format_message()}; see `{where} --help`", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; run the same command again to resume", err=True)
        sys.exit(130)
