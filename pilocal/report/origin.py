"""Where it all comes from: the data and its faults, versions, hashes, and the commands that make it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilocal.report.figures import clock
from pilocal.report.markup import Html, Long, command, join, section, table, tag
from pilocal.report.record import Record
from pilocal.run_folder.hashes import sha256_file
from pilocal.task.text import byte_size

SPLITS = ("train", "valid", "test")

SHOWN = 100
"""Faults of the data."""


def data(record: Record) -> Html:
    """Return how much data there is, and what was found to be odd about it."""
    counts = {split: record.count_rows(split) for split in SPLITS}
    rows = [(split, f"{count:,}") for split, count in counts.items() if count is not None]
    sizes = table("Records as they were rendered", ("split", "records"), rows) if rows else Html()
    faults = record.state.get("warnings")
    if faults is None:
        said = tag("p", "This run does not say what was odd about its data; ", command(record.command("check")),
                   " does.", kind="missing")  # fmt: skip
    elif not faults:
        said = tag("p", "The checks found nothing odd about the task's files.")
    else:
        shown = [tag("li", fault) for fault in faults[:SHOWN]]
        more = len(faults) - SHOWN
        rest = tag("p", f"{more:,} more are in run.json.", kind="note") if more > 0 else Html()
        said = join(tag("p", "What the checks found odd about the task's files:"), tag("ul", join(*shown)), rest)
    return section("The data", sizes, said)


def origin(record: Record) -> Html:
    """Return versions, hashes and steps."""
    state = record.state
    backend: Mapping[str, Any] = state.get("backend") or {}
    facts = [
        ("task", record.name),
        ("base", state.get("model")),
        ("backend", ", ".join(_said(key, value) for key, value in backend.items() if value is not None)),
        ("seed", state.get("seed")),
        *((name, version) for name, version in state.get("versions", {}).items()),
    ]
    if start := state.get("start"):
        facts.append(("goes on from", start["run"]))
    known = [(name, Long(str(value))) for name, value in facts if value not in (None, "")]
    hashes = [(name, _hash(sha256)) for name, sha256 in _hashes(record).items()]
    steps = [
        (
            name,
            step["finished"],
            clock(step["seconds"]),
            byte_size(sum(step["files"].values())),
            _hash(step["key"][:16]),
        )
        for name, step in state["steps"].items()
    ]
    parts = [table("Made with", ("what", "which"), known)]
    if hashes:
        parts.append(table("SHA-256 of what went in, and of the adapter", ("file", "hash"), hashes))
    if steps:
        parts.append(table("Steps that are done", ("step", "finished", "took", "files", "key begins with"), steps))
    return section("Versions and hashes", *parts)


def _said(key: str, value: object) -> str:
    return str(value) if key == "name" else f"{key.replace('_', ' ')} {value}"


def _hash(text: str) -> Long:
    return Long(tag("span", text, kind="hash"))


def _hashes(record: Record) -> dict[str, str]:
    found = {f"{name} file": sha256 for name, sha256 in record.state.get("inputs", {}).items()}
    if "base_sha256" in record.state:
        found["base"] = record.state["base_sha256"]
    weights = record.adapter_weights
    return found | ({"trained adapter": sha256_file(weights)} if weights else {})


def again(record: Record, price: float | None) -> Html:
    """Return the commands that make the run and this page again, with its price."""
    if record.is_comparison:
        made = [("The comparison", record.compare_command)]
    else:
        made = [("The run, or what is left of it", record.command("run", *_options(record.state)))]
    made.append(("This page", record.report_command(price)))
    parts = [join(tag("h3", name), tag("pre", command(line))) for name, line in made]
    if record.schedule:
        how = "Save this as schedule.toml for the commands above, or name the file that the run was made with:"
        parts.append(join(tag("h3", "Its schedule"), tag("p", how), tag("pre", tag("code", record.schedule))))
    return section("Make it again", *parts)


def _options(state: Mapping[str, Any]) -> list[str]:
    """Return the options that the run was made with, beside its schedule and folder."""
    backend, start = state.get("backend") or {}, state.get("start") or {}
    words = []
    if backend.get("name") not in (None, "mlx"):
        flags = {"backend": backend["name"], **{key: value for key, value in backend.items() if key != "name"}}
        words += [part for key, value in flags.items() if value for part in (f"--{key.replace('_', '-')}", str(value))]
    if start:
        words += ["--from", str(start["run"])]
        words += ["--steps", str(start["steps"])] if start.get("steps") else []
        words += ["--replay", f"{start['replay']:g}"]
    return words
