"""A recorded reference: a replay and the trace that a backend left, in a folder that can be copied elsewhere.

reference.json holds settings, rows as token ids, learning rates, losses and gradient norms. arrays.safetensors holds
the adapter before each stage, the gradients there, and the adapter at the end, under mlx-lm's names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pilocal.base.base import Base, find_base
from pilocal.base.chat import ChatSettings
from pilocal.errors import InputError
from pilocal.parity.replay import Floats, Replay, ReplayStage, ReplayStep, Trace, check_ids, check_lora
from pilocal.prompt.tokens import Row
from pilocal.run_folder.files import MISSHAPEN, read_json, replacing
from pilocal.run_folder.hashes import sha256_file
from pilocal.run_folder.tensors import save_tensors
from pilocal.run_folder.typed import fits, made
from pilocal.task import Lora, Training

FILE, ARRAYS = "reference.json", "arrays.safetensors"
FORMAT = 1
"""The folder's; any other is refused."""


def save_reference(folder: Path, replay: Replay, trace: Trace, *, model: str, made_by: Mapping[str, str]) -> None:
    """Write a reference; `model` is the base as a task names it, `made_by` the versions of what made the trace.

    Raises RunError if the disk is full.
    """
    rows: dict[Row, int] = {}
    stages = []
    for stage in replay.stages:
        steps = [
            {"rate": step.rate, "rows": [rows.setdefault(row, len(rows)) for row in step.rows]} for step in stage.steps
        ]
        stages.append({"number": stage.number, "tau": stage.tau, "shots": stage.shots, "steps": steps})
    content = {
        "format": FORMAT,
        "model": model,
        "base_sha256": replay.base.sha256,
        "chat": replay.base.chat.facts,
        "tokenizer_sha256": _tokenizer_hash(replay.base),
        "made_by": dict(made_by),
        "lora": asdict(replay.lora),
        "training": asdict(replay.training),
        "stages": stages,
        "losses": trace.losses,
        "gradient_norms": trace.norms,
    }
    with replacing(folder / FILE) as file:
        parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
        each = ({"offset": row.offset, "tokens": row.tokens} | ({"gaps": row.gaps} if row.gaps else {}) for row in rows)
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in each)
        file.write("{\n" + ",\n".join([*parts, f'"rows": [\n{lines}\n]']) + "\n}\n")
    arrays = {f"end.{name}": value for name, value in trace.adapter.items()}
    for nth, (start, gradients) in enumerate(zip(trace.starts, trace.gradients, strict=True)):
        arrays |= {f"start.{nth}.{name}": value for name, value in start.items()}
        arrays |= {f"gradient.{nth}.{name}": value for name, value in gradients.items()}
    save_tensors(folder / ARRAYS, arrays, {})


def load_reference(folder: Path) -> tuple[Replay, Trace, dict[str, Any]]:
    """Return a reference and the content of its reference.json.

    Raises InputError if it is damaged or of another format, or if its `model` now has another base or tokenizer.
    """
    from safetensors import SafetensorError

    fix = "point at a folder that `pilocal parity RUN --record FOLDER` wrote"
    try:
        content: dict[str, Any] = read_json(folder / FILE)
        if content["format"] != FORMAT:
            got = content["format"]
            raise InputError(folder / FILE, f"only format {FORMAT} is known", got=got, fix="record it again")
        stages = _stages(content)
        lora = made(Lora, content["lora"] | {"linears": tuple(content["lora"]["linears"])})
        training, model = made(Training, content["training"]), str(content["model"])
        chat = made(ChatSettings, content.get("chat", {}))
        trace = _trace(content, folder, len(stages))
        hashes = {"base": content["base_sha256"], "tokenizer": content["tokenizer_sha256"]}
    except (*MISSHAPEN, SafetensorError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise InputError(folder, f"not a whole reference: {what}", fix=fix) from None
    replay = Replay(base=find_base(model, folder, chat), lora=lora, training=training, stages=stages)
    check_lora(lora)
    check_ids(replay, str(folder / FILE))
    _check_base(replay.base, hashes, folder / FILE)
    if {replay.steps} != {len(trace.losses), len(trace.norms)} or not all((trace.adapter, *trace.starts)):
        raise InputError(folder, "not a whole reference: steps or weights are missing", fix=fix)
    return replay, trace, content


def _stages(content: Mapping[str, Any]) -> tuple[ReplayStage, ...]:
    """Return the stages of a reference.json, each step with its rows; raises one of MISSHAPEN where it is damaged."""
    rows = [_row(row) for row in content["rows"]]

    def step(of: Mapping[str, Any]) -> ReplayStep:
        numbers = of["rows"]
        if not fits(numbers, list[int]) or min(numbers, default=0) < 0:
            raise ValueError(f"rows is {numbers!r:.60}")
        return made(ReplayStep, {"rate": of["rate"], "rows": tuple(rows[number] for number in numbers)})

    return tuple(
        made(ReplayStage, {**stage, "steps": tuple(step(each) for each in stage["steps"])})
        for stage in content["stages"]
    )


def _row(of: Mapping[str, Any]) -> Row:
    gaps = tuple((begin, end) for begin, end in of.get("gaps", ()))
    row = made(Row, {"tokens": tuple(of["tokens"]), "offset": of["offset"], "gaps": gaps})
    if not 0 < row.offset < len(row.tokens):
        raise ValueError(f"offset is {row.offset} in a row of {len(row.tokens)} tokens")
    return row


def _trace(content: Mapping[str, Any], folder: Path, stages: int) -> Trace:
    """Return the trace of a reference of so many stages."""
    from safetensors.numpy import load_file

    arrays = load_file(folder / ARRAYS)
    trace = made(Trace, {"losses": content["losses"], "norms": content["gradient_norms"]})
    trace.starts = [_part(arrays, f"start.{nth}.") for nth in range(stages)]
    trace.gradients = [_part(arrays, f"gradient.{nth}.") for nth in range(stages)]
    trace.adapter = _part(arrays, "end.")
    return trace


def _check_base(base: Base, hashes: Mapping[str, str], where: Path) -> None:
    """Raise InputError if a base or its tokenizer is not the one that a reference was made with."""
    fix = "use the base that the reference was made with, or record it again"
    if _tokenizer_hash(base) != hashes["tokenizer"]:
        raise InputError(where, "the rows were made with another tokenizer", got=str(base.path), fix=fix)
    if base.sha256 != hashes["base"]:
        raise InputError(where, "the base is not the reference's", got=str(base.path), fix=fix)


def _tokenizer_hash(base: Base) -> str:
    return base.sha256 if base.gguf else sha256_file(base.folder / "tokenizer.json")


def _part(arrays: Mapping[str, Floats], prefix: str) -> dict[str, Floats]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
