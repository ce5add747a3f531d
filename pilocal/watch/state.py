"""What is to be seen of a run; the fields of `State` are the keys of /state."""

from __future__ import annotations

from dataclasses import dataclass

RUNNING, SILENT, STOPPED, DONE, GONE = "running", "silent", "stopped", "done", "gone"
"""The statuses of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """A step of the flow."""

    name: str
    state: str
    """"done", "now" or "to come"."""
    seconds: float | None
    """What it took, or has taken so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """A stage of a training; losses are nats per completion token, times seconds."""

    number: int
    tau: float | None
    shots: int | None
    taken: int
    """Steps."""
    planned: int | None
    loss: float | None
    """Of its last step."""
    valid_loss: float | None
    """The last one."""
    seconds: float
    """What its steps and validations took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Work of which a step has reported how far it is."""

    what: str
    done: int
    total: int
    note: str
    seconds_left: float | None
    """None where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A line of metrics.jsonl, as it is shown."""

    step: int
    stage: int
    """The place among the stages of the training, from 0."""
    loss: float
    valid_loss: float | None
    tokens_per_second: float
    peak_memory: int
    """Bytes."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A run as it is now; the fields are the keys of /state. None stands for what is not known yet."""

    run: str
    task: str
    model: str
    backend: str
    status: str
    """"running", "silent", "stopped", "done" or "gone"."""
    said: str
    """The status in a sentence."""
    steps: tuple[StepState, ...]
    work: Work | None
    training: str
    """The step whose training is shown; empty where there is none."""
    trains: bool
    """Whether that training goes on."""
    stages: tuple[StageState, ...]
    stage: int | None
    """The place among `stages` of the one that goes on, or was the last."""
    step: int
    total: int | None
    """Steps of all stages."""
    loss: float | None
    valid_loss: float | None
    lowest_valid_loss: float | None
    """Under the prompt of the same stage."""
    tokens_per_second: float | None
    """Tokens of the rows, each counted whole, over the recent steps."""
    peak_memory: int | None
    """Bytes, over the recent steps."""
    seconds_left: float | None
    """Of the training, about."""
    stage_seconds_left: float | None
    guess: str
    """What makes these less sure."""
    then: tuple[str, ...]
    """The steps that follow the training."""
    sparkline: str
    lines: tuple[Step, ...]
    faults: tuple[str, ...]
    """What could not be read."""

    @property
    def position(self) -> str:
        """The stage in words, such as "stage 2 of 4"."""
        if self.stage is None:
            return ""
        return f"stage {self.stage + 1} of {len(self.stages)}"
