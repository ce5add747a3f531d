"""What every process of a training in PyTorch has to have itself, and how it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pilocal.base.base import Base
from pilocal.base.gguf_memory import held_as_floats
from pilocal.packages import versions
from pilocal.progress import Progress
from pilocal.run_folder.hashes import fingerprint
from pilocal.task import Lora, Training
from pilocal.training.backend import NF4, TORCH, UNPACKED
from pilocal.training.checkpoint import Checkpoint
from pilocal.training.memory import Forecast, Need, read_sizes
from pilocal.training.row_order import StagePlan
from pilocal.training.team import Kind, Order
from pilocal.training.torch_backend.adapter import Floats, check_adapter, draw, save_peft
from pilocal.training.torch_backend.device import free_memory
from pilocal.training.torch_backend.memory import choose_weights, plan_stages, told_of_memory
from pilocal.training.torch_backend.probe import stage_seconds
from pilocal.training.torch_backend.teacher import TorchTeacher
from pilocal.training.torch_backend.team import TorchTeam, local_device
from pilocal.training.torch_backend.trainer import TorchTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The base, the task's settings, the device and the team."""

    base: Base
    lora: Lora
    training: Training
    device: str
    """The kind: "cpu", "cuda" or "mps"."""
    weights: str | None = None
    """One of `pilocal.training.backend.WEIGHTS`; None takes floats where they fit."""
    initial: Callable[[], Mapping[str, Floats] | None] = lambda: None
    """For the leader: returns the adapter to start from, under mlx-lm's names, or None to draw one."""
    peft: Path | None = None
    """For the leader: a folder that gets the final adapter, in PEFT's format."""
    team: TorchTeam = field(default_factory=TorchTeam)

    @property
    def name(self) -> str:
        """The backend's."""
        return TORCH

    @property
    def precision(self) -> str:
        """What the base computes in; the adapter, its gradients and the loss are float32 always."""
        return precision_of(self.training)

    def plan(self, plans: Sequence[StagePlan], *, probe: bool, progress: Progress) -> Forecast:
        """Return what the training will need; the `probe` times a step, if the memory is estimated to do."""
        memory, stages = free_memory(self.device), [[*plan.train, *plan.generation] for plan in plans]
        settings = (self.base.config, self.lora, self.training, self.precision)
        peaks, advice = plan_stages(memory, self.weights, *settings, stages)
        weights = None
        if self.base.gguf and self.weights != NF4:
            size = 4 if self.precision == "float32" else 2
            weights = str(held_as_floats(self.base.gguf_weights, size))
        seconds: list[float] | list[None] = [None] * len(plans)
        if probe and advice is None:
            progress("probe", 0, 1)
            trainer = self._trainer(self._choose_weights(plans, lambda said: None))
            seconds = stage_seconds(trainer, read_sizes(self.base.config, self.lora), plans)
            progress("probe", 1, 1)
        needs = [Need(peak=peak, seconds=each) for peak, each in zip(peaks, seconds, strict=True)]
        return Forecast(tuple(needs), memory, advice, weights)

    def lead(
        self, checkpoint: Checkpoint | None, plans: Sequence[StagePlan], warn: Callable[[str], None]
    ) -> TorchTrainer:
        """Return a trainer in the state of `checkpoint`, or a fresh one, and give its state to the team.

        Raises TrainingError when the memory does not do.
        """
        with told_of_memory(self.training):
            weights = self._choose_weights(plans, warn)
            given = None if checkpoint else self.initial()
            with self.team.order(Order(Kind.FIT)):
                self.team.share((self.same(), weights))
                self.team.check_same(self.same(), self.same())
                trainer = self._trainer(weights)
                if checkpoint:
                    trainer.restore(checkpoint.adapter, checkpoint.optimizer)
                else:
                    trainer.set_adapter(self._start(trainer, given, warn))
                self.team.share((trainer.adapter(), trainer.optimizer_state() if checkpoint else {}))
        return trainer

    def join(self) -> TorchTrainer:
        """Return a trainer in the leader's state."""
        leaders, weights = self.team.share(None)
        self.team.check_same(self.same(), leaders)
        trainer = self._trainer(weights)
        trainer.restore(*self.team.share(None))
        return trainer

    def settle(self, step: int, resumed: bool) -> None:
        """Change nothing: PyTorch's threads sleep while they wait."""

    def teacher(self) -> TorchTeacher:
        """Load the base, its weights held as for the training."""
        return TorchTeacher(self._trainer(self.weights or UNPACKED))

    def finish(self, trainer: TorchTrainer) -> list[Path]:
        """Write the final adapter in PEFT's format where that is asked for; return its files."""
        return save_peft(self.peft, trainer.adapter(), trainer.settings, self.base.model) if self.peft else []

    def same(self) -> dict[str, str]:
        """Return what the processes of a team must agree on before they train, as SHA-256."""
        made = [*versions("torch", "transformers", "peft").values()]
        return {
            "the version of pilocal, torch, transformers or peft": fingerprint(made),
            "the base": self.base.sha256,
            "[lora] or [training]": fingerprint(asdict(self.lora), asdict(self.training)),
            "--device": fingerprint(self.device),
        }

    def _trainer(self, weights: str) -> TorchTrainer:
        """Load the base, its weights held in that way, and return its trainer, with an adapter of zeros."""
        settings: dict[str, Any] = {"precision": self.precision, "weights": weights, "share": True, "team": self.team}
        settings["device"] = local_device(self.device)
        return TorchTrainer(self.base, self.lora, self.training, None, **settings)

    def _choose_weights(self, plans: Sequence[StagePlan], warn: Callable[[str], None]) -> str:
        """Return how the base's weights are held; raises TrainingError where no way fits the GPU."""
        asked = self.weights or UNPACKED
        if self.device != "cuda":
            return asked
        free = torch.cuda.mem_get_info(local_device("cuda"))[0]
        stages, config = [[*plan.train, *plan.generation] for plan in plans], self.base.config
        weights = choose_weights(free, self.weights, config, self.lora, self.training, self.precision, stages)
        if weights != asked:
            warn("the base stays packed: as floats it would not fit the GPU (--weights chooses)")
        return weights

    def _start(
        self, trainer: TorchTrainer, given: Mapping[str, Floats] | None, warn: Callable[[str], None]
    ) -> Mapping[str, Floats]:
        """Return the adapter to start from: the one that was given, or one drawn here, with a warning."""
        if given is None:
            warn("MLX cannot be imported, so the adapter's start is drawn by NumPy: not the one that MLX trains from")
            return draw(trainer.shapes, self.training.seed)
        check_adapter(given, trainer.shapes, "--initial-adapter")
        return given


def precision_of(training: Training) -> str:
    """Return what the base computes in: float32 unless the task says otherwise."""
    return training.precision or "float32"
