"""The generated documents: `python -m tests.documents` (part of `just fix`) writes them, a test compares them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

import pilocal
from pilocal import errors
from pilocal.cli import cli
from pilocal.task import METRICS, TABLES
from pilocal.task.load import _Top
from pilocal.task.schedule import DECAYS, DecaySchedule, Stage
from pilocal.task.within import bounds_of

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pilocal"
WIDTH = 120

COMMANDS = """\
# Commands

Exit status: 0 done; 1 a fault of the input or the machine; 2 misuse; 130 interrupted. A fault is one line on stderr:
where, what is wrong, what was got, what to do. With `--json` the result is JSON on stdout; progress goes to stderr.

Shells complete commands, options and their words: `eval "$(_PILOCAL_COMPLETE=bash_source pilocal)"` in `~/.bashrc`,
`eval "$(_PILOCAL_COMPLETE=zsh_source pilocal)"` in `~/.zshrc`, and for fish
`_PILOCAL_COMPLETE=fish_source pilocal > ~/.config/fish/completions/pilocal.fish`.
"""

SETTINGS = """\
# Settings

Every key of task.toml and of schedule files. An unknown key is an error, and so is a number outside of its range. How
the files fit together is in the [README](README.md).
"""

STAGES = "`until_tau` and `until_shots` may stand above them: the last stage then ends there, and not at 0."

API = """\
# The Python API

`import pilocal` is light: every name here is imported when it is first used. Whatever the user can mend is raised as a
`PilocalError`, whose text is one line: where, what is wrong, what was got, what to do.

```python
import pilocal

run = pilocal.run("my-task")
print(run.metrics["pi_score"], run.answer("the bare query"))
run.close()
```

