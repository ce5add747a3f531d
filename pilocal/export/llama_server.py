"""A script that starts llama.cpp's own server with one base and the adapters of several runs.

Source: llama.cpp, common/arg.cpp and tools/server. An adapter that a request's `lora` does not name is off for it. A
request without `lora` gets the scales of the start, and may find the keys and values of another adapter in its slot; so
every request has one. The prompt cache in memory does not know whose keys and values it holds, so it is off.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pilocal.errors import ExportError
from pilocal.prompt.control import NFC_KEY
from pilocal.prompt.preamble import NOTHING, Preamble
from pilocal.run_folder.files import replacing, write_json
from pilocal.run_folder.gguf_header import read_header
from pilocal.run_folder.shared_base import choose_base
from pilocal.run_folder.shipped import BARE_BASE, Shipped

SCRIPT, REQUESTS = "llama-server.sh", "llama-server.json"
QUERY = "the query"
"""What stands for it in the requests."""
SLOTS, CONTEXT = 16, 2048
"""How many requests are answered at once, and how long each may be: those of `pilocal serve`."""
CONNECTIONS = 128
"""Threads for connections: each open one holds a thread, and by default there are hardly more than slots."""

HEAD = """#!/bin/sh
# Starts llama.cpp's llama-server with the base and {adapters}. More options may follow, such as --port 8081,
# or --parallel 4 --ctx-size 8192: the context is that of all slots together. LLAMA_SERVER names another program.
#
# {requests} has the request of each task, with "{query}" in the query's place: what stays of the prompt, the form of
# the answer, and whose adapter is on, which every request has to say. That of {name}:
#
#   curl http://127.0.0.1:8080/v1/chat/completions -d {request}
#
{notes}set -eu
CDPATH= cd -- "$(dirname -- "$0")"
exec "${{LLAMA_SERVER:-llama-server}}" \\
"""
NFC = """# The model was trained on Unicode in its form NFC, and llama-server does not compose it: send queries in NFC.
"""


def write_llama_server(tasks: Sequence[Shipped], max_tokens: Sequence[int]) -> list[Path]:
    """Write llama-server.sh and llama-server.json beside the first task's files; return the two.

    `max_tokens` is each task's longest answer. Files of other runs are named by their way from there. Raises what
    `choose_base` raises for runs that cannot share a server, ExportError for a task whose prompt keeps shots or whose
    weights are fused though it is not alone, and RunError when the disk is full.
    """
    choose_base(tasks)
    for task in tasks:
        _check(task, alone=len(tasks) == 1)
    folder = tasks[0].folder
    requests = {
        task.name: _request(task, number, limit)
        for number, (task, limit) in enumerate(zip(tasks, max_tokens, strict=True))
    }
    if tasks[0].adapter:
        requests[BARE_BASE] = {"messages": _messages(NOTHING), "lora": [{"id": 0, "scale": 0.0}], "temperature": 0}
    script, listed = folder / SCRIPT, folder / REQUESTS
    with replacing(script) as file:
        file.write(_script(tasks, requests))
    script.chmod(0o755)
    write_json(listed, {"base_sha256": tasks[0].base_sha256, "requests": requests})
    return [script, listed]


def _check(task: Shipped, *, alone: bool) -> None:
    if task.residue.shots:
        what = "llama-server cannot choose shots for each query"
        raise ExportError(task.folder, what, got=task.residue.shots, fix="serve it with `pilocal serve`")
    if task.fused and not alone:
        what, fix = "fused with its base, which it cannot share", "`pilocal export RUN` puts an adapter beside the base"
        raise ExportError(task.folder, what, got=task.fused, fix=fix)


def _messages(residue: Preamble) -> list[dict[str, str]]:
    before = [{"role": "system", "content": residue.template}] if residue.template.strip() else []
    return [*before, {"role": "user", "content": residue.user_turn}]


def _request(task: Shipped, number: int, max_tokens: int) -> dict[str, Any]:
    """Return what a client sends; `number` is the adapter's. It does not name the others, so they are off."""
    request: dict[str, Any] = {"messages": _messages(task.residue)}
    request |= {"lora": [{"id": number, "scale": 1.0}]} if task.adapter else {}
    request |= {"temperature": 0, "max_tokens": max_tokens}
    return request | ({"grammar": task.grammar} if task.grammar else {})


def _script(tasks: Sequence[Shipped], requests: Mapping[str, Any]) -> str:
    first, several = tasks[0], len(tasks) > 1
    model = first.fused or first.base
    options = [f"--model {shlex.quote(model)}", *_adapter_options(tasks)]
    if first.served_template and first.chat_template:
        options.append(f"--chat-template-file {shlex.quote(first.chat_template)}")
    options.append(f"--parallel {SLOTS} --ctx-size {SLOTS * CONTEXT} --cache-ram 0 --threads-http {CONNECTIONS}")
    options += ["--jinja --temp 0", '"$@"']
    head = HEAD.format(
        adapters=f"{len(tasks)} adapters" if several else "its adapter",
        requests=REQUESTS,
        query=QUERY,
        name=first.name,
        request=shlex.quote(json.dumps(requests[first.name], ensure_ascii=False)),
        notes=_notes(tasks) + (NFC if read_header(first.folder / model).get(NFC_KEY) else ""),
    )
    return head + " \\\n".join(f"  {line}" for line in options) + "\n"


def _notes(tasks: Sequence[Shipped]) -> str:
    """Return what is said of slots, where a task has some."""
    names = ", ".join(dict.fromkeys(name for task in tasks for name in task.slots))
    what = 'Their values stand in the place of each "..." and of each {{name}}, as in the file.'
    return f"# Slots that every request fills: {names}.\n# {what}\n" if names else ""


def _adapter_options(tasks: Sequence[Shipped]) -> list[str]:
    """Return the options that load the adapters: one alone is on, and several are off until a request names one.

    llama-server reads a list with commas, in which quotes enclose what holds one, and a scale behind a colon. Its
    --lora-init-without-apply would not do: a request that names no adapter would get all of them.
    """
    folder = tasks[0].folder.resolve()
    options = []
    for path in [os.path.relpath(task.folder.resolve() / task.adapter, folder) for task in tasks if task.adapter]:
        field = '"{}"'.format(path.replace('"', '""')) if "," in path or path.startswith('"') else path
        if len(tasks) == 1:
            options.append(f"--lora {shlex.quote(field)}")
            continue
        if ":" in path:
            fix = "move the runs to folders without one"
            raise ExportError(path, "llama-server takes no colon in the path of one of several adapters", fix=fix)
        options.append(f"--lora-scaled {shlex.quote(f'{field}:0')}")
    return options
