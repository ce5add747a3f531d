"""The steps, one file each; to add a step, write its file and put it in `STEPS`."""

from pilocal.flow.steps.compress import COMPRESS
from pilocal.flow.steps.direct_drop import DIRECT_DROP
from pilocal.flow.steps.edit import EDIT
from pilocal.flow.steps.evaluate import EVALUATE
from pilocal.flow.steps.export import EXPORT
from pilocal.flow.steps.index import INDEX
from pilocal.flow.steps.mix import MIX
from pilocal.flow.steps.on_policy import ON_POLICY
from pilocal.flow.steps.retention import RETENTION
from pilocal.flow.steps.stages import STAGES
from pilocal.flow.steps.strength import STRENGTH, adapter_step, stage_folders
from pilocal.flow.steps.teacher import TEACHER
from pilocal.flow.steps.train import TRAIN

STEPS = (
    *(COMPRESS, INDEX, STAGES, TEACHER, MIX, EDIT, TRAIN, ON_POLICY, STRENGTH),
    *(DIRECT_DROP, RETENTION, EXPORT, EVALUATE),
)
"""Every step, in the order in which they run."""

__all__ = [
    "COMPRESS",
    "DIRECT_DROP",
    "EDIT",
    "EVALUATE",
    "EXPORT",
    "INDEX",
    "MIX",
    "ON_POLICY",
    "RETENTION",
    "STAGES",
    "STEPS",
    "STRENGTH",
    "TEACHER",
    "TRAIN",
    "adapter_step",
    "stage_folders",
]
