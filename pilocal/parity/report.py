"""A run, or a recorded reference, on two backends: everything that parity.json says."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilocal.errors import RunError
from pilocal.flow.steps import EXPORT, TRAIN
from pilocal.packages import versions
from pilocal.parity.figures import compare_traces, distance, exceeded, mean_relative, relative_numbers
from pilocal.parity.rates import learning_rate
from pilocal.parity.reference import load_reference
from pilocal.parity.replay import Floats, Replay, Trace, play
from pilocal.parity.settings import FLOAT32, Settings
from pilocal.progress import Progress, silent
from pilocal.run_folder.adapter import read_adapter, read_start
from pilocal.run_folder.shipped import Shipped, read_shipped
from pilocal.training.torch_backend.trainer import TorchTrainer

if TYPE_CHECKING:
    from pilocal.flow.context import Context

PACKAGES = ("mlx", "mlx-lm", "torch", "transformers", "peft", "llama-cpp-python", "numpy")

FORWARD_ROWS = 4
"""Validation rows of the first and of the last stage whose logits are compared."""


def made_by() -> dict[str, str]:
    """Return the versions of everything that affects the figures; a package that is not installed is left out."""
    machine = f"{platform.system()} {platform.machine()}"
    return {"python": platform.python_version(), "machine": machine} | versions(*PACKAGES)


def check_reference(folder: Path, settings: Settings, progress: Progress = silent) -> dict[str, Any]:
    """Replay a reference with PyTorch alone and return what parity.json says; MLX need not be installed.

    Raises InputError if the reference is damaged or was made for another base.
    """
    replay, recorded, content = load_reference(folder)
    torch = torch_trainer(replay, recorded, settings)
    trace = play(torch, replay, progress, "parity: torch", starts=recorded.starts)
    result = traces_report(replay, recorded, trace, ("recorded", "torch"), settings)
    return result | {"made_by": content["made_by"]}


def check_run(context: Context, settings: Settings, record: Path | None = None) -> dict[str, Any]:
    """Replay a run with MLX and with PyTorch and return what parity.json says; with `record` keep MLX's trace there.

    Raises RunError if the run has no stages or does not fit its task, base and version; InputError if there is dropout
    or there are too few steps.
    """
    from pilocal.parity.conversion import conversion_figures
    from pilocal.parity.forward import forward_figures, predicted, predicted_by_llamacpp
    from pilocal.parity.recipe import check_stages, logged, read_replay
    from pilocal.parity.reference import save_reference
    from pilocal.parity.tokenizing import tokenizer_figures
    from pilocal.training.mlx.trainer import MlxTrainer

    check_stages(context)
    replay, progress = read_replay(context, settings.steps), context.progress
    trained = context.schedule.trained
    rows = {number: context.rows(number, "valid")[:FORWARD_ROWS] for number in (trained[0], trained[-1])}
    asked = [row for some in rows.values() for row in some]

    mlx = MlxTrainer(replay.base, replay.lora, replay.training, own_start(context))
    reference = play(mlx, replay, progress, "parity: mlx")
    if record:
        save_reference(record, replay, reference, model=context.task.model, made_by=made_by())
    final = trained_adapter(context)
    adapter = final or reference.adapter
    mlx.set_adapter(adapter)
    logits, config = {"mlx": predicted(mlx, asked)}, mlx.config
    del mlx  # frees the base before it is loaded again

    torch = torch_trainer(replay, reference, settings)
    trace = play(torch, replay, progress, "parity: torch", starts=reference.starts)
    torch.set_adapter(adapter)
    logits["torch"] = predicted(torch, asked)
    del torch

    result = traces_report(replay, reference, trace, ("mlx", "torch"), settings)
    shipped, tokenizers = export_of(context) if final else None, None
    if shipped:
        logits["llama.cpp"] = predicted_by_llamacpp(shipped, asked)
        tokenizers = tokenizer_figures(context, shipped.served_path)
    result |= {
        "run_log": logged(context, replay),
        "forward": {
            "adapter": "the run's" if final else "the replay's",
            "exported": shipped is not None,
            "figures": forward_figures(rows, logits),
        },
        "tokenizers": tokenizers,
        "conversion": conversion_figures(replay.base, adapter, config),
    }
    result["exceeded"] += _exceeded_beside(result, settings)
    return result


def torch_trainer(replay: Replay, reference: Trace, settings: Settings) -> TorchTrainer:
    """Return PyTorch's trainer at the start of the reference's trace."""
    start, device, precision = reference.starts[0], settings.device, settings.precision
    return TorchTrainer(replay.base, replay.lora, replay.training, start, device=device, precision=precision)


def traces_report(
    replay: Replay, reference: Trace, other: Trace, names: tuple[str, str], settings: Settings
) -> dict[str, Any]:
    """Return the part of parity.json that two traces of a replay decide."""
    stages, steps = compare_traces(replay, reference, other, names)
    rates = [
        relative_numbers(learning_rate(number, replay.training.steps, replay.training), step["learning_rate"])
        for number, step in enumerate(steps)
    ]
    result: dict[str, Any] = {
        "backends": list(names),
        "device": settings.device,
        "precision": settings.precision,
        "tolerance": settings.allowed,
        "versions": made_by(),
        "base_sha256": replay.base.sha256,
        "stages": stages,
        "steps": steps,
        "learning_rates": {"relative": max(rates)},
        "loss_curve": {"mean_relative": mean_relative(other.losses, reference.losses)},
        "adapter_distance": distance(other.adapter, reference.adapter),
    }
    apart = result["loss_curve"]["mean_relative"]
    if settings.precision == FLOAT32:
        result["exceeded"] = exceeded(stages, steps, settings.allowed)
    else:
        within = apart <= settings.allowed
        result["exceeded"] = [] if within else [f"the loss differs by {apart:.2g} in the mean of all steps"]
    if not max(rates) <= settings.allowed:
        result["exceeded"].append(f"the learning rate differs by {max(rates):.2g}")
    return result


def own_start(context: Context) -> dict[str, Floats] | None:
    """Return the adapter that a run was told to start from, or None; raises InputError if it does not fit."""
    given = context.backend.initial_adapter
    return read_start(given, context.task.lora, context.base.sha256) if given else None


def trained_adapter(context: Context) -> dict[str, Floats] | None:
    """Return a run's final adapter, or None if it has not trained or its task has changed since."""
    if not TRAIN.is_done(context):
        return None
    return dict(read_adapter(context.run.adapter).tensors)


