"""What every process of a training in PyTorch has to have itself, and how it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pilocal.base.base import Base
from pilocal.base.gguf_memory import held_as_floats
from pilocal.packages import versions
from pilocal.progress import Progress
from pilocal.run_folder.adapter import read_start
from pilocal.run_folder.hashes import fingerprint
from pilocal.task import Lora, Training
from pilocal.training.backend import NF4, PACKED, TORCH, UNPACKED, shards
from pilocal.training.checkpoint import Checkpoint
from pilocal.training.memory import Forecast, Need, read_sizes
from pilocal.training.row_order import StagePlan
from pilocal.training.team import Kind, Order
from pilocal.training.torch_backend.adapter import Floats, check_adapter, draw, save_peft
from pilocal.training.torch_backend.device import free_memory
from pilocal.training.torch_backend.joint import Joint
from pilocal.training.torch_backend.memory import choose_weights, plan_stages, told_of_memory
from pilocal.training.torch_backend.probe import stage_seconds
from pilocal.training.torch_backend.reference import TorchReference
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
        """Return what the training will need; the `probe` times a step, if the memory is estimated to do.

        A base that is sharded is not loaded, and no step is timed.
        """
        memory, stages = free_memory(self.device), [[*plan.train, *plan.generation] for plan in plans]
        settings = (self.base.config, self.lora, self.training, self.precision)
        peaks, advice = plan_stages(memory, self.weights, *settings, stages, shards())
        weights = None
        if self.base.gguf and self.weights != NF4:
            size = 4 if self.precision == "float32" else 2
            weights = str(held_as_floats(self.base.gguf_weights, size))
        seconds: list[float] | list[None] = [None] * len(plans)
        if probe and advice is None and shards() == 1:
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
                self.agree()
                trainer = self._trainer(self.team.share(weights))
                if checkpoint:
                    trainer.restore(checkpoint.adapter, checkpoint.optimizer)
                else:
                    trainer.set_adapter(self._start(trainer, given, warn))
                self.team.share((trainer.adapter(), trainer.optimizer_state() if checkpoint else {}))
        return trainer

    def join(self) -> TorchTrainer:
        """Return a trainer in the leader's state."""
        self.agree()
        trainer = self._trainer(self.team.share(None))
        trainer.restore(*self.team.share(None))
        return trainer

    def settle(self, step: int, resumed: bool) -> None:
        """Change nothing: PyTorch's threads sleep while they wait."""

    def teacher(self) -> TorchTeacher | Joint:
        """Load the base, its weights held as for the training; one that is sharded is loaded when it is asked."""
        if self.team.sharded:
            return Joint(self, teaches=True)
        return TorchTeacher(self._trainer(self.weights or UNPACKED))

    def reference(self, adapter: Path | None) -> TorchReference | Joint:
        """Load the base with the adapter of a folder, if any; one that is sharded is loaded when it is asked.

        On CUDA it stays packed. Raises ModelError or InputError when they do not fit each other.
        """
        floats = read_start(adapter, self.lora, self.base.sha256) if adapter else None
        if self.team.sharded:
            return Joint(self, teaches=False, adapter=floats)
        loaded = self.loaded(floats, self.asked_weights, teaches=False)
        assert isinstance(loaded, TorchReference)
        return loaded

    @property
    def asked_weights(self) -> str:
        """How a base is held that is asked outside of a training: packed on CUDA, if nothing else was chosen."""
        return self.weights or (PACKED if self.device == "cuda" and self.base.quantized else UNPACKED)

    def loaded(
        self, adapter: Mapping[str, Floats] | None, weights: str, *, teaches: bool
    ) -> TorchTeacher | TorchReference:
        """Return the base with an adapter, to be asked; every process of a team that shards it calls this."""
        trainer = self._trainer(weights)
        if adapter is not None:
            check_adapter(adapter, trainer.shapes, self.base.path)
        zeros = {name: np.zeros(shape, np.float32) for name, shape in trainer.shapes.items()}
        trainer.set_adapter(zeros if adapter is None else adapter)
        return TorchTeacher(trainer) if teaches else TorchReference(trainer)

    def agree(self) -> None:
        """Free what all computed with last; raise TrainingError, in every process, unless all have what `same` says."""
        self.team.joint = (None, None)
        self.team.check_same(self.same(), self.team.share(self.same()))

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
            "ACCELERATE_USE_FSDP": fingerprint(self.team.sharded),
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
        settings = (config, self.lora, self.training, self.precision)
        weights = choose_weights(free, self.weights, *settings, stages, self.team.size if self.team.sharded else 1)
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
