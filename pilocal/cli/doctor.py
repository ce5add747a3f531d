"""doctor: what this machine has, what is slow or missing, and the command that mends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from pilocal.cli.lists import Word
from pilocal.task.text import byte_size, home_folder

if TYPE_CHECKING:
    from pilocal.doctor.diagnose import Report

FEW = 6
"""Models of one place that are named."""


@click.command()
@click.option("--model", default="starter", show_default=True, help="The base to have room for, as in task.toml.")
@click.option("--backend", type=Word(["mlx", "torch"]), default="mlx", show_default=True, help="What is to train.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def doctor(model: str, backend: str, as_json: bool) -> None:
    """Tell what this machine has, what is slow or missing, and the command that mends it.

    MLX, PyTorch and llama.cpp are tried for some seconds. Nothing is downloaded. Exit status 1 when `pilocal run` would
    fail here. The home folder stands as ~; no other name of yours is told than those of models.
    """
    from pilocal.doctor.diagnose import diagnose

    report = diagnose(model, backend)
    text = json.dumps(report.as_json(), indent=2) if as_json else "\n".join(_lines(report))
    home = str(home_folder())
    click.echo(text.replace(home, "~") if home != "/" else text)
    if not report.works:
        click.get_current_context().exit(1)


def _lines(report: Report) -> Iterator[str]:
    facts = report.facts
    system, memory, disk = facts["system"], facts["memory"], facts["disk"]
    yield f"system     {system['system']}, Python {system['python']}"
    yield f"processor  {system['processor']}, {system['cores']} cores"
    if system["nvidia"]:
        yield f"GPU        {system['nvidia']}"
    limit = f", at most {byte_size(memory['limit'])} for this process" if memory["limit"] else ""
    free = f", {byte_size(memory['available'])} free" if memory["available"] else ""
    yield f"memory     {byte_size(memory['total'])}{free}{limit}"
    yield "disk       " + ", ".join(f"{byte_size(each['free'])} in {each['folder']}" for each in disk.values())
    yield f"MLX        {_mlx(facts['mlx'])}"
    yield f"PyTorch    {_torch(facts['torch'])}"
    yield f"llama.cpp  {_llama_cpp(facts['llama.cpp'])}"
    for name, title in (("hub", "Hub cache"), ("ollama", "Ollama   ")):
        yield f"{title}  {_few(facts['models'][name])}"
    base = facts["base"]
    takes = "" if base["bytes"] is None else f", {byte_size(base['bytes'])}"
    yield f"base       {base['model']}{takes}{'' if base['here'] or base['fault'] else ', not downloaded'}"
    yield "versions   " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield ""
    for finding in report.findings:
        yield f"{finding.level}: {finding.what}; {finding.fix}"
    yield "`pilocal run` works here" if report.works else "`pilocal run` would fail here"


def _mlx(found: dict[str, Any] | None) -> str:
    if found is None or "error" in found:
        return _not_working(found)
    device = "Metal" if found["metal"] else "CUDA" if found["cuda"] else f"CPU, BLAS {found['blas']}"
    over = found["over_reference"]
    more = f", {over:.1f} times as fast as the reference BLAS" if over is not None else ""
    return f"{device}, {found['gflops']:,.0f} billion operations per second{more}"


def _torch(found: dict[str, Any] | None) -> str:
    if found is None or "error" in found:
        return _not_working(found)
    name = f" ({found['name']})" if found["name"] else ""
    return f"{found['device']}{name}, {found['gflops']:,.0f} billion operations per second"


def _llama_cpp(found: dict[str, Any] | None) -> str:
    if found is None or "error" in found:
        return _not_working(found)
    flags = "; ".join(
        f"{device}: {' '.join(name if value == '1' else f'{name}={value}' for name, value in said.items())}"
        for device, said in found["flags"].items()
    )
    return f"{flags}; the bundled model writes {found['starter_tokens_per_second']:,.0f} tokens per second"


def _not_working(found: dict[str, Any] | None) -> str:
    return "not installed" if found is None else "does not work"


def _few(names: list[str]) -> str:
    if not names:
        return "no models"
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more
