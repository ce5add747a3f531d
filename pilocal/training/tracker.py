"""Curves for those who ask: a training's lines, as they come, in TensorBoard or in Weights & Biases (W&B).

metrics.jsonl holds the same and more. A tracker that cannot start says so before any work; one that breaks while the
training runs is given up with one warning, and the training goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pilocal.errors import InputError, TrainingError, did_you_mean
from pilocal.packages import require_packages
from pilocal.run_folder.files import disk_error
from pilocal.run_folder.log import StepLine

TRACKERS = ("tensorboard", "wandb")

FLUSH_SECONDS = 2.0
"""How much W&B may keep in memory; TensorBoard's file has every line at once."""

INIT_SECONDS = 30.0
"""How long W&B may try to reach its server before the training."""

FINISH_SECONDS = 60.0
"""How long W&B may upload after the training; what is left stays on the disk."""


class Tracker(Protocol):
    """Where the lines go."""

    def log(self, stage: int, line: StepLine) -> None:
        """Show the line of a step."""

    def close(self) -> None:
        """Write what is left; call it however the training ended."""


@contextlib.contextmanager
def tracking(track: Callable[[int], Tracker] | None, start: int) -> Iterator[Callable[[int, StepLine], None]]:
    """Yield what shows a line of a stage, in a tracker that is closed however the training ends, or nowhere."""
    tracker = track(start) if track else None
    try:
        yield tracker.log if tracker else lambda number, line: None
    finally:
        if tracker:
            tracker.close()


def check_tracker(kind: str) -> None:
    """Raise InputError when `kind` is unknown or its package is not installed; imports nothing heavy."""
    if kind not in TRACKERS:
        raise InputError(kind, "no such tracker", fix=did_you_mean(kind, TRACKERS))
    require_packages(f"--report-to {kind}", *([kind, "torch"] if kind == "tensorboard" else [kind]))


def open_tracker(
    kind: str,
    folder: Path,
    *,
    name: str,
    key: str,
    config: Mapping[str, Any],
    first: int,
    warn: Callable[[str], None] = warnings.warn,
) -> Tracker:
    """Start to report below `folder`; the lines to come are those of the steps after `first`.

    `name` is what the run is called, `config` the settings to show. A `key` that was seen before goes on with the same
    run, and steps that are sent again take the place of the former ones (TensorBoard) or are left out (W&B).
    `warn` hears of a tracker that broke after this. Raises InputError when the package or the login is missing,
    TrainingError when W&B does not answer, RunError when `folder` cannot be written.
    """
    check_tracker(kind)
    opened = _TensorBoard if kind == "tensorboard" else _Wandb
    try:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        return _Guarded(kind, opened(folder, name, key, config, first), warn)
    except ImportError as error:
        fix = f"pip install --upgrade {kind}"
        raise InputError(f"--report-to {kind}", f"{kind} cannot be imported", got=str(error), fix=fix) from error
    except OSError as error:
        raise disk_error(folder / kind, error) from error


def scalars(stage: int, line: StepLine) -> dict[str, float]:
    """Return what is shown of a line, by its name in the tracker."""
    shown = {
        "train/loss": line.loss,
        "train/gradient_norm": line.gradient_norm,
        "train/learning_rate": line.learning_rate,
        "train/tokens_per_second": line.tokens / max(line.seconds, 1e-4),
        "train/peak_memory_gib": line.peak_memory / 2**30,
        "train/padding": line.padding,
        "train/stage": stage,
    }
    if line.valid_loss is not None:
        shown["valid/loss"] = line.valid_loss
    return shown


