"""The generated parts of README.md: `just fix` writes them, a test compares them."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import click

from pilocal.cli import cli
from pilocal.task import TABLES

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def help_pages() -> str:
    """Return the help page of every command."""
    pages = []
    context = click.Context(cli, info_name="pilocal", terminal_width=100, **cli.context_settings)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        child = click.Context(command, info_name=name, parent=context, terminal_width=100)
        pages.append(command.get_help(child))
    return "```text\n" + "\n\n".join(pages) + "\n```"


def settings() -> str:
    """Return a table of every key of task.toml's tables, with its default and its docstring."""
    tree = ast.parse((ROOT / "pilocal" / "task.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for table, cls in TABLES.items():
        body = classes[cls.__name__].body
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert field.value is not None
                assert isinstance(text.value, ast.Constant)
                default = ast.literal_eval(field.value)
                shown = {None: "", (): "[]"}.get(default, str(default).lower() if default in (True, False) else default)
                shown = f'"{default}"' if isinstance(default, str) else shown
                meaning = " ".join(str(text.value.value).split())
                lines.append(f"| `{table}.{ast.unparse(field.target)}` | `{shown}` | {meaning} |".replace("``", ""))
    return "\n".join(lines)


def filled(text: str) -> str:
    """Return a README with its generated parts made anew."""
    for name, part in (("help", help_pages()), ("settings", settings())):
        pattern = rf"(<!-- {name}: generated -->\n).*?(\n<!-- end -->)"
        text, count = re.subn(pattern, lambda match, part=part: match[1] + part + match[2], text, flags=re.DOTALL)
        assert count == 1, name
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
