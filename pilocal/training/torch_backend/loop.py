"""The training loop in PyTorch: all stages, one adapter, one optimizer, resumable at every checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pilocal.base.base import Base
from pilocal.errors import TrainingError
from pilocal.progress import Progress
from pilocal.prompt.tokens import Row
from pilocal.run.hashes import fingerprint
from pilocal.run.log import Log
from pilocal.task import Lora, Training
from pilocal.training.backend import UNPACKED
from pilocal.training.interrupt import Interrupt
from pilocal.training.row_order import RowOrder, StagePlan
from pilocal.training.torch_backend.adapter import check_adapter, draw, save_adapter, save_peft
from pilocal.training.torch_backend.checkpoint import find_checkpoint, restore, save_checkpoint
from pilocal.training.torch_backend.memory import choose_weights, out_of_memory
from pilocal.training.torch_backend.optimizer import learning_rate
from pilocal.training.torch_backend.team import Team, local_device
from pilocal.training.torch_backend.trainer import Floats, TorchTrainer
from pilocal.training.tracker import Tracker, tracking


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What every process of a training has to have itself."""

    base: Base
    lora: Lora
    training: Training
    device: str
    """The kind: "cpu", "cuda" or "mps"."""
    weights: str | None = None
    """One of `pilocal.training.backend.WEIGHTS`; None takes floats where they fit."""

    @property
    def precision(self) -> str:
        """What the base computes in; the adapter, its gradients and the loss are float32 always."""
        return precision_of(self.training)

    def trainer(self, team: Team, weights: str) -> TorchTrainer:
        """Load the base, its weights held in that way, and return its trainer, with an adapter of zeros."""
        settings: dict[str, Any] = {"precision": self.precision, "weights": weights, "share": True, "team": team}
        settings["device"] = local_device(self.device)
        return TorchTrainer(self.base, self.lora, self.training, None, **settings)

    def same(self) -> dict[str, str]:
        """Return what the processes of a team must agree on before they train, as SHA-256."""
        made = [version(package) for package in ("pilocal", "torch", "transformers", "peft")]
        return {
            "the version of pilocal, torch, transformers or peft": fingerprint(made),
            "the base": self.base.sha256,
            "[lora] or [training]": fingerprint(asdict(self.lora), asdict(self.training)),
            "--device": fingerprint(self.device),
        }


def precision_of(training: Training) -> str:
    """Return what the base computes in: float32 unless the task says otherwise."""
    return training.precision or "float32"


def train(
    setup: Setup,
    plans: Sequence[StagePlan],
    initial: Callable[[], Mapping[str, Floats] | None],
    *,
    key: str,
    facts: Mapping[str, Any],
    progress: Progress,
    warn: Callable[[str], None],
    name: str = "train",
    team: Team | None = None,
    track: Callable[[int], Tracker] | None = None,
    peft: Path | None = None,
) -> list[Path]:
    """Train one adapter through all stages and return every file that is final.

    `initial` returns the adapter to start from, under mlx-lm's names, or None to draw one; `key` is a fingerprint of
    everything that decides the result, `facts` go into adapter_config.json. A checkpoint with the same key is gone on
    from. The processes of a `team` that this one leads share the work; `track` opens a tracker that gets every line;
    the final adapter goes to the folder `peft`, too, in PEFT's format. The first interrupt (Ctrl-C) lets the step
    finish, saves, and raises KeyboardInterrupt. Raises TrainingError when the loss stops being a number, the memory
    does not do, or a process of the team is gone.
    """
    team = team or Team()
    config, weights = setup.base.config, setup.weights or UNPACKED
    if setup.device == "cuda":
        free = torch.cuda.mem_get_info(local_device("cuda"))[0]
        stages = [plan.train for plan in plans]
        weights = choose_weights(free, setup.weights, config, setup.lora, setup.training, setup.precision, stages)
        if weights != (setup.weights or UNPACKED):
            warn("the base stays packed: as floats it would not fit the GPU (--weights chooses)")
    checkpoint = find_checkpoint([plan.folder / "checkpoint" for plan in plans], key, warn)
    started = None if checkpoint else initial()
    try:
        with team.order("fit", same=setup.same(), weights=weights):
            team.check_same(setup.same(), setup.same())
            trainer = setup.trainer(team, weights)
            if checkpoint:
                restore(checkpoint, trainer)
            else:
                trainer.set_adapter(_start(trainer, started, setup, warn))
            state = trainer.optimizer_state() if checkpoint else {}
            team.share((trainer.adapter(), state))
        start, ends = (checkpoint.step, list(checkpoint.ends)) if checkpoint else (0, [])
        said = _adapter_config(trainer, setup.lora) | dict(facts)
        with Interrupt() as interrupt, tracking(track, start) as show:
            course = _Course(
                trainer, plans, key, setup.base.shares_prefix, interrupt, show, lambda *args: progress(name, *args)
            )
            for plan in plans[len(ends) :]:
                course.run_stage(plan, start, ends)
                # The adapter comes before the checkpoint, which promises that it is there.
                save_adapter(plan.folder, trainer.adapter(), said)
                ends.append((ends[-1] if ends else 0) + plan.steps)
                save_checkpoint(plan.folder / "checkpoint", ends[-1], key, trainer, ends)
                if interrupt.asked:
                    raise KeyboardInterrupt
    except torch.OutOfMemoryError:
        raise out_of_memory(setup.training) from None
    names = ("adapters.safetensors", "adapter_config.json", "metrics.jsonl")
    files = [plan.folder / file for plan in plans for file in names]
    return files + (save_peft(peft, trainer.adapter(), trainer.settings, str(facts["model"])) if peft else [])