class _Guarded:
    """A tracker whose first fault is its last; the training never sees one."""

    def __init__(self, kind: str, tracker: _TensorBoard | _Wandb, warn: Callable[[str], None]) -> None:
        self._kind = kind
        self._tracker: _TensorBoard | _Wandb | None = tracker
        self._warn = warn

    def log(self, stage: int, line: StepLine) -> None:
        if self._tracker is not None:
            try:
                self._tracker.log(stage, line)
            except Exception as error:
                self._give_up(f"no reports from step {line.step} on; the training goes on", error)

    def close(self) -> None:
        if self._tracker is not None:
            try:
                self._tracker.close()
            except Exception as error:
                self._give_up("the last reports may be missing", error)
            self._tracker = None

    def _give_up(self, what: str, error: Exception) -> None:
        tracker, self._tracker = self._tracker, None
        assert tracker is not None
        with contextlib.suppress(Exception):
            tracker.abandon()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        self._warn(f"{self._kind}: {what}; {reason}; metrics.jsonl has every step{tracker.hint}")


class _TensorBoard:
    """Event files in `folder`/tensorboard."""

    hint = ""

    def __init__(self, folder: Path, name: str, key: str, config: Mapping[str, Any], first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Readers forget what earlier files say of this step and later ones.
        self._writer: Any = SummaryWriter(folder / "tensorboard", purge_step=first + 1)
        settings = json.dumps({"name": name, "key": key, **config}, indent=2, ensure_ascii=False, default=str)
        indented = "".join(f"    {line}\n" for line in settings.splitlines())  # Markdown's way to say code
        self._writer.add_text("settings", indented, first + 1)
        self._writer.flush()

    def log(self, stage: int, line: StepLine) -> None:
        for name, value in scalars(stage, line).items():
            self._writer.add_scalar(name, value, line.step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of W&B, with its files in `folder`/wandb, in the project pilocal; the user's WANDB_* come first."""

    def __init__(self, folder: Path, name: str, key: str, config: Mapping[str, Any], first: int) -> None:
        # wandb has types, but whoever checks ours need not have wandb.
        self._wandb: Any = importlib.import_module("wandb")
        defaults = {
            "WANDB_DIR": ("root_dir", str(folder)),
            "WANDB_PROJECT": ("project", "pilocal"),
            "WANDB_NAME": ("run_name", name),
            "WANDB_SILENT": ("silent", True),
            "WANDB_CONSOLE": ("console", "off"),  # the progress bar is no log
            "WANDB_INIT_TIMEOUT": ("init_timeout", INIT_SECONDS),
            "WANDB_FINISH_TIMEOUT": ("finish_timeout", FINISH_SECONDS),
            "WANDB_FINISH_TIMEOUT_RAISES": ("finish_timeout_raises", True),
            "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": ("x_transaction_log_flush_interval", FLUSH_SECONDS),
        }
        chosen = dict(value for variable, value in defaults.items() if not os.environ.get(variable))
        try:
            settings = self._wandb.Settings
            known = {option: value for option, value in chosen.items() if option in settings.model_fields}
            # What W&B says before it has a run (and whether it may ask for a key) follows the global settings.
            self._wandb.setup(settings=settings(**{k: v for k, v in known.items() if k == "silent"}))
            self._run: Any = self._wandb.init(
                id=key[:32], resume="allow", reinit="create_new", config=dict(config), settings=settings(**known)
            )
        except Exception as error:
            errors = self._wandb.errors
            if isinstance(error, errors.UsageError | errors.AuthenticationError):
                fix = "run `wandb login`, or set WANDB_MODE=offline"
                raise InputError("--report-to wandb", str(error), fix=fix) from error
            fix = "check the network and the WANDB_* variables, or set WANDB_MODE=offline"
            raise TrainingError("--report-to wandb", f"W&B does not start: {error}", fix=fix) from error
        # W&B takes no step twice: those it has, of a run that crashed after its checkpoint, are the same anyway.
        self._first = max(first + 1, self._run.starting_step)
        self.hint = f", and `wandb sync {self._run.settings.sync_dir}` uploads what was reported"

    def log(self, stage: int, line: StepLine) -> None:
        if line.step >= self._first:
            self._run.log(scalars(stage, line), step=line.step, commit=True)

    def close(self) -> None:
        # In a `finally`, the exception that ends the training is in flight; its run is not shown as finished.
        self._run.finish(exit_code=0 if sys.exc_info()[0] is None else 1)

    def abandon(self) -> None:
        # Lets go of a service that died or hangs; a later training of this process starts its own.
        self._wandb.teardown(exit_code=1)
