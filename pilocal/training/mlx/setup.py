"""What every process of a training in MLX has to have itself, and how it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pilocal.base.base import Base
from pilocal.base.blas import choose_threads
from pilocal.base.device import keeps_packed, lent_memory, machine_memory
from pilocal.base.gguf_memory import held_as_floats, held_packed
from pilocal.base.load import load_base
from pilocal.packages import versions
from pilocal.progress import Progress
from pilocal.run_folder.hashes import fingerprint
from pilocal.task import Lora, Training
from pilocal.training.backend import MLX
from pilocal.training.checkpoint import Checkpoint
from pilocal.training.memory import Forecast, Machine, advise, base_bytes, predict, read_sizes
from pilocal.training.mlx.batches import Floats
from pilocal.training.mlx.probe import survey, take_probe
from pilocal.training.mlx.teacher import MlxTeacher
from pilocal.training.mlx.team import MlxTeam
from pilocal.training.mlx.trainer import MlxTrainer
from pilocal.training.row_order import StagePlan
from pilocal.training.team import Kind, Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The base, the task's settings and the team."""

    base: Base
    lora: Lora
    training: Training
    team: MlxTeam = field(default_factory=MlxTeam)
    initial: Callable[[], Mapping[str, Floats] | None] = lambda: None
    """For the leader: returns the adapter to start from, or None to draw one."""
    settle: Callable[[int, bool], None] = lambda step, resumed: None
    """See `training.protocol.Setup`."""
    unified: int | None = None
    """Bytes of unified memory of the Mac to plan for; None for this machine."""

    @property
    def name(self) -> str:
        """The backend's."""
        return MLX

    def plan(self, plans: Sequence[StagePlan], *, probe: bool, progress: Progress) -> Forecast:
        """Return what the training will need; the `probe` is a step on the first stage's heaviest batch.

        For another Mac nothing of the base but its sizes is looked at, and there is no probe.
        """
        config, training = self.base.config, self.training
        sizes = read_sizes(config, self.lora)
        works = [survey(sizes, plan, training) for plan in plans]
        memory = machine_memory() if self.unified is None else lent_memory(self.unified)
        machine = Machine(memory=memory, base=self._base_bytes())
        if probe and self.unified is None:
            progress("probe", 0, 1)
            model = load_base(self.base, precision=training.precision)
            choose_threads(int(self.base.config["hidden_size"]))
            machine = replace(machine, probe=take_probe(model, works[0].heaviest, self.lora, training))
            progress("probe", 1, 1)
        needs = predict(machine, sizes, works, [plan.steps for plan in plans], training)
        advice = advise(machine, sizes, works, training, may_recompute=not self.lora.dropout)
        return Forecast(tuple(needs), machine.memory, advice, self._weights())

    def _base_bytes(self) -> int:
        """Return what the base's weights take in memory: as much as its files, where they are held as they are."""
        if self.base.gguf and self._keeps_packed:
            return held_packed(self.base.gguf_weights).bytes
        if self._keeps_packed and self.training.precision is None and self.base.weight_files:
            return sum(path.stat().st_size for path in self.base.weight_files)
        return base_bytes(self.base.config, packed=self._keeps_packed, precision=self.training.precision)

    @property
    def _keeps_packed(self) -> bool:
        """Whether packed weights stay so, as they do on every Mac."""
        return self.unified is not None or keeps_packed()

    def _weights(self) -> str | None:
        """Return how the numbers of a base in GGUF are held."""
        if self.base.gguf is None:
            return None
        size = 2 if self.training.precision == "bfloat16" else 4
        weights = self.base.gguf_weights
        return str(held_packed(weights) if self._keeps_packed else held_as_floats(weights, size))

    def lead(
        self, checkpoint: Checkpoint | None, plans: Sequence[StagePlan], warn: Callable[[str], None]
    ) -> MlxTrainer:
        """Return a trainer in the state of `checkpoint`, or a fresh one, and give its state to the team."""
        trainer = self._trainer(None if checkpoint else self.initial())
        if checkpoint:
            trainer.restore(checkpoint.adapter, checkpoint.optimizer)
        with self.team.order(Order(Kind.FIT)):
            self.team.check_same(self.same())
            trainer.meet()
        return trainer

    def join(self) -> MlxTrainer:
        """Return a trainer in the leader's state."""
        self.team.check_same(self.same())
        trainer = self._trainer()
        trainer.meet()
        return trainer

    def teacher(self) -> MlxTeacher:
        """Load the base as it is."""
        return MlxTeacher(load_base(self.base, precision=self.training.precision), self.training)

    def finish(self, trainer: MlxTrainer) -> list[Path]:
        """Write nothing: the stages' files are all there is."""
        return []

    def same(self) -> dict[str, str]:
        """Return what the processes of a team must agree on before they train, as SHA-256."""
        made = [*versions("mlx", "mlx-lm").values()]
        return {
            "the version of pilocal, mlx or mlx-lm": fingerprint(made),
            "the base": self.base.sha256,
            "[lora] or [training]": fingerprint(asdict(self.lora), asdict(self.training)),
        }

    def _trainer(self, initial: Mapping[str, Floats] | None = None) -> MlxTrainer:
        return MlxTrainer(self.base, self.lora, self.training, initial, team=self.team)
