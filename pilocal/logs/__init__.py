"""Logs of requests become a task: the recurring part is found, the rows are sorted, and what is left out is listed."""

from pilocal.logs.bases import BaseChoice, choose_base, installed_bases
from pilocal.logs.folder import Made, from_logs, from_prompt
from pilocal.logs.survey import Survey, survey

__all__ = [
    "BaseChoice",
    "Made",
    "Survey",
    "choose_base",
    "from_logs",
    "from_prompt",
    "installed_bases",
    "survey",
]
