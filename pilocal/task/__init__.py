"""What the user wrote: task.toml, the template, the examples and the schedule, read strictly."""

from pilocal.task.examples import Example, load_examples
from pilocal.task.export_table import AUTO, LOSSLESS, Export
from pilocal.task.load import Task, load_task
from pilocal.task.optimizers import OPTIMIZERS, Optimizer
from pilocal.task.serving_table import Serving
from pilocal.task.tables import (
    DEVICES,
    LR_SCHEDULES,
    METHODS,
    METRICS,
    PRECISIONS,
    STARTER,
    TABLES,
    Compression,
    Evaluation,
    Generation,
    Lora,
    Retrieval,
    Scoring,
    Training,
)

__all__ = [
    "AUTO",
    "DEVICES",
    "LOSSLESS",
    "LR_SCHEDULES",
    "METHODS",
    "METRICS",
    "OPTIMIZERS",
    "PRECISIONS",
    "STARTER",
    "TABLES",
    "Compression",
    "Evaluation",
    "Example",
    "Export",
    "Generation",
    "Lora",
    "Optimizer",
    "Retrieval",
    "Scoring",
    "Serving",
    "Task",
    "Training",
    "load_examples",
    "load_task",
]