def export_of(context: Context) -> Shipped | None:
    """Return what a run ships, or None if its present adapter was not exported."""
    if not EXPORT.is_done(context):
        return None
    try:
        return read_shipped(context.run.path)
    except RunError:
        return None


def _exceeded_beside(result: Mapping[str, Any], settings: Settings) -> list[str]:
    """Return what is wrong apart from the traces; llama.cpp rounds activations, so the gate checks its logits."""
    found = []
    for entry in result["forward"]["figures"]:
        exact = entry["program"] == "torch" and settings.precision == FLOAT32
        if exact and not entry["relative"] <= settings.allowed:
            found.append(f"logits of stage {entry['stage']} differ by {entry['relative']:.2g} of the largest")
    if (log := result["run_log"]) and log["differing"]:
        found.append(f"the rows at {log['first']} are not as many tokens as the run's log says")
    if (tokens := result["tokenizers"]) and tokens["differing"]:
        found.append(f"{tokens['differing']} of {tokens['rows']} chats have other ids in llama.cpp ({tokens['first']})")
    conversion = result["conversion"]
    if conversion["differing"]:
        found.append(f"{conversion['first']} is not the same after PEFT and back")
    if not conversion["same_scale"]:
        found.append(f"PEFT's alpha / rank is {conversion['scale']['peft']}, not {conversion['scale']['mlx']}")
    return found
