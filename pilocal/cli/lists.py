"""Options whose values stand between commas, paths, one of some words, sizes of memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pilocal.errors import nearest
from pilocal.task.text import from_home


class UserPath(click.Path):
    """A path; a `~` at its beginning is the home folder, also where the shell leaves it, as in --run=~/x."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the Path."""
        return super().convert(from_home(value) if isinstance(value, str) else value, param, ctx)


FOLDER = UserPath()


class Word(click.Choice[str]):
    """One of some words; a word that is nearly one of them is answered with that one."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Return what is wrong with a word."""
        near = nearest(str(value), self.choices)
        return super().get_invalid_choice_message(value, ctx) + (f" Did you mean {near}?" if near else "")


def unified_memory(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return a size of memory as Macs are sold by, in bytes: 32GB is 32 GiB; raises click.BadParameter for others."""
    if value is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,5})\s*gi?b\s*", value, re.ASCII | re.IGNORECASE)
    if not found or int(found[1]) < 1:
        raise click.BadParameter(f"{value!r} is no size of memory: write whole gigabytes, such as 32GB", ctx, param)
    return int(found[1]) << 30


def listed(name: str, kind: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str], tuple[Any, ...]]:
    """Return the callback of such an option: it turns the text into a tuple, or raises click.BadParameter."""

    def split(ctx: click.Context, param: click.Parameter, value: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part.strip()) for part in value.split(",") if part.strip())
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a list of {name}.", ctx, param) from None

    return split


NAMES, NUMBERS, RATES = listed("names", str), listed("numbers", int), listed("numbers", float)