[`examples/python_api.py`](../examples/python_api.py) is a script that runs.
"""


def commands_page() -> str:
    """Return the help page of every command."""
    parts = [COMMANDS]
    context = click.Context(cli, info_name="pilocal", terminal_width=100, **cli.context_settings)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        child = click.Context(command, info_name=name, parent=context, terminal_width=100)
        parts.append(f"## pilocal {name}\n\n```text\n{command.get_help(child)}\n```\n")
    return "\n".join(parts)


def settings_page() -> str:
    """Return a table of keys, defaults and meanings for every table of task.toml and every form of a schedule file."""
    parts = [
        SETTINGS,
        "## task.toml\n",
        keys(_Top),
        "| `metric` | what it is | reads of `[scoring]` |\n| --- | --- | --- |",
    ]
    parts[-1] += "".join(f"\n| `{name}` | {metric(name)} | {code(read)} |" for name, read in METRICS.items()) + "\n"
    for table, cls in TABLES.items():
        parts += [f"### [{table}]\n", keys(cls)]
    parts += [
        "## A schedule file with a decay\n",
        keys(DecaySchedule),
        "| `decay` | what it does | reads |\n| --- | --- | --- |",
    ]
    rows = (f"\n| `{name}` | {what} | {code(sorted(read | {'shots'}))} |" for name, (what, read) in DECAYS.items())
    parts[-1] += "".join(rows) + "\n"
    parts += ["## A schedule file with [[stage]] tables\n", f"{STAGES}\n", keys(Stage)]
    return "\n".join(parts)


def metric(name: str) -> str:
    """Return what the module of a metric says it is, after the name of the metric."""
    said = inspect.getdoc(import_module(f"pilocal.evaluate.scoring.{name}")) or ""
    return said.partition(": ")[2]


def keys(cls: Any) -> str:
    """Return the table of a dataclass's fields: key, default, what a number may be, docstring."""
    bounds, documented = bounds_of(cls), dict(documented_fields(cls))
    rows = [["key", "default", *(["range"] if bounds else []), "meaning"]]
    rows.append(["---"] * len(rows[0]))
    for field in dataclasses.fields(cls):
        within = [str(bounds.get(field.name, ""))] if bounds else []
        rows.append([f"`{field.name}`", default(field.default), *within, documented[field.name]])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def documented_fields(cls: type[Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of every field of a dataclass that has one."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    for field, text in pairwise(node.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            yield ast.unparse(field.target), " ".join(str(text.value.value).split()).replace("|", "\\|")


def default(value: object) -> str:
    """Return a default as TOML writes it; nothing for None and for a key that must be given."""
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def code(names: Any) -> str:
    """Return names as code, between commas."""
    return ", ".join(f"`{name}`" for name in names)


def api_page() -> str:
    """Return every public name with its signature and docstring."""
    public = {name: pilocal.__getattr__(name) for name in pilocal.__all__}
    functions = [described(f"pilocal.{name}", thing) for name, thing in public.items() if inspect.isfunction(thing)]
    classes = {name: thing for name, thing in public.items() if isinstance(thing, type)}
    raised = [name for name, cls in classes.items() if issubclass(cls, Exception)]
    others = [class_section(name, cls) for name, cls in classes.items() if name not in raised]
    return "\n".join(
        [API, "## Functions\n", *functions, *others, elsewhere_section(public.values()), errors_section(raised)]
    )


def class_section(name: str, cls: type[Any]) -> str:
    """Return a class with its fields, if it is a dataclass, and its public methods and properties."""
    parts = [f"## {name}\n\n{prose(cls)}\n", *([fields_of(cls)] if dataclasses.is_dataclass(cls) else [])]
    return "\n".join(parts + [described(f"{name}.{each}", member) for each, member in members(cls).items()])


def elsewhere_section(public: Iterable[Any]) -> str:
    """Return the table of the types that signatures and fields name and that are not public."""
    found = {cls.__name__: cls for thing in public for cls in named_in(thing) if cls.__name__ not in pilocal.__all__}
    said = "The signatures and fields above name these types, too. They are imported from their modules."
    rows = [
        f"| `{name}` | `{cls.__module__}` | {prose(cls).partition(chr(10))[0]} |" for name, cls in sorted(found.items())
    ]
    return "\n".join(
        [f"## Types in other modules\n\n{said}\n", "| type | module | |", "| --- | --- | --- |", *rows, ""]
    )


def named_in(thing: Any) -> Iterator[type[Any]]:
    """Yield the package's own classes that a function's signature, or a class's fields and members, name."""
    if isinstance(thing, property):
        thing = thing.fget
    if inspect.isclass(thing):
        for member in members(thing).values():
            yield from named_in(member)
    module = import_module(thing.__module__)
    for word in re.findall(r"[A-Z]\w+", " ".join(map(str, inspect.get_annotations(thing).values()))):
        named = getattr(module, word, None)
        if inspect.isclass(named) and named.__module__.startswith("pilocal."):
            yield named


def errors_section(names: Sequence[str]) -> str:
    """Return the tree of errors, which has all of `names`."""
    tree = (inspect.getdoc(errors) or "").split("\n\n", 1)[1]
    assert all(name in tree for name in names)
    said = "All of them are in `pilocal`. Each has `where`, `problem`, `got` and `fix`."
    return f"## Errors\n\n```text\n{tree}\n```\n\n{said}\n"


def members(cls: type[Any]) -> Mapping[str, Any]:
    """Return the public methods and properties that a class itself defines, as written."""
    fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set[str]()
    own = {name: member for name, member in vars(cls).items() if not name.startswith("_") and name not in fields}
    return {name: each for name, each in own.items() if inspect.isfunction(each) or isinstance(each, property)}


def fields_of(cls: type[Any]) -> str:
    """Return the table of a dataclass's fields."""
    documented = dict(documented_fields(cls))
    fields = dataclasses.fields(cls)
    rows = [f"| `{field.name}` | `{field.type}` | {documented.get(field.name, '')} |" for field in fields]
    return "\n".join(["| field | type | |", "| --- | --- | --- |", *rows]).replace(" | None", " or None") + "\n"


def described(name: str, thing: Any) -> str:
    """Return a heading, a signature and the docstring of a function or property."""
    if isinstance(thing, property):
        assert thing.fget is not None
        shown = f"{name}: {inspect.get_annotations(thing.fget)['return']}"
    else:
        shown = f"{name}{signature(thing)}"
    return f"### {name}\n\n```python\n{shown}\n```\n\n{prose(thing)}\n"


def signature(function: Callable[..., Any]) -> str:
    """Return a signature as its source writes it, one parameter per line where it is long."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef) and node.returns is not None
    given = node.args
    defaults = [None] * (len(given.args) - len(given.defaults)) + list(given.defaults)
    parts = [parameter(arg, value) for arg, value in zip(given.args, defaults, strict=True) if arg.arg != "self"]
    if given.vararg or given.kwonlyargs:
        parts.append("*" + (parameter(given.vararg, None) if given.vararg else ""))
    parts += [parameter(arg, value) for arg, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    returned = ast.unparse(node.returns)
    short = f"({', '.join(parts)}) -> {returned}"
    return short if len(short) <= 100 else "(\n" + "".join(f"    {part},\n" for part in parts) + f") -> {returned}"


def parameter(arg: ast.arg, value: ast.expr | None) -> str:
    """Return a parameter with its annotation and its default."""
    assert arg.annotation is not None
    shown = f"{arg.arg}: {ast.unparse(arg.annotation)}"
    return shown if value is None else f"{shown} = {ast.unparse(value).replace(chr(39), chr(34))}"


def prose(thing: object) -> str:
    """Return a docstring without its examples."""
    return re.split(r"\n\n>>> ", inspect.getdoc(thing) or "")[0]


PAGES: Mapping[Path, Callable[[], str]] = {
    PACKAGE / "cli" / "COMMANDS.md": commands_page,
    PACKAGE / "task" / "SETTINGS.md": settings_page,
    PACKAGE / "API.md": api_page,
}
"""Every generated document and what makes it."""


if __name__ == "__main__":
    for page, make in PAGES.items():
        page.write_text(make(), encoding="utf-8")
