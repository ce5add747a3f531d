"""The schedule that a run was made with, as a file that makes the same run again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pilocal.task.schedule import DEFAULT, DecaySchedule

ADAPTIVE = "adaptive"


def schedule_text(state: Mapping[str, Any]) -> str:
    """Return a schedule file from what run.json says; empty where it says nothing, and for the default.

    Beside a task that names a schedule of its own, the default is written out, too.
    """
    stages, adaptive, own = state.get("schedule"), state.get("adaptive"), "schedule" in state.get("inputs", {})
    if not stages or (stages == [stage.facts() for stage in DEFAULT.stages] and not adaptive and not own):
        return ""
    return _adaptive(stages, adaptive) if adaptive else _tables(stages)


def _tables(stages: Sequence[Mapping[str, Any]]) -> str:
    last = stages[-1]
    stays = {f"until_{key}": last[key] for key in ("tau", "shots") if last[key]}
    parts = [_lines(stays)] if stays else []
    return "\n".join([*parts, *(f"[[stage]]\n{_lines(stage)}" for stage in stages)])


def _adaptive(stages: Sequence[Mapping[str, Any]], adaptive: Mapping[str, Any]) -> str:
    """Return the keys of an adaptive schedule, which cannot be written stage by stage."""
    first, last = stages[0], stages[-1]
    trained = [stage for stage in stages if stage["share"]]
    values: dict[str, Any] = {
        "decay": ADAPTIVE,
        "stages": len(trained),
        "shots": first["shots"],
        "final": None if last["share"] == 1 / len(trained) else last["share"],
        "until_tau": last["tau"],
        "until_shots": last["shots"],
        "fade": ("working" if len(trained) < len(stages) else "both") if first.get("working") else "prompt",
        **adaptive,
    }
    defaults = asdict(DecaySchedule(decay=ADAPTIVE))
    kept = {key: value for key, value in values.items() if key == "decay" or value != defaults[key]}
    return _lines(kept)


def _lines(values: Mapping[str, Any]) -> str:
    """Return keys and values as TOML writes them."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
