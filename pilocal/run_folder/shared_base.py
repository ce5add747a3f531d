"""Which base several tasks share, and whether their files belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pilocal.errors import InputError, ModelError, PilocalError, RunError, raise_all
from pilocal.run_folder.gguf_header import read_header
from pilocal.run_folder.shipped import FILE, Shipped, check_name

HASH = "pilocal.base.sha256"
"""The GGUF metadata that says which base a file was made from."""
TEMPLATE_KEY = "tokenizer.chat_template"
"""The GGUF metadata with the file's own chat template."""


def choose_base(tasks: Sequence[Shipped]) -> tuple[Path, str | None]:
    """Return the GGUF of the one base that all tasks share, and its chat template if not its own; reads headers only.

    An adapter is served on a base of the type that it was exported with, so all adapters must have the same type.
    Raises InputError, ModelError, RunError, or Faults, for names that clash and for files that are damaged, foreign, or
    of different bases.
    """
    faults: list[PilocalError] = []
    types: dict[Path, object] = {}
    templates: dict[Path, str | None] = {}
    for number, task in enumerate(tasks):
        try:
            _check_name(task, tasks[:number])
            if task.base_sha256 != tasks[0].base_sha256:
                raise _another_base(task, tasks[0])
            header = _read(task, task.base) if task.base_files is None else read_header(task.base_path)
            kind = header.get("general.file_type")
            if task.fused is not None:
                _read(task, task.fused)
                continue
            if task.adapter is None:
                raise RunError(task.folder / FILE, "neither an adapter nor a fused file", fix="run `pilocal export`")
            if _read(task, task.adapter).get("general.type") != "adapter":
                raise ModelError(task.folder / task.adapter, "not an adapter", fix="run `pilocal export`")
            types[task.base_path], templates[task.base_path] = kind, task.served_template
        except PilocalError as fault:
            faults.append(fault)
    for path, kind in types.items():
        first = next(iter(types))
        if kind != types[first]:
            fix = "export both with the same quant"
            faults.append(InputError(path, f"quantized otherwise than {first}, which it would share", fix=fix))
    raise_all(faults)
    path = next(iter(types), tasks[0].base_path)
    return path, templates.get(path)


def _another_base(task: Shipped, first: Shipped) -> InputError:
    """Return what is wrong with a task whose base is not the first one's, or is asked in other words."""
    fix, got = "serve it with a server of its own", task.base_sha256[:12]
    if task.base_files is not None and task.base_files == first.base_files:
        what = f"its base is asked with another chat template than that of {first.folder}"
        return InputError(task.folder, what, got=got, fix=fix)
    what = f"made from another base than {first.folder}"
    asked = [each.served_template or read_header(each.base_path).get(TEMPLATE_KEY) for each in (task, first)]
    what += "" if asked[0] == asked[1] else ", or asked with another chat template"
    return InputError(task.folder, what, got=got, fix=fix)


def _check_name(task: Shipped, others: Sequence[Shipped]) -> None:
    check_name(task.name, task.folder / FILE)
    fix = "give the task another name in task.toml and export it again"
    for other in others:
        if other.name == task.name:
            raise InputError(task.folder / FILE, f"{other.folder} has the same name", got=task.name, fix=fix)


def _read(task: Shipped, name: str) -> dict[str, object]:
    path = task.folder / name
    header = read_header(path)
    if HASH not in header:
        raise ModelError(path, f"it does not say which base it was made from ({HASH})", fix="run `pilocal export`")
    if header[HASH] != task.base_sha256:
        what = f"made from another base than {task.folder / FILE} says"
        raise ModelError(path, what, got=str(header[HASH])[:12], fix="put back the file, or run `pilocal export`")
    return header