def _start(
    trainer: TorchTrainer, given: Mapping[str, Floats] | None, setup: Setup, warn: Callable[[str], None]
) -> Mapping[str, Floats]:
    """Return the adapter to start from: the one that was given, or one drawn here, with a warning."""
    if given is None:
        warn("MLX cannot be imported, so the adapter's start is drawn by NumPy: not the one that MLX trains from")
        return draw(trainer.shapes, setup.training.seed)
    check_adapter(given, trainer.shapes, "--initial-adapter")
    return given


def _adapter_config(trainer: TorchTrainer, lora: Lora) -> dict[str, Any]:
    """Return what adapter_config.json says for mlx-lm."""
    settings = {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout, "keys": trainer.linears}
    layers = lora.layers or len(trainer.model.model.layers)
    return {"fine_tune_type": lora.kind, "num_layers": layers, "lora_parameters": settings}


@dataclass(frozen=True, slots=True)
class _Course:
    """What all stages of a training have in common."""

    trainer: TorchTrainer
    plans: Sequence[StagePlan]
    key: str
    share: bool
    """Whether what rows begin with together counts for their order, see `order.RowOrder`."""
    interrupt: Interrupt
    show: Callable[[int, Mapping[str, Any]], None]
    say: Callable[[int, int, str], None]

    def run_stage(self, plan: StagePlan, start: int, ends: Sequence[int]) -> None:
        """Take a stage's steps from step `start` of the whole run on."""
        trainer, training = self.trainer, self.trainer.training
        total, first = sum(other.steps for other in self.plans), ends[-1] if ends else 0
        last = first + plan.steps
        log = Log(plan.folder / "metrics.jsonl")
        log.forget_after(start if start > first else -1)
        order = RowOrder(plan.train, training.batch_size, (training.seed, plan.number), share=self.share)
        valid = RowOrder(plan.valid, training.batch_size, (0,), share=self.share).in_order()
        for step in range(max(start, first), last):
            rate = learning_rate(step, total, training)
            line = _measured(trainer, step, rate, order.rows_at(step - first), f"stage {plan.number}")
            done = step + 1
            line = {"step": done, "learning_rate": rate} | line
            if done == last or done % training.validate_every == 0:
                line["valid_loss"] = validate(trainer, valid)
            log.append(line)
            self.show(plan.number, line)
            where = f"stage {len(ends) + 1}/{len(self.plans)}"
            self.say(done, total, f"{where}  loss {line['loss']:.3f}  {log.speed()}")
            if done < last and (self.interrupt.asked or done % training.checkpoint_every == 0):
                save_checkpoint(plan.folder / "checkpoint", done, self.key, trainer, ends)
            if done < last and self.interrupt.asked:
                raise KeyboardInterrupt


def validate(trainer: TorchTrainer, batches: Sequence[Sequence[Row]]) -> float:
    """Return the mean loss per completion token over a fixed set of batches."""
    total, count = 0.0, 0
    for rows in batches:
        with trainer.team.order("validate", rows=rows):
            loss, tokens = trainer.evaluate(rows)
        total, count = total + loss, count + tokens
    return total / count


def _measured(trainer: TorchTrainer, step: int, rate: float, rows: Sequence[Row], stage: str) -> dict[str, Any]:
    """Take a step and return what it showed; raises TrainingError when the loss is not a number."""
    began = time.perf_counter()
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)
    with trainer.team.order("step", number=step, rate=rate, rows=rows):
        loss, norm = trainer.step(step, rate, rows)
    lengths = [len(row.tokens) for row in rows]
    trained, (computed, padding) = sum(len(row.completion) for row in rows), trainer.computed_tokens(rows)
    line = {
        "loss": loss,
        "gradient_norm": norm,
        "trained_tokens": trained,
        "prompt_tokens": sum(lengths) - trained,
        "computed_tokens": computed,
        "padding": round(padding / computed, 4),
        "seconds": round(time.perf_counter() - began, 4),
        "peak_memory": peak_memory(trainer.device),
    }
    if not (math.isfinite(loss) and math.isfinite(norm)):
        fix = f"lower learning_rate (now {trainer.training.learning_rate}) and run again"
        raise TrainingError(f"{stage}, step {step + 1}", "the loss is not a number any more", got=loss, fix=fix)
    return line


def peak_memory(device: torch.device) -> int:
    """Return the bytes at the peak: of the step on CUDA, so far in the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def follow(team: Team, setup: Setup) -> None:
    """Carry out the leader's orders until it ends the training; what a process does that does not lead.

    Raises TrainingError when the leader is gone, or has other settings.
    """
    try:
        with Interrupt():  # Ctrl-C reaches every process; the leader saves first
            _obey(team, setup)
    finally:
        team.leave()


def _obey(team: Team, setup: Setup) -> None:
    trainer: TorchTrainer | None = None
    for kind, details in team.orders():
        if kind == "fit":
            team.check_same(setup.same(), details["same"])
            trainer = None  # frees the base before another is loaded
            trainer = setup.trainer(team, details["weights"])
            adapter, state = team.share(None)
            trainer.set_adapter(adapter)
            trainer.set_optimizer_state(state)
            continue
        assert trainer is not None
        (trainer.step if kind == "step" else trainer.evaluate)(**details)
